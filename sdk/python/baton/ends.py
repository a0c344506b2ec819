"""Ends of many runs over one stream: what a client with many runs under way waits by.

The stream tells every run that was submitted together with others since some batch, whichever replica ends it and over
lost connections: it is taken up again from its cursor. What it cannot tell is asked for run by run.
"""
# ruff: noqa: ASYNC109 - as in connection.py

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from baton.connection import Backoff, Connection, Loss, Lost, closed_error
from baton.errors import BatonError, Unavailable
from baton.status import error_of
from baton.v1 import run_pb2, run_service_pb2

PATIENCE_SECONDS = 300.0
"""How long waits and watches go on while Baton does not answer."""

_IDLE_SECONDS = 10.0
_SILENCE_SECONDS = 45.0
_STREAM_SECONDS = 3_600.0
_KEPT_RUNS = 10_000
_KEPT_BYTES = 32 * 1024 * 1024
_BROKEN = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})


class CannotTell(Exception):
    """The stream does not tell of this run: ask for it."""


async def watch_ends(
    connection: Connection, request: run_service_pb2.WatchRunsRequest, lost: Lost | None = None
) -> AsyncGenerator[run_service_pb2.WatchRunsResponse, None]:
    """Yields what a watch of many runs tells, for ever, over lost streams; moves the cursor of `request`.

    Where the first stream is lost before it told a cursor, the next one starts later. Raises BatonError for what cannot
    be watched, and once nothing was heard for PATIENCE_SECONDS; `lost` is told before.
    """
    backoff = Backoff(longest=5.0)
    heard_time, loss = time.monotonic(), Loss(lost)
    while True:
        wait = 0.0
        served = False
        try:
            async with aclosing(_messages(connection, request)) as messages:
                async for message in messages:
                    heard_time = time.monotonic()
                    loss.heard()
                    request.cursor = message.cursor
                    yield message
                    heard_time = time.monotonic()  # not while the caller was at it
                    if message.progress.reconnect:
                        # A server that drains says only this, and may go on to for as long as it drains.
                        if not served:
                            connection.leave()
                            wait = backoff.next_seconds()
                        break
                    served = True
                    backoff.reset()
                else:
                    wait = backoff.next_seconds()
        except (grpc.aio.AioRpcError, TimeoutError) as failed:
            error = error_of(failed) if isinstance(failed, grpc.aio.AioRpcError) else _silent()
            wait = connection.wait_after(error, backoff)
            if error.code not in _BROKEN or time.monotonic() + wait - heard_time > PATIENCE_SECONDS:
                raise error from None
            loss.tell(error)
        await connection.pause(wait)


async def _messages(
    connection: Connection, request: run_service_pb2.WatchRunsRequest
) -> AsyncGenerator[run_service_pb2.WatchRunsResponse, None]:
    """Opens one stream and yields its messages. Raises TimeoutError where it is silent."""
    with connection.link(long=True) as link:
        call = link.runs.WatchRuns(request, timeout=_STREAM_SECONDS, metadata=connection.metadata(traced=False))
        try:
            messages = aiter(call)
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await anext(messages, None)
                if message is None:
                    return
                yield message
        finally:
            call.cancel()


def _silent() -> BatonError:
    return Unavailable("UNAVAILABLE", "", f"the watch was silent for {_SILENCE_SECONDS:g} s")


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """From when on a run's end is told: the number of its batch, and the cursor that came with it."""

    batch: int
    cursor: str


@dataclass(eq=False, slots=True)
class _Awaited:
    """A run that somebody waits for; `waits` counts how many do."""

    future: asyncio.Future[run_pb2.Run]
    waits: int = 0


class Ends:
    """One stream of ends, open while somebody waits. With `steps` runs come with their steps."""

    def __init__(self, connection: Connection, *, steps: bool) -> None:
        self._connection, self._steps = connection, steps
        self.waiting = 0
        """Waits under way."""
        self._awaited: dict[str, _Awaited] = {}
        self._kept: dict[str, run_pb2.Run | None] = {}  # None for one that was mended: ask for it
        self._kept_bytes = 0
        self._first: Ticket | None = None
        self._opened = False
        self._supported = True
        self._idle_since = 0.0
        self._task: asyncio.Task[None] | None = None

    async def wait(self, run_id: str, ticket: Ticket, timeout: float) -> run_pb2.Run | None:
        """Waits for the end of a run; returns None after `timeout` seconds. Raises CannotTell and BatonError."""
        if run_id in self._kept:
            told = self._kept.pop(run_id)
            if told is None:
                raise CannotTell
            self._kept_bytes -= told.ByteSize()
            return told
        self._take_part(ticket)
        awaited = self._awaited.get(run_id)
        if awaited is None:
            awaited = self._awaited[run_id] = _Awaited(asyncio.get_running_loop().create_future())
        self.waiting += 1
        awaited.waits += 1
        try:
            await asyncio.wait([awaited.future], timeout=timeout)
        except asyncio.CancelledError:
            if awaited.future.done() and awaited.future.exception() is None:
                self._keep(awaited.future.result())  # told in the very turn in which its waiter was cancelled
            raise
        finally:
            self._leave(run_id, awaited)
        return awaited.future.result() if awaited.future.done() else None

    def forget(self, run_ids: Iterable[str] | None) -> None:
        """Takes note that runs, of None any, were mended: what is kept of them may be the end of an earlier round."""
        for run_id in tuple(self._kept) if run_ids is None else run_ids:
            kept = self._kept.get(run_id)
            if kept is not None:
                self._kept_bytes -= kept.ByteSize()
                self._kept[run_id] = None

    async def close(self) -> None:
        """Ends the stream; waits that are under way end with an error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._end(closed_error())

    def _leave(self, run_id: str, awaited: _Awaited) -> None:
        """Ends one wait. An end that is told when all have left is kept for who waits again."""
        self.waiting -= 1
        awaited.waits -= 1
        if not awaited.waits and self._awaited.get(run_id) is awaited:
            del self._awaited[run_id]
        if not self.waiting:
            self._idle_since = time.monotonic()

    def _take_part(self, ticket: Ticket) -> None:
        """Opens the stream, or sees that it reaches back far enough."""
        if not self._supported:
            raise CannotTell
        if self._task is None:
            self._first = ticket
            self._idle_since = time.monotonic()
            self._task = asyncio.create_task(self._run())
        elif not self._opened and self._first is not None:
            self._first = min(self._first, ticket)
        elif self._first is None or ticket.batch < self._first.batch:
            raise CannotTell

    async def _run(self) -> None:
        error: BaseException = CannotTell()
        try:
            await self._follow()
        except asyncio.CancelledError:
            error = closed_error()
            raise
        except BatonError as failed:
            error = failed
            if failed.code == "UNIMPLEMENTED":
                self._supported, error = False, CannotTell()
            elif failed.code not in _BROKEN:
                error = CannotTell()
        except RuntimeError:
            pass  # the client is closed, or of another event loop: who asks for the run is told so
        finally:
            self._task = None
            self._end(error)

    async def _follow(self) -> None:
        """Reads the stream, over lost connections, until nobody has waited for a while. Raises BatonError."""
        assert self._first is not None
        self._opened = True
        request = run_service_pb2.WatchRunsRequest(
            filter=f'client_id = "{self._connection.client_id}"',
            cursor=self._first.cursor,
            view=run_service_pb2.RUN_VIEW_FULL,
            steps=self._steps,
        )
        async with aclosing(watch_ends(self._connection, request)) as messages:
            async for message in messages:
                for run in message.runs:
                    self._tell(run)
                if self._is_idle():
                    return

    def _is_idle(self) -> bool:
        return not self.waiting and time.monotonic() - self._idle_since > _IDLE_SECONDS

    def _tell(self, run: run_pb2.Run) -> None:
        """Hands a run to who waits for it, or keeps it for who will."""
        awaited = self._awaited.pop(run.run_id, None)
        if awaited is None:
            self._keep(run)
        elif not awaited.future.done():
            awaited.future.set_result(run)

    def _keep(self, run: run_pb2.Run) -> None:
        """Keeps a run for who will wait for it; forgets all that is kept where it is too much."""
        before = self._kept.pop(run.run_id, None)
        if before is not None:  # told twice, or ended in another round
            self._kept_bytes -= before.ByteSize()
        self._kept[run.run_id] = run
        self._kept_bytes += run.ByteSize()
        if len(self._kept) > _KEPT_RUNS or self._kept_bytes > _KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = 0
            self._first = Ticket(self._connection.batches_begun + 1, "")

    def _end(self, error: BaseException) -> None:
        futures = [awaited.future for awaited in self._awaited.values()]
        self._awaited.clear()
        self._kept.clear()
        self._kept_bytes = 0
        self._first, self._opened = None, False
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # who waited may have left
