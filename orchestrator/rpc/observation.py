"""The layers that tell telemetry of calls: what was answered, and the span that a submitted run hangs from.

Telemetry hands in plain callables. Nothing they raise may fail a call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import grpc

from orchestrator.domain.caller import Caller
from orchestrator.domain.tracing import parse_traceparent
from orchestrator.rpc.errors import code_of, number_of
from orchestrator.rpc.layers import Call, Leave

CallObserver = Callable[[str, int, int, int, Caller | None], None]
"""Told of each unary call: method (`/package.Service/Method`), start and end in nanoseconds since the Unix epoch, the
number of the gRPC code, and who called (None where that was not established)."""

FinishSpan = Callable[[int], None]
"""Ends a span with the number of the gRPC code."""

SpanStarter = Callable[[str, str], tuple[str, FinishSpan]]
"""Starts the server span of a call from its method and the caller's traceparent (may be empty); answers the traceparent
that names the new span, and what ends it."""

SPAN_METHODS = frozenset(
    {
        "/baton.v1.RunService/SubmitRun",
        "/baton.v1.RunService/ForkRun",
        "/baton.v1.ScheduleService/TriggerSchedule",
        "/baton.v1.ScheduleService/BackfillSchedule",
    }
)
"""Methods whose span must be known before they are served, because what they start is its child."""

_log = logging.getLogger(__name__)


class ObservationLayer:
    """Tells the observer of each unary call."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer

    def enter(self, call: Call) -> Leave | None:
        """Times the call."""
        if not call.unary:
            return None
        start_ns, begun_ns = time.time_ns(), time.perf_counter_ns()

        def leave(error: BaseException | None) -> None:
            end_ns = start_ns + time.perf_counter_ns() - begun_ns
            try:
                self._observer(call.method, start_ns, end_ns, _code(call, error), call.caller)
            except Exception:  # telemetry fails no call
                _log.exception("call observer failed", extra={"method": call.method})

        return leave


class SpanLayer:
    """Makes what SPAN_METHODS start a child of their own server span."""

    def __init__(self, start_span: SpanStarter) -> None:
        self._start_span = start_span

    def enter(self, call: Call) -> Leave | None:
        """Starts the span, puts its traceparent in place of the caller's, and ends it with the call."""
        finish = self._start(call) if call.method in SPAN_METHODS else None
        if finish is None:
            return None

        def leave(error: BaseException | None) -> None:
            try:
                finish(_code(call, error))
            except Exception:  # telemetry fails no call
                _log.exception("span could not be ended", extra={"method": call.method})

        return leave

    def _start(self, call: Call) -> FinishSpan | None:
        caller = call.caller
        if caller is None:
            return None
        try:
            own = getattr(call.request, "traceparent", "")
            given = own if parse_traceparent(own) is not None else caller.traceparent
            traceparent, finish = self._start_span(call.method, given)
        except Exception:  # telemetry fails no call
            _log.exception("span could not be started", extra={"method": call.method})
            return None
        call.set_caller(Caller(caller.namespace, caller.principal, caller.channel, traceparent))
        return finish


def _code(call: Call, error: BaseException | None) -> int:
    """Returns the code that ends the call; a handler that ended it itself has set it in the context."""
    if error is None:
        return 0
    if isinstance(error, grpc.aio.AbortError):
        code = call.context.code()
        return number_of(code) if isinstance(code, grpc.StatusCode) else int(code)
    return code_of(error)
