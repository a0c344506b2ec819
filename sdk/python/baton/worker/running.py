"""Runs the handlers of assignments as those of unary calls are run: async ones as tasks, plain ones in threads.

What an assignment ended with goes to `ended`; frames and streams are not known here.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from google.rpc import code_pb2, status_pb2

from baton.calls import CURRENT
from baton.interceptor import status_of
from baton.tracing import CallSpan, Fails, Tracing
from baton.worker.attempt import Attempt
from baton.worker.context import AsyncContext, PlainContext, WorkContext
from baton.worker.routes import Route, Routes
from baton.worker.session import Held, Result
from baton.worker.steps import Steps

Ended = Callable[[Held, Result], None]
TellProgress = Callable[[Held, float, str], None]
TellWaiting = Callable[[Held, bool], None]

_log = logging.getLogger("baton.worker")

_STOPPED = status_pb2.Status(code=code_pb2.CANCELLED, message="the handler was cancelled")


class Handlers:
    """Starts and cancels the handlers of one worker. `ended` is called once for each that was started, in the loop.

    With `steps` handlers may delegate; `waiting` is told when one begins and ceases to wait for what it delegated.
    """

    def __init__(
        self,
        routes: Routes,
        tracing: Tracing | None,
        threads: ThreadPoolExecutor,
        ended: Ended,
        progress: TellProgress,
        steps: Steps | None = None,
        waiting: TellWaiting | None = None,
    ) -> None:
        self._routes = routes
        self._tracing = tracing
        self._threads = threads
        self._ended = ended
        self._progress = progress
        self._steps = steps
        self._waiting = waiting
        self._serve_attempt = None if steps is None else self._attempt
        self._loop = asyncio.get_running_loop()
        self._running: set[Held] = set()
        """What runs, also where its session has forgotten it: the loop itself keeps no hold of tasks."""
        self._returned: deque[Callable[[], None]] = deque()
        self._returning = False

    def start(self, held: Held) -> None:
        """Starts the handler of an assignment; one that cannot be served ends at once."""
        assignment = held.assignment
        assert assignment is not None
        route = self._routes.find(assignment.method)
        if route is None:
            self._refuse(held, code_pb2.UNIMPLEMENTED, f"this worker does not serve {assignment.method}")
            return
        try:
            request = route.parse(assignment.request)
        except Exception:  # the generated class decides what it raises
            self._refuse(held, code_pb2.INVALID_ARGUMENT, f"the request of {assignment.method} cannot be read")
            return
        if route.plain:
            plain = PlainContext(held, assignment, time.monotonic(), self._progress_of_thread, self._serve_attempt)
            future = self._threads.submit(contextvars.copy_context().run, self._serve_plain, plain, route, request)
            held.handler = (plain, future)
        else:
            context = AsyncContext(held, assignment, time.monotonic(), self._progress, self._serve_attempt)
            held.handler = (context, self._loop.create_task(self._serve(context, route, request)))
        self._running.add(held)

    def cancel(self, held: Held) -> None:
        """Cancels a handler whose outcome was given without it. A plain handler only hears of it."""
        if held.handler is None:
            return  # it ended in the same moment
        context: WorkContext
        running: asyncio.Task[None] | Future[None]
        context, running = held.handler
        context.end(early=True)
        if context.attempt is not None:
            context.attempt.stop(_STOPPED)  # a plain handler hears of it where it waits
        if isinstance(running, asyncio.Task):
            running.cancel()
            if not context.started:
                self._end(context, _STOPPED)  # a task that is cancelled before its first step never runs
        elif running.cancel():
            self._end(context, _STOPPED)

    def _refuse(self, held: Held, code: int, message: str) -> None:
        self._ended(held, status_pb2.Status(code=code, message=message))

    async def _serve(self, context: AsyncContext, route: Route, request: Any) -> None:
        context.started = True
        CURRENT.set(context)
        result: Result = _STOPPED
        try:
            if self._tracing is None:
                result = _result(route, context, await route.handle(request, context))
            else:
                with _span(self._tracing, context) as fails:
                    result = await _traced(route, request, context, fails)
        except asyncio.CancelledError:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, it must not keep the slot
            result = _failed(error, context)
        finally:
            self._end(context, result)

    def _serve_plain(self, context: PlainContext, route: Route, request: Any) -> None:
        context.started = True
        CURRENT.set(context)
        result: Result = _STOPPED
        try:
            with nullcontext(None) if self._tracing is None else _span(self._tracing, context) as fails:
                try:
                    result = _result(route, context, route.handle(request, context))
                except BaseException as error:  # sys.exit() ends no program in a thread, and must not keep the slot
                    result = _failed(error, context)
                if fails is not None and not isinstance(result, bytes) and not _ends_early(context):
                    fails(code_pb2.Code.Name(result.code))
        finally:
            self._return(lambda: self._end(context, result))

    def _end(self, context: WorkContext, result: Result) -> None:
        held = context.held
        held.handler = None
        if context.attempt is not None:
            if context.attempt.ending is not None:
                result = context.attempt.ending
            context.attempt.close()
        self._running.discard(held)
        context.end()
        self._ended(held, result)

    def _attempt(self, context: WorkContext) -> Attempt:
        """Makes what is kept of an attempt. From any thread."""
        assert self._steps is not None
        held = context.held
        return Attempt(
            self._steps,
            context.assignment.step_token,
            lambda: self._cancel_task(held),
            lambda waits: self._waiting(held, waits) if self._waiting is not None else None,
        )

    def _cancel_task(self, held: Held) -> None:
        if held.handler is not None and isinstance(held.handler[1], asyncio.Task):
            held.handler[1].cancel()

    def _progress_of_thread(self, held: Held, percent: float, message: str) -> None:
        self._return(lambda: self._progress(held, percent, message))

    def _return(self, callback: Callable[[], None]) -> None:
        """Calls back in the loop, from another thread: many returns cost one wake-up."""
        self._returned.append(callback)
        if not self._returning:
            self._returning = True
            try:
                self._loop.call_soon_threadsafe(self._take_returned)
            except RuntimeError:
                pass  # the loop is closed: nobody waits for it any more

    def _take_returned(self) -> None:
        self._returning = False  # before the queue is emptied: what comes from now on wakes the loop again
        while self._returned:
            self._returned.popleft()()


def _span(tracing: Tracing, context: WorkContext) -> CallSpan:
    """Starts the span of a call, without the rest of what `baton.current()` tells: few handlers ask for it."""
    told = context.assignment
    return tracing.span(told.method, told.run_id, told.step, told.attempt, told.traceparent)


async def _traced(route: Route, request: Any, context: AsyncContext, fails: Fails) -> Result:
    """Serves inside a span, which failures mark."""
    try:
        result = _result(route, context, await route.handle(request, context))
    except Exception as error:
        result = _failed(error, context)
    if not isinstance(result, bytes) and not _ends_early(context):
        fails(code_pb2.Code.Name(result.code))
    return result


def _ends_early(context: WorkContext) -> bool:
    """Tells whether the attempt ends otherwise than by what the handler returns or raises."""
    return context.attempt is not None and context.attempt.ending is not None


def _result(route: Route, context: WorkContext, response: Any) -> Result:
    if context.touched:
        status = context.status()
        if status is not None:
            return status
    return route.serialize(response)


def _failed(error: BaseException, context: WorkContext) -> status_pb2.Status:
    if _ends_early(context):
        return _STOPPED  # what a handler raises on its way out says nothing
    try:
        status = status_of(error, context.call) or context.status()
    except Exception as problem:  # such as a reason or a text that no status can hold, nor perhaps the log
        _log.error("a failure of %s cannot be told as it is (%a): %a", context.assignment.method, problem, error)
        text = "the handler failed with what cannot be told as a status; the worker's log has it"
        return status_pb2.Status(code=code_pb2.UNKNOWN, message=text)
    return status if status is not None else status_pb2.Status(code=code_pb2.UNKNOWN)
