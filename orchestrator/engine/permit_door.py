"""What this replica answers other replicas about permits, and tells callers about limits in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

from orchestrator.domain.errors import InvalidRequest, WorkerNotFound
from orchestrator.engine.homes import Homes
from orchestrator.engine.limit_home import Peer
from orchestrator.engine.replica_ports import PermitNetwork, ReadAsked, ReplicaUnreachable, WriteGiven

STANDING_SECONDS = 1.0
"""How often replicas are told where what they asked for stands."""


class PermitDoor:
    """Implements api.Permits. `me` tells which replica process this is now."""

    def __init__(self, homes: Homes, network: PermitNetwork, me: Callable[[], UUID | None]) -> None:
        self._homes, self._network, self._me = homes, network, me

    async def exchange(self, token: str, read: ReadAsked, write: WriteGiven) -> None:
        """Carries the stream of another replica. Errors: WorkerNotFound (it meant another process, or is no replica),
        InvalidRequest (it began without an opening)."""
        me = self._me()
        self._require_replica(token)
        first = await read()
        if first is None:
            return
        replica_id = _read_id(first.opening.replica_id)
        wake = asyncio.Event()
        peer = Peer(wake.set)
        home = self._homes.own

        async def tell() -> None:
            while True:
                await wake.wait()
                wake.clear()
                frame = peer.take(home.generation)
                if frame is not None:
                    await write(frame)

        telling = asyncio.create_task(tell())
        try:
            frame: permits_pb2.ExchangeRequest | None = first
            while frame is not None and self._me() == me and home.receive(replica_id, peer, frame):
                frame = await read()
        finally:
            home.gone(replica_id, peer)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def look(self, token: str, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """Tells another replica how much of a limit that is at home here is in use. Errors: WorkerNotFound."""
        self._require_replica(token)
        return self._homes.own.use(namespace, limit)

    async def use(self, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """Tells how much of a limit is in use, wherever it is at home."""
        elsewhere = self._homes.address_of_home(namespace)
        if elsewhere is None:
            return self._homes.own.use(namespace, limit)
        replica_id, address = elsewhere
        try:
            return await self._network.look(replica_id, address, namespace, limit)
        except ReplicaUnreachable:
            return limit_pb2.LimitUse(paused=f"the replica at {address}, where its permits are given, does not answer")

    async def run(self) -> None:
        """For ever tells replicas where what they asked for stands."""
        while True:
            await asyncio.sleep(STANDING_SECONDS)
            self._homes.own.tell_standings()

    def _require_replica(self, token: str) -> None:
        me = self._me()
        if me is None or not self._network.admits(me, token):
            raise WorkerNotFound("this is not the replica process that was meant, or the caller is no replica")


def _read_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequest("the first frame holds no opening with a replica_id") from None
