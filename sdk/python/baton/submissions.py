"""Submissions under load go together: what arrives while one batch is under way forms the next.

A client with few submissions under way sends each by itself, at once, and waits for the end in the same call.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from baton.connection import Connection, Tries, closed_error, span, trace_metadata
from baton.ends import Ends, Ticket
from baton.errors import BatonError
from baton.status import error_of_status
from baton.v1 import run_service_pb2

_LOADED = 8
"""Submissions and waits under way from which on submissions go together."""

_BATCH_RUNS = 256
_BATCH_BYTES = 3 * 1024 * 1024

Request = run_service_pb2.SubmitRunRequest


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a submission, and whether it went with others; then nothing was waited for. `ticket` is that by
    which its end is told; None where it went alone, and for a run that was there already."""

    answer: run_service_pb2.SubmitRunResponse
    ticket: Ticket | None
    together: bool


class _Alone(Exception):
    """Baton takes no batches, or not this one."""


class _Entry:
    """One submission that goes with others."""

    __slots__ = ("future", "request", "size")

    def __init__(self, request: Request) -> None:
        self.request, self.size = request, request.ByteSize()
        self.future: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Submissions:
    """The submissions of one client."""

    def __init__(self, connection: Connection, ends: tuple[Ends, ...]) -> None:
        self._connection, self._ends = connection, ends
        self._under_way = 0
        self._pending: deque[_Entry] = deque()
        self._scheduled = False
        self._supported = True
        self._task: asyncio.Task[None] | None = None

    async def submit(self, request: Request, wait_seconds: float, retry_seconds: float) -> Submitted:
        """Submits a run, again while Baton is away, for `retry_seconds` at most. One that goes alone also waits for its
        end. Raises BatonError."""
        retry_seconds = min(retry_seconds, self._connection.retry_timeout)
        with self._counted():
            tries = Tries(self._connection, retry_seconds)
            while self._supported and self._is_loaded():
                try:
                    return await self._together(request)
                except _Alone:
                    break
                except BatonError as failed:
                    error = failed
                await tries.pause(error)
            return await self._alone(request, wait_seconds, retry_seconds)

    async def close(self) -> None:
        """Ends what is under way with an error."""
        while self._pending:  # first, or they would be sent when what is under way has ended
            self._pending.popleft().fail(closed_error())
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _is_loaded(self) -> bool:
        return self._under_way + sum(ends.waiting for ends in self._ends) > _LOADED

    async def _alone(self, request: Request, wait_seconds: float, retry_seconds: float) -> Submitted:
        # Not for servers that know no batches: they would take these for a part of what the run is.
        request.ClearField("client_id")
        request.ClearField("traceparent")
        if wait_seconds > 0:
            request.wait_timeout.CopyFrom(span(wait_seconds))
        timeout = self._connection.timeout + wait_seconds
        answer = await self._connection.call(
            lambda link: link.runs.SubmitRun,
            request,
            timeout=timeout,
            retry_timeout=retry_seconds,
            long=wait_seconds > 0,
        )
        return Submitted(answer, None, together=False)

    async def _together(self, request: Request) -> Submitted:
        request.client_id = self._connection.client_id
        request.traceparent = dict(trace_metadata()).get("traceparent", "")
        entry = _Entry(request)
        if entry.size > _BATCH_BYTES:
            raise _Alone
        self._pending.append(entry)
        self._schedule()
        return await entry.future

    def _schedule(self) -> None:
        if self._pending and self._task is None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what has come together in this turn of the loop."""
        self._scheduled = False
        batch: list[_Entry] = []
        size = 0
        while self._pending and len(batch) < _BATCH_RUNS and size + self._pending[0].size <= _BATCH_BYTES:
            entry = self._pending.popleft()
            if not entry.future.done():  # else its submitter has left
                batch.append(entry)
                size += entry.size
        if batch:
            self._task = asyncio.create_task(self._send(batch))

    async def _send(self, batch: list[_Entry]) -> None:
        self._connection.batches_begun += 1
        number = self._connection.batches_begun
        request = run_service_pb2.SubmitRunsRequest(requests=[entry.request for entry in batch])
        try:
            answer = await self._connection.call(
                lambda link: link.runs.SubmitRuns, request, retry_timeout=0.0, traced=False
            )
        except BatonError as error:
            if error.code == "UNIMPLEMENTED":
                self._supported = False
            for entry in batch:
                entry.fail(copy.copy(error) if self._supported else _Alone())
        except RuntimeError as error:  # the client is closed, or of another event loop
            for entry in batch:
                entry.fail(error)
        except BaseException:
            for entry in batch:
                entry.fail(closed_error())
            raise
        else:
            ticket = Ticket(number, answer.watch_cursor)
            for place, (entry, result) in enumerate(zip(batch, answer.results, strict=False)):
                if result.HasField("refused"):
                    entry.fail(error_of_status(result.refused, f"requests[{place}]"))
                elif not entry.future.done():
                    existing = result.accepted.existing
                    entry.future.set_result(Submitted(result.accepted, None if existing else ticket, together=True))
        finally:
            for entry in batch:
                if not entry.future.done():
                    # Of an answer that tells of fewer, or cannot be read: nobody knows what became of these.
                    text = "the answer does not tell what became of the run; submit it again with the same request_id"
                    entry.fail(BatonError("INTERNAL", "", text))
            self._task = None
            self._schedule()
