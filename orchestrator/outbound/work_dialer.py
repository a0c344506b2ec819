"""Work streams that Baton opens: one to each address whose worker serves them, kept open as long as it is followed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import uuid
from collections.abc import Callable

import grpc
import grpc.aio
from baton.worker.v1 import work_pb2, work_pb2_grpc

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.engine.worker_ports import Health, ReadFrame
from orchestrator.outbound.channels import Channels, Connection
from orchestrator.outbound.work_session import SessionState, WorkSession
from orchestrator.outbound.work_stream import NoOpening, carry, open_stream

CONNECT_SECONDS = 1.0
"""An address that takes no connection for so long holds no worker process any more."""

_LOG = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0


class WorkDialer:
    """Keeps a work stream to each address that was added.

    `on_change(address)` is called when the health or the credit of one changed. `on_unserved(address, True)` tells of
    an address that serves no work stream after all, and with False that its stream is tried again.
    """

    def __init__(
        self,
        channels: Channels,
        replica_id: uuid.UUID,
        on_change: Callable[[str], None],
        on_unserved: Callable[[str, bool], None],
    ) -> None:
        self._channels, self._replica_id = channels, replica_id
        self._on_change, self._on_unserved = on_change, on_unserved
        self._sessions: dict[str, WorkSession] = {}
        self._ids = itertools.count(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._reached: set[str] = set()
        self._relayed: set[str] = set()

    def add(self, address: str, metadata: tuple[tuple[str, str], ...] = (), target: str = "") -> None:
        """Starts to keep a stream to an address; one that is kept already goes on. `target` is the replica to dial
        instead, where the worker is attached to one."""
        if address not in self._tasks:
            if target:
                self._relayed.add(address)
            loop = asyncio.get_running_loop()
            session = WorkSession(address, loop, lambda: self._on_change(address), self._ids)
            self._sessions[address] = session
            self._tasks[address] = asyncio.create_task(self._keep(address, target or address, metadata, session))

    def remove(self, address: str) -> None:
        """Ends the stream to an address; what is under way on it is lost."""
        task, session = self._tasks.pop(address, None), self._sessions.pop(address, None)
        self._reached.discard(address)
        self._relayed.discard(address)
        if task is not None and session is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            session.close()

    def session(self, address: str) -> WorkSession | None:
        """The session with the worker at an address that is followed."""
        return self._sessions.get(address)

    def health(self, address: str) -> tuple[Health, int | None]:
        """What is known of an address now, and its credit."""
        session = self._sessions.get(address)
        if session is None:
            return "unknown", None
        if session.state is SessionState.OPEN:
            return ("serving", session.credit) if session.ready else ("not_serving", None)
        if address in self._relayed or session.draining:
            return "not_serving", None  # There is no other way to call it, or it said that it takes no more.
        return ("unreachable" if address in self._reached else "unknown"), None

    def leave(self) -> None:
        """Tells every worker that nothing more comes: the replica drains."""
        for session in self._sessions.values():
            session.leave()

    async def close(self) -> None:
        """Ends all streams."""
        for address in tuple(self._tasks):
            self.remove(address)
        if self._ending:
            await asyncio.wait(tuple(self._ending))

    async def _keep(
        self, address: str, target: str, metadata: tuple[tuple[str, str], ...], session: WorkSession
    ) -> None:
        backoff_seconds = BACKOFF_SECONDS
        while True:
            try:
                with self._channels.hold(target) as connection:
                    if not await connection.wait_ready(CONNECT_SECONDS):
                        self._reached.add(address)
                        session.unreachable()
                        self._on_change(address)
                        await connection.wait_ready(None)
                    if await self._stream(address, metadata, connection, session) and not session.draining:
                        backoff_seconds = BACKOFF_SECONDS
            except WorkerUnreachable:
                pass
            except Exception:
                _LOG.exception("the work stream of %s has failed, and is opened again", address)
            self._reached.add(address)
            self._on_change(address)
            await asyncio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(backoff_seconds * 2, MAX_BACKOFF_SECONDS)

    async def _stream(
        self, address: str, metadata: tuple[tuple[str, str], ...], connection: Connection, session: WorkSession
    ) -> bool:
        """Holds one stream to its end; tells whether it was opened."""
        call = work_pb2_grpc.WorkerServiceStub(connection.channel).Work(metadata=metadata)
        read = _reader(call)
        task = asyncio.current_task()
        cancels_before = task.cancelling() if task is not None else 0
        try:
            first = await open_stream(self._name(address), read, call.write)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and address not in self._relayed:
                await self._unserved(address, connection, session)
            return False
        except (NoOpening, TimeoutError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            if task is None or task.cancelling() > cancels_before:
                raise
            return False  # Nobody cancelled this task: the channel was closed under the stream.
        else:
            await carry(session, session.opened(first.opening, first.drain), read, call.write)
            return True
        finally:
            call.cancel()

    def _name(self, address: str) -> str:
        """Who speaks: another for each address, since one worker process may serve at several."""
        return str(uuid.uuid5(self._replica_id, address))

    async def _unserved(self, address: str, connection: Connection, session: WorkSession) -> None:
        """Leaves an address to those who make single calls until its connection was lost."""
        self._on_unserved(address, True)
        try:
            await connection.wait_lost()
        finally:
            if self._sessions.get(address) is session:  # Else it was removed, and may be reached in another way by now.
                self._on_unserved(address, False)


def _reader(call: grpc.aio.StreamStreamCall[work_pb2.BatonFrame, work_pb2.WorkerFrame]) -> ReadFrame:
    async def read() -> work_pb2.WorkerFrame | None:
        frame = await call.read()
        return frame if isinstance(frame, work_pb2.WorkerFrame) else None

    return read
