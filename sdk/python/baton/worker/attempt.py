"""The attempt that a handler serves: the steps that it delegates and waits for, its checkpoints, how it is suspended.

An attempt that ends before its handler does has an `ending`: the status that it is answered with, whatever the handler
still returns or raises. The handler is cancelled then, as it is where its time is over: a suspended handler has nothing
to tell apart, since it is called again. Everything here runs in the worker's event loop unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from baton.errors import BatonError
from baton.payloads import pack, unpack
from baton.v1 import run_pb2, step_service_pb2
from baton.worker.steps import Steps

M = TypeVar("M", bound=Message)
T = TypeVar("T")

ENDED = (
    run_pb2.STEP_STATE_SUCCEEDED,
    run_pb2.STEP_STATE_FAILED,
    run_pb2.STEP_STATE_SKIPPED,
    run_pb2.STEP_STATE_CANCELLED,
)
"""States in which a step stays."""

SUSPENDED = "SUSPENDED"
"""Reason that tells Baton to call again when an awaited step has ended."""

_WAIT_LIMIT_SECONDS = 60.0
_AWAITED_LIMIT_BYTES = 4_096
"""Of the keys that a suspended attempt names: they travel in a trailer, which may not be large."""

_PROGRESS_SECONDS = 1.0
_GONE = ("STEP_NOT_RUNNING", "STEP_TOKEN_INVALID")
_NOT_RUNNING = status_pb2.Status(code=code_pb2.CANCELLED, message="the attempt is no longer under way")
_OVER = status_pb2.Status(code=code_pb2.CANCELLED, message="the handler has ended")


class Wait:
    """One wait for the end of a delegated step."""

    __slots__ = ("accepted", "asking", "hurried", "key", "until_time")

    def __init__(self, key: str, until_time: float) -> None:
        self.key = key
        self.until_time = until_time
        self.accepted = False
        """Whether Baton has the step."""
        self.asking: asyncio.Future[step_service_pb2.DelegateResponse] | None = None
        self.hurried = False


class Attempt:
    """One attempt under way. `cancel` cancels its handler; `on_wait` is told when it begins and ceases to wait."""

    def __init__(
        self, steps: Steps, step_token: str, cancel: Callable[[], object], on_wait: Callable[[bool], object]
    ) -> None:
        self.ending: status_pb2.Status | None = None
        self.step_token = step_token
        self._steps = steps
        self._cancel = cancel
        self._on_wait = on_wait
        self._waits: dict[Wait, None] = {}
        self._unaccepted = 0
        self._settled: asyncio.Future[None] | None = None
        """Done once Baton has every step that is waited for, or another wait has begun."""
        self._counts: dict[str, itertools.count[int]] = {}
        self._progress = (0.0, "")
        self._untold = False
        self._telling: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The worker's event loop."""
        return self._steps.loop

    def next_key(self, name: str) -> str:
        """Returns `name` with a number that rises with each key of that name in this attempt, from 1. From any
        thread."""
        return f"{name}_{next(self._counts.setdefault(name, itertools.count(1)))}"

    async def here(self, ask: Callable[[Attempt], Coroutine[Any, Any, T]]) -> T:
        """Asks in the worker's event loop, from whichever loop this runs in."""
        if asyncio.get_running_loop() is self.loop:
            return await ask(self)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(self), self.loop))

    async def delegate(self, request: step_service_pb2.DelegateRequest, suspend_after: float | None) -> run_pb2.RunStep:
        """Adds a step and returns it once it has ended; one that is `detached`, once it is durable.

        The attempt is suspended once each of its waits has lasted its `suspend_after` seconds, within a minute, or the
        worker drains.
        Raises BatonError, and CancelledError where the attempt ends.
        """
        self._check()
        request.step_token = self.step_token
        if request.detached:
            return (await self._guarded(self._steps.delegate(request, 0.0))).step
        seconds = self._steps.suspend_after if suspend_after is None else suspend_after
        wait = Wait(request.key, time.monotonic() + seconds)
        self._enter(wait)
        try:
            while True:
                step = (await self._guarded(self._asked(request, wait))).step
                if step.state in ENDED:
                    return step
                self._accept(wait)
                while self._left_seconds() <= 0:
                    if not self._unaccepted:
                        await self._end(_suspended(each.key for each in self._waits))
                    await self._settling()
        finally:
            self._leave(wait)

    async def checkpoint(self, message: Message) -> None:
        """Leaves a message for the attempt after this one. Raises BatonError, and CancelledError."""
        await self._heartbeat(pack(message))

    async def last_checkpoint(self, message_class: type[M]) -> M | None:
        """Returns what was left last; None where nothing was. Raises BatonError, OutputTypeError, CancelledError."""
        left = (await self._heartbeat(None)).checkpoint
        return unpack(left, message_class, "checkpoint") if left.type_url else None

    def note_progress(self, percent: float, message: str) -> None:
        """Notes how far the attempt is. From any thread."""
        self._progress = (percent, message)

    def tell_progress(self, percent: float, message: str) -> None:
        """Tells Baton how far the attempt is, in the background and once a second at most. From any thread."""
        self.note_progress(percent, message)
        if not self._untold:
            self._untold = True
            self.loop.call_soon_threadsafe(self._begin_telling)

    def hurry(self) -> None:
        """Lets every wait look at once whether it is over."""
        for wait in self._waits:
            if wait.asking is not None:
                wait.hurried = True
                wait.asking.cancel()

    def stop(self, status: status_pb2.Status) -> None:
        """Ends the attempt with a status: cancels its waits and its handler."""
        if self.ending is not None:
            return
        self.ending = status
        for wait in self._waits:
            if wait.asking is not None:
                wait.asking.cancel()
        if self._settled is not None:
            self._settled.cancel()
        self._cancel()

    def close(self) -> None:
        """Notes that the handler has ended; what it left behind no longer waits."""
        self._cancel = _nothing
        self.stop(_OVER)
        if self._telling is not None:
            self._telling.cancel()

    def _check(self) -> None:
        if self.ending is not None:
            raise asyncio.CancelledError

    async def _end(self, status: status_pb2.Status) -> None:
        """Ends the attempt and, by CancelledError, who waits for it."""
        self.stop(status)
        # A task that cancels itself is cancelled where it waits next: it must not be later than here.
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def _guarded(self, asking: Coroutine[Any, Any, T]) -> T:
        try:
            return await asking
        except BatonError as error:
            if error.reason not in _GONE:
                raise
        await self._end(_NOT_RUNNING)
        raise AssertionError

    async def _asked(self, request: step_service_pb2.DelegateRequest, wait: Wait) -> step_service_pb2.DelegateResponse:
        """Asks once for the step, for as long as the attempt may wait; anew where it is hurried."""
        while True:
            self._check()
            seconds = min(max(self._left_seconds(), 0.0), _WAIT_LIMIT_SECONDS)
            wait.asking = asyncio.ensure_future(self._steps.delegate(request, seconds))
            try:
                return await wait.asking
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not wait.hurried or self.ending is not None or (task is not None and task.cancelling()):
                    raise
                wait.hurried = False
            finally:
                wait.asking = None

    def _left_seconds(self) -> float:
        """Returns how long the attempt may still wait; it waits for the sake of the wait that may last longest."""
        if self._steps.draining:
            return -math.inf
        return max((wait.until_time for wait in self._waits), default=-math.inf) - time.monotonic()

    def _accept(self, wait: Wait) -> None:
        if not wait.accepted:
            wait.accepted = True
            self._unaccepted -= 1
            self._settle()

    def _settle(self, *, anew: bool = False) -> None:
        if self._settled is not None and not self._settled.done() and (anew or not self._unaccepted):
            self._settled.set_result(None)

    async def _settling(self) -> None:
        if self._settled is None or self._settled.done():
            self._settled = self.loop.create_future()
        await asyncio.shield(self._settled)
        self._check()

    def _enter(self, wait: Wait) -> None:
        self._waits[wait] = None
        self._unaccepted += 1
        self._settle(anew=True)
        if len(self._waits) == 1:
            self._steps.note_waiting(self, True)
            self._on_wait(True)

    def _leave(self, wait: Wait) -> None:
        del self._waits[wait]
        if not wait.accepted:
            self._unaccepted -= 1
            self._settle()
        if not self._waits:
            self._steps.note_waiting(self, False)
            self._on_wait(False)

    async def _heartbeat(self, checkpoint: any_pb2.Any | None) -> step_service_pb2.HeartbeatResponse:
        self._check()
        percent, message = self._progress
        request = step_service_pb2.HeartbeatRequest(
            step_token=self.step_token, percent=percent, message=message, checkpoint=checkpoint
        )
        return await self._guarded(self._steps.heartbeat(request))

    def _begin_telling(self) -> None:
        if self._telling is None and self.ending is None:
            self._telling = self.loop.create_task(self._tell())
            self._steps.tasks.add(self._telling)
            self._telling.add_done_callback(self._steps.tasks.discard)

    async def _tell(self) -> None:
        try:
            while self._untold:
                self._untold = False
                await self._heartbeat(None)
                await asyncio.sleep(_PROGRESS_SECONDS)
        except BatonError:
            pass  # progress is told again by the next one
        finally:
            self._telling = None


def _suspended(awaited: Iterable[str]) -> status_pb2.Status:
    keys = ""
    for key in sorted(set(awaited)):
        if len(keys) + len(key) >= _AWAITED_LIMIT_BYTES:
            break
        keys += f",{key}" if keys else key
    info = error_details_pb2.ErrorInfo(reason=SUSPENDED, domain="baton", metadata={"awaited": keys})
    packed = any_pb2.Any()
    packed.Pack(info)
    message = "suspended until a step that it delegated has ended"
    return status_pb2.Status(code=code_pb2.ABORTED, message=message, details=[packed])


def _nothing() -> None:
    """Cancels nothing: the handler has ended."""
