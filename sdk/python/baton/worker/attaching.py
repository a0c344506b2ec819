"""A worker that dials in: it opens the stream to Baton itself, with its contract, and keeps it open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from baton.connection import KEEPALIVE, NO_PROBES, RECONNECTION, Backoff, namespace_metadata, server_address
from baton.descriptors import file_set
from baton.status import error_of
from baton.worker.listening import first_of
from baton.worker.session import ProtocolError
from baton.worker.steps import Steps
from baton.worker.streams import WorkStreams
from baton.worker.v1 import work_pb2, work_pb2_grpc

_log = logging.getLogger("baton.worker")
_FAREWELL_SECONDS = 1.0
_REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
_MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
_OPTIONS = (
    *RECONNECTION,
    *KEEPALIVE,
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
    *NO_PROBES,
)


class Attached:
    """Keeps a worker attached until `end`. `task` raises BatonError where Baton refuses it."""

    address = ""
    """Nothing can connect to the worker."""

    def __init__(
        self,
        name: str,
        baton: str | None,
        services: Sequence[ServiceDescriptor],
        work: WorkStreams,
        steps: Steps,
        force: bool = False,
        namespace: str | None = None,
    ) -> None:
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._name = name
        self._baton = server_address(baton)
        self._work = work
        self._steps = steps
        self._metadata = namespace_metadata(namespace)
        self._opening = work_pb2.WorkerOpening(
            contract=file_set(services), services=[service.full_name for service in services], force=force
        )
        self._channel = grpc.aio.insecure_channel(self._baton, options=_OPTIONS)
        self.task = asyncio.create_task(self._attach())

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """Drains and detaches, within `grace` seconds or as soon as `hurry` is set."""
        self._work.drain()
        self._steps.drain()
        if not await first_of(self._work.drained(), hurry, grace if not self.task.done() else 0.0):
            _log.warning("worker %s cancels the calls that are still in flight", self._name)
        self._work.close()
        # A stream that the worker has ended by itself says farewell.
        await first_of(self._farewell(), hurry, _FAREWELL_SECONDS)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self._channel.close()

    async def _farewell(self) -> None:
        await asyncio.wait((self.task,))

    async def _attach(self) -> None:
        """Opens one stream after the other; returns once the worker has drained."""
        backoff = Backoff(first=0.1, longest=5.0)
        known = ""
        stub: Any = work_pb2_grpc.AttachServiceStub(self._channel)
        while True:
            link = _Link(stub.Attach(metadata=self._metadata), self._taken)
            delay = 0.0
            try:
                await self._work.carry(link, self._opening)
                await link.close()
                problem = "the stream has ended"
            except ProtocolError as error:
                problem = f"{error.code}: {error.message}"
            except grpc.aio.AioRpcError as failed:
                refused = error_of(failed)
                if failed.code() in _REFUSALS:
                    raise refused from None
                problem, delay = str(refused), refused.retry_delay or 0.0
            finally:
                link.cancel()
            if self._work.draining and self._work.sessions.idle:
                return
            if link.taken:
                backoff.reset()
                known = ""
            if problem != known:
                known = problem
                _log.warning("worker %s is not attached to Baton at %s: %s", self._name, self._baton, problem)
            await asyncio.sleep(max(backoff.next_seconds(), delay))

    def _taken(self) -> None:
        _log.info("worker %s is attached to Baton at %s", self._name, self._baton)
        if not self.registered.done():
            self.registered.set_result(None)


class _Link:
    """One call of Attach. It is `taken` once Baton has spoken after its opening: it has taken the worker's."""

    def __init__(self, call: Any, on_taken: Callable[[], None]) -> None:
        self.taken = False
        self._call = call
        self._on_taken = on_taken
        self._frames = 0
        self._reading: asyncio.Future[Any] | None = None

    async def read(self) -> Any:
        """Returns the next frame, or EOF. Errors: AioRpcError."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
            self._reading.add_done_callback(_heed)
        # To cancel a read would cancel the call, which is to be ended in good order.
        frame = await asyncio.shield(self._reading)
        self._reading = None
        if frame is not grpc.aio.EOF:
            self._frames += 1
            if self._frames == 2:
                self.taken = True
                self._on_taken()
        return frame

    async def write(self, frame: Any) -> None:
        """Sends a frame. On a call that is over it waits: whoever reads learns why."""
        try:
            await self._call.write(frame)
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await asyncio.Event().wait()

    async def close(self) -> None:
        """Ends the call in good order, or gives up after a while."""
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._call.done_writing()
                while await self.read() is not grpc.aio.EOF:
                    pass
        except (TimeoutError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
            pass

    def cancel(self) -> None:
        """Ends the call at once, where it is not over."""
        self._call.cancel()


def _heed(reading: asyncio.Future[Any]) -> None:
    """Takes note of how a read ended, where nobody waits for it any more."""
    if not reading.cancelled():
        reading.exception()
