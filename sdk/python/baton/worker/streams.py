"""Carries frames between gRPC and a worker's sessions: a reader and a writer for each stream, one timer for all."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from baton.worker.running import Ended, TellProgress
from baton.worker.session import Held, Limits, ProtocolError, Result, Stream
from baton.worker.sessions import Sessions
from baton.worker.states import StreamState
from baton.worker.v1 import work_pb2

SERVICE_NAME = work_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

_OPENING_SECONDS = 10.0
"""How long a new stream waits for Baton's opening."""


class Link(Protocol):
    """Both ends of grpc.aio's streams read and write like this."""

    async def read(self) -> Any:
        """Returns the next message, grpc.aio.EOF after the last."""

    async def write(self, frame: Any, /) -> None:
        """Sends a message; waits while the other side does not keep up."""


class Runs(Protocol):
    """What becomes of assignments: `running.Handlers`, or whoever gives them on. It is told where to say how they end
    and how far they are; every one that was started ends once, also after it was cancelled."""

    def start(self, held: Held) -> None:
        """Starts an assignment."""

    def cancel(self, held: Held) -> None:
        """Cancels an assignment whose outcome was given without it."""


class WorkStreams:
    """Serves `baton.worker.v1.WorkerService`, and carries the streams that an attached worker opens."""

    def __init__(
        self, worker: str, instance_id: str, limits: Limits, runs: Callable[[Ended, TellProgress], Runs]
    ) -> None:
        self.sessions = Sessions(worker, instance_id, limits)
        self._runs = runs(self._ended, self._progress)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_time = math.inf
        self._starting = False
        self._changed = asyncio.Event()

    async def Work(self, requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """See WorkerService."""
        try:
            await self.carry(context)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)

    async def carry(
        self, link: Link, answer: work_pb2.WorkerOpening | None = None, on_open: Callable[[], None] | None = None
    ) -> None:
        """Carries one stream from its opening to its end, whoever ends it.

        `answer` is what the worker's opening says beside its credit and what it holds; `on_open` is called once the
        stream is counted. Errors: ProtocolError; what the link raises.
        """
        try:
            async with asyncio.timeout(_OPENING_SECONDS):
                first = await link.read()
        except TimeoutError:
            raise ProtocolError("DEADLINE_EXCEEDED", "no opening came") from None
        if first is grpc.aio.EOF:
            raise ProtocolError("INVALID_ARGUMENT", "the stream ended before its opening")
        woken = asyncio.Event()
        both: list[asyncio.Future[None]] = []

        def wake() -> None:
            woken.set()
            if stream.state is StreamState.ENDED:
                for each in both:  # they may wait for the other side, which may never answer
                    each.cancel()

        stream = self.sessions.open(first, time.monotonic(), answer)
        stream.wake = wake
        if on_open is not None:
            on_open()
        both += (
            asyncio.ensure_future(self._read(link, stream)),
            asyncio.ensure_future(self._write(link, stream, woken)),
        )
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.sessions.lose(stream, time.monotonic())
            self._arm()
            self._changed.set()
            await asyncio.gather(*both, return_exceptions=True)
        if stream.error is not None:
            raise stream.error
        for each in done:
            if not each.cancelled():
                each.result()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self.sessions.draining

    def resize(self, slots: int) -> None:
        """Lets other so many handlers run at a time, and starts those that have waited for it."""
        self.sessions.resize(slots)
        self._start()

    def wait(self, held: Held, waits: bool) -> None:
        """Notes whether a handler waits for steps that it delegated, and starts what can run in its place."""
        self.sessions.wait(held, waits)
        if waits:
            self._start()

    def drop(self, held: Held) -> None:
        """Forgets an assignment that will have no outcome, and ends the stream of whoever gave it, who is told so by
        the next one."""
        self.sessions.drop(held, time.monotonic())
        self._follow([])

    def drain(self) -> None:
        """Says on every stream that the worker takes no more."""
        self.sessions.drain()

    async def drained(self) -> None:
        """Waits, after `drain`, until all outcomes are acknowledged and the streams have ended."""
        while not self.sessions.idle or self.sessions.streams:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Cancels what still runs, and forgets every session."""
        for stream in self.sessions.streams:
            self.sessions.lose(stream, time.monotonic())
        self._follow(self.sessions.forget_all())
        if self._timer is not None:
            self._timer.cancel()
        self._timer_time = -math.inf

    async def _read(self, link: Link, stream: Stream) -> None:
        while (frame := await link.read()) is not grpc.aio.EOF:
            try:
                cancelled = self.sessions.receive(stream, frame, time.monotonic())
            except ProtocolError as error:
                stream.end(error)
                return
            self._follow(cancelled)

    async def _write(self, link: Link, stream: Stream, woken: asyncio.Event) -> None:
        while True:
            woken.clear()
            frame = stream.next_frame(time.monotonic())
            if frame is not None:
                await link.write(frame)
            elif stream.state is StreamState.ENDED:
                return
            else:
                self._arm()
                await woken.wait()

    def _follow(self, cancelled: list[Held]) -> None:
        """Does what the sessions ask for: cancels and starts handlers, and sets the timer."""
        for held in cancelled:
            self._runs.cancel(held)
        self._start()
        self._arm()
        self._changed.set()

    def _start(self) -> None:
        self._starting = False
        while started := self.sessions.take():
            for held in started:
                self._runs.start(held)

    def _ended(self, held: Held, result: Result) -> None:
        if self.sessions.finish(held, result) and not self._starting:
            self._starting = True
            self._loop.call_soon(self._start)
        self._changed.set()

    def _progress(self, held: Held, percent: float, message: str) -> None:
        self.sessions.progress(held, percent, message)
        self._arm()

    def _arm(self) -> None:
        """Sets the timer where something is due before it."""
        due_time = self.sessions.next_time
        if due_time < self._timer_time:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_time = due_time
            self._timer = self._loop.call_later(max(0.0, due_time - time.monotonic()), self._on_time)

    def _on_time(self) -> None:
        self._timer, self._timer_time = None, math.inf
        self._follow(self.sessions.tick(time.monotonic()))
