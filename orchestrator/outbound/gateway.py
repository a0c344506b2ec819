"""The engine's way to workers: one place that holds the channels, the streams and the circuits of a replica."""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import grpc.aio
from baton.worker.session import ProtocolError
from baton.worker.v1 import work_pb2

from orchestrator.domain.errors import FieldFault, InvalidRequest, WorkerNotFound
from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue_ports import EndpointRow
from orchestrator.engine.worker_ports import (
    RELAY_ADDRESS_KEY,
    RELAY_TOKEN_KEY,
    Call,
    CallListener,
    Described,
    Health,
    ReadBatonFrame,
    ReadFrame,
    Sending,
    WriteFrame,
    WriteWorkerFrame,
)
from orchestrator.outbound.attached import AttachedSessions
from orchestrator.outbound.breaker import Circuit
from orchestrator.outbound.calls import Outbound
from orchestrator.outbound.channels import Channels
from orchestrator.outbound.health import HealthWatcher
from orchestrator.outbound.reflection import read_descriptors
from orchestrator.outbound.work_dialer import WorkDialer
from orchestrator.outbound.work_stream import OPENING_SECONDS, NoOpening, open_stream

_LOG = logging.getLogger(__name__)

Follower = Callable[[Health, int | None], None]


class RelayTokens(Protocol):
    """Makes and verifies what replicas show each other."""

    def sign_relay(self, address: str) -> str:
        """Makes what is shown to be relayed to the worker that is attached as `address`."""
        ...

    def verify_relay(self, address: str, token: str) -> bool:
        """Tells whether a replica made it."""
        ...


class _Link:
    """A stream of another replica, as the worker's half of the protocol reads and writes it."""

    def __init__(self, read: ReadBatonFrame, write: WriteWorkerFrame) -> None:
        self._read, self._write = read, write

    async def read(self) -> object:
        """Returns the next frame, EOF after the last."""
        frame = await self._read()
        return frame if frame is not None else grpc.aio.EOF

    async def write(self, frame: work_pb2.WorkerFrame) -> None:
        """Sends a frame."""
        await self._write(frame)


class GrpcWorkerGateway:
    """Implements worker_ports.WorkerGateway over gRPC. Belongs to the loop that it is made on; close it at the end."""

    def __init__(self, circuit_fail_max: int, circuit_reset_seconds: float, relays: RelayTokens) -> None:
        self._fail_max, self._reset_seconds = circuit_fail_max, circuit_reset_seconds
        self._channels = Channels()
        self._outbound = Outbound(self._channels)
        self._health = HealthWatcher(self._channels, lambda address, _: self._tell(address))
        self.replica_id = uuid.uuid4()
        self._dialer = WorkDialer(self._channels, self.replica_id, self._tell, self._serves_no_stream)
        self._attached = AttachedSessions(self._tell)
        self._relays = relays
        self._followers: defaultdict[str, list[tuple[EndpointKey, Follower]]] = defaultdict(list)
        self._lent: dict[EndpointKey, int] = {}

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See worker_ports.WorkerGateway. By the work stream where one is open, else by a unary call."""
        address = call.endpoint.address
        session = self._attached.session(address) or self._dialer.session(address)
        if session is not None and session.ready:
            return session.give(call, listener)
        return self._outbound.send(call, listener)

    def circuit(self, key: EndpointKey, on_change: Callable[[], None], now: Callable[[], int]) -> Circuit:
        """See worker_ports.WorkerGateway."""
        return Circuit(
            lambda _: on_change(),
            fail_max=self._fail_max,
            reset_timeout_seconds=self._reset_seconds,
            wall_time=now,
        )

    def follow(self, row: EndpointRow, on_change: Follower) -> Callable[[], None]:
        """See worker_ports.WorkerGateway. The liveness of a work stream is the stream itself: nothing more is asked."""
        address = row.key.address
        followers, following = self._followers[address], (row.key, on_change)
        followers.append(following)
        reach = row.reach
        if reach.attached_replica is not None and reach.attached_replica != self.replica_id:
            self._dialer.add(address, self._relay_metadata(address), reach.attached_address)
        elif reach.attached_replica is None and reach.work_stream:
            self._dialer.add(address)
        elif reach.attached_replica is None:
            self._health.add(address)
        self._tell(address)

        def unfollow() -> None:
            if following not in followers:
                return
            followers.remove(following)
            if not followers:
                self._followers.pop(address, None)
                self._dialer.remove(address)
                self._health.remove(address)
                self._channels.remove(address)
            else:
                self._tell(address)

        return unfollow

    def lends(self, key: EndpointKey, calls: int) -> None:
        """See worker_ports.WorkerGateway."""
        if calls:
            self._lent[key] = calls
        else:
            self._lent.pop(key, None)
        if len(self._followers.get(key.address, ())) > 1:
            self._tell(key.address)

    async def read_descriptors(self, address: str) -> Described:
        """See worker_ports.WorkerGateway."""
        reflected = await read_descriptors(self._channels, address)
        files = [file.SerializeToString() for file in reflected.files]
        return Described(files, reflected.services, reflected.work_stream)

    async def greet(self, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
        """See worker_ports.WorkerGateway."""
        try:
            return await open_stream(str(self.replica_id), read, write)
        except (NoOpening, TimeoutError):
            text = f"the first frame holds no opening; send it within {OPENING_SECONDS:.0f} s"
            raise InvalidRequest(f"opening: {text}", faults=[FieldFault("opening", "INVALID_REQUEST", text)]) from None

    async def carry_attached(
        self, address: str, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame
    ) -> None:
        """See worker_ports.WorkerGateway."""
        await self._attached.carry(address, first, read, write)

    async def relay(self, address: str, token: str, read: ReadBatonFrame, write: WriteWorkerFrame) -> None:
        """See worker_ports.WorkerGateway."""
        try:
            if self._relays.verify_relay(address, token) and await self._attached.relay(address, _Link(read, write)):
                return
        except ProtocolError as error:
            raise InvalidRequest(error.message) from None
        raise WorkerNotFound(f"no worker is attached here as {address}", metadata={"address": address})

    def attached_left(self, address: str) -> bool:
        """See worker_ports.WorkerGateway."""
        return self._attached.left(address)

    def forget_attached(self, address: str) -> None:
        """See worker_ports.WorkerGateway."""
        self._attached.forget(address)

    def leave(self) -> None:
        """See worker_ports.WorkerGateway."""
        self._dialer.leave()
        self._attached.leave()

    async def close(self) -> None:
        """Ends every stream and call, and closes every channel."""
        await self._dialer.close()
        self._attached.close()
        await self._health.close()
        await self._outbound.close()
        await self._channels.close()

    def _relay_metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        return ((RELAY_ADDRESS_KEY, address), (RELAY_TOKEN_KEY, self._relays.sign_relay(address)))

    def _state(self, address: str) -> tuple[Health, int | None]:
        if self._health.follows(address):
            return self._health.health(address), None
        if self._attached.session(address) is None and self._dialer.session(address) is not None:
            return self._dialer.health(address)
        return self._attached.health(address)

    def _tell(self, address: str) -> None:
        health, credit = self._state(address)
        followers = list(self._followers.get(address, ()))
        if len(followers) == 1 or not credit:
            for key, follower in followers:
                _inform(key, follower, health, credit)
            return
        # An address that is known by several names has one stream, and one credit for all of them. What the worker adds
        # for calls that wait is for those who made them: else what these wait for might find no room.
        lent = [self._lent.get(key, 0) for key, _ in followers]
        shared = max(credit - sum(lent), 0)
        for rank, (key, follower) in enumerate(followers):
            share = (shared and max((shared + rank) // len(followers), 1)) + lent[rank]
            _inform(key, follower, health, share)

    def _serves_no_stream(self, address: str, now: bool) -> None:
        if now:
            self._health.add(address)
        else:
            self._health.remove(address)
        self._tell(address)


def _inform(key: EndpointKey, follower: Follower, health: Health, credit: int | None) -> None:
    try:
        follower(health, credit)
    except Exception:
        # The stream that told of it goes on, with what is under way there, and others are told all the same.
        _LOG.exception("a change of %s could not be taken", key)
