"""What happens around each handler of a worker: the current call, its span, and failures without exception text."""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from baton.calls import CURRENT, Call, KnownCall, call_of
from baton.errors import Failure, StepFailed
from baton.tracing import Fails, Tracing
from baton.worker.attempt import Attempt
from baton.worker.steps import Steps

_log = logging.getLogger("baton.worker")
_MESSAGE_LIMIT = 2_048


class InFlight:
    """Counts the calls that are being served, and tells when there are none."""

    def __init__(self) -> None:
        self._count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> None:
        """One call more."""
        self._count += 1
        self.idle.clear()

    def leave(self) -> None:
        """One call less."""
        self._count -= 1
        if not self._count:
            self.idle.set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the unary handlers of a worker's own services; others, such as health, pass as they are."""

    def __init__(self, services: Collection[str], tracing: Tracing | None, in_flight: InFlight, steps: Steps) -> None:
        self._services = frozenset(services)
        self._tracing = tracing
        self._in_flight = in_flight
        self._steps = steps

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of a call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        if handler is None or handler.unary_unary is None or method.partition("/")[0] not in self._services:
            return handler
        # A plain function stays one, so that grpc.aio runs it in its thread pool with the context made for that.
        wrap = self._wrap_async if inspect.iscoroutinefunction(handler.unary_unary) else self._wrap_plain
        return grpc.unary_unary_rpc_method_handler(
            wrap(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _wrap_async(self, method: str, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        async def serve(request: Any, context: Any) -> Any:
            self._in_flight.enter()
            try:
                answer: Any = None
                status: status_pb2.Status | None = None
                with self._around(method, context, asyncio.current_task()) as (call, fails):
                    try:
                        answer = await handle(request, context)
                    except asyncio.CancelledError:
                        if _ending(call) is None:
                            raise
                    except Exception as error:
                        if _ending(call) is None:
                            status = _status_in_span(error, call, context, fails)
                    status = _ending(call) or status
                if status is not None:
                    _uncancel(call)
                    await context.abort_with_status(rpc_status.to_status(status))
                return answer
            finally:
                self._in_flight.leave()

        return serve

    def _wrap_plain(self, method: str, handle: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        loop = asyncio.get_running_loop()

        def serve(request: Any, context: Any) -> Any:
            loop.call_soon_threadsafe(self._in_flight.enter)
            try:
                answer: Any = None
                status: status_pb2.Status | None = None
                with self._around(method, context, None) as (call, fails):
                    try:
                        answer = handle(request, context)
                    except asyncio.CancelledError:
                        if _ending(call) is None:
                            raise
                    except Exception as error:
                        if _ending(call) is None:
                            status = _status_in_span(error, call, context, fails)
                    status = _ending(call) or status
                return answer if status is None else _abort_plain(context, status)
            finally:
                loop.call_soon_threadsafe(self._in_flight.leave)

        return serve

    @contextmanager
    def _around(self, method: str, context: Any, task: asyncio.Task[Any] | None) -> Iterator[tuple[Call, Fails]]:
        """Runs a block as the handler of a call; `task` runs an async one."""
        call = call_of(method, context.invocation_metadata() or (), context.time_remaining())
        if call.step_token:
            attempt = Attempt(self._steps, call.step_token, _no_effect if task is None else task.cancel, _no_effect)
            call = replace(call, served=attempt, tell_progress=attempt.tell_progress)
        token = CURRENT.set(KnownCall(call))
        try:
            if self._tracing is None:
                yield call, _nothing
            else:
                with self._tracing.span(call.method, call.run, call.step, call.attempt, call.traceparent) as fails:
                    yield call, fails
        finally:
            CURRENT.reset(token)
            if call.served is not None:
                self._close(call.served, task)

    def _close(self, attempt: Attempt, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            attempt.close()
        else:
            self._steps.loop.call_soon_threadsafe(attempt.close)


def status_of(error: BaseException, call: Call) -> status_pb2.Status | None:
    """Returns the status to answer with for what a handler raised, None where it has aborted with its own.

    An exception that is no Failure goes to the log, under an id that the answer has in place of its text.
    """
    if isinstance(error, grpc.aio.AbortError):
        return None
    if isinstance(error, StepFailed):
        failed = error.failure
        return status_pb2.Status(code=failed.code, message=failed.message, details=_step_details(error))
    if isinstance(error, Failure):
        return _failure_status(error, call.method.partition("/")[0])
    error_id = uuid.uuid4().hex[:12]
    _log.error(
        "%s failed with an exception [error_id=%s run=%s step=%s attempt=%d delivery=%d idempotency_key=%s]",
        call.method,
        error_id,
        call.run,
        call.step,
        call.attempt,
        call.delivery,
        call.idempotency_key,
        exc_info=error,
    )
    message = f"the handler failed with an exception; the worker's log has it under error_id={error_id}"
    return status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message)


def _failure_status(failure: Failure, service: str) -> status_pb2.Status:
    code = failure.code if isinstance(failure.code, grpc.StatusCode) else grpc.StatusCode[str(failure.code)]
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=service, metadata=dict(failure.metadata))
    packed = any_pb2.Any()
    packed.Pack(info)
    return status_pb2.Status(code=code.value[0], message=failure.message[:_MESSAGE_LIMIT], details=[packed])


def _step_details(failed: StepFailed) -> list[any_pb2.Any]:
    """Returns the details of a delegated step's failure, with its reason where they do not tell it."""
    details = list(failed.details)
    info = error_details_pb2.ErrorInfo()
    if failed.reason and not any(each.Unpack(info) for each in details):
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.ErrorInfo(reason=failed.reason, domain="baton"))
    return details


def _ending(call: Call) -> status_pb2.Status | None:
    """Returns what the attempt is answered with whatever its handler returns or raises, None in most cases."""
    return call.served.ending if call.served is not None else None


def _status_in_span(error: Exception, call: Call, context: Any, fails: Fails) -> status_pb2.Status:
    """Returns the status for what a handler raised, and marks its span; raises what has aborted by itself."""
    status = status_of(error, call)
    fails(_code_name(status, context))
    if status is None:
        raise error
    return status


def _uncancel(call: Call) -> None:
    """Takes back the cancellation by which the attempt was ended; raises CancelledError where there was another."""
    task = asyncio.current_task()
    if call.served is not None and task is not None and task.cancelling() and task.uncancel():
        raise asyncio.CancelledError


def _abort_plain(context: Any, status: status_pb2.Status) -> None:
    """Aborts in a worker thread, whose context takes code, details and trailers only one by one."""
    made = rpc_status.to_status(status)
    context.set_trailing_metadata(made.trailing_metadata)
    context.abort(made.code, made.details)


def _code_name(status: status_pb2.Status | None, context: Any) -> str:
    if status is not None:
        return next(code.name for code in grpc.StatusCode if code.value[0] == status.code)
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


def _nothing(code: str) -> None:
    """Marks nothing: there is no span."""


def _no_effect(*_: object) -> None:
    """Does nothing: a thread cannot be cancelled, and unary calls have no slots."""
