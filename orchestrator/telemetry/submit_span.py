"""The server span of SubmitRun, the parent of the run's span. Made when the call is over, from its two times.

`SpanStarter` is what the gRPC door calls: (method, incoming traceparent) -> (traceparent of the new span, finish).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from orchestrator.domain.failures import Code
from orchestrator.domain.tracing import (
    TraceContext,
    format_traceparent,
    parse_traceparent,
)
from orchestrator.telemetry.sampling import Sampler
from orchestrator.telemetry.span import Attribute, Span, SpanKind

Finish = Callable[[int], None]
"""Ends the span with the number of a gRPC status code. Ending it again does nothing; it never raises."""

SpanStarter = Callable[[str, str], tuple[str, Finish]]

_SERVER_FAULTS = frozenset(
    (Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS)
)
"""Codes by which a server span failed; the others tell of the request."""

_LOGGER = logging.getLogger(__name__)


def wall_clock() -> int:
    """Microseconds since the Unix epoch on this machine's clock."""
    return time.time_ns() // 1_000


def span_starter(sampler: Sampler, emit: Callable[[Span], None], now: Callable[[], int] = wall_clock) -> SpanStarter:
    """Makes the starter. Give `now` the clock that journals are stamped by, so that the run lies inside its parent."""

    def start(method: str, traceparent_in: str) -> tuple[str, Finish]:
        traceparent = sampler.sample(traceparent_in)
        context = parse_traceparent(traceparent)
        if context is None or not context.sampled:
            return traceparent, _finish_nothing
        return traceparent, _SubmitSpan(method.removeprefix("/"), traceparent_in, context, emit, now).finish

    return start


def untraced(method: str, traceparent_in: str) -> tuple[str, Finish]:
    """The starter where nothing is exported: the caller's own traceparent, else that of a trace nobody records."""
    if parse_traceparent(traceparent_in) is not None:
        return traceparent_in, _finish_nothing
    return format_traceparent(TraceContext(os.urandom(16), os.urandom(8), sampled=False)), _finish_nothing


def _finish_nothing(number: int) -> None:
    return None


class _SubmitSpan:
    """What is kept of one call until it is over."""

    __slots__ = (
        "_context",
        "_emit",
        "_finished",
        "_method",
        "_now",
        "_start_time",
        "_traceparent_in",
    )

    def __init__(
        self,
        method: str,
        traceparent_in: str,
        context: TraceContext,
        emit: Callable[[Span], None],
        now: Callable[[], int],
    ) -> None:
        self._method = method
        self._traceparent_in = traceparent_in
        self._context = context
        self._emit = emit
        self._now = now
        self._finished = False
        self._start_time = now()

    def finish(self, code: int) -> None:
        """Emits the span."""
        if self._finished:
            return
        self._finished = True
        try:
            self._emit(self._span(Code(code)))
        except Exception:
            _LOGGER.exception("the span of a call could not be emitted")

    def _span(self, code: Code) -> Span:
        parent = parse_traceparent(self._traceparent_in)
        attributes: dict[str, Attribute] = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "rpc.response.status_code": code.name,
        }
        if code is not Code.OK:
            attributes["error.type"] = code.name
        return Span(
            self._method,
            SpanKind.SERVER,
            self._context.trace_id,
            self._context.span_id,
            None if parent is None else parent.span_id,
            self._start_time,
            max(self._now(), self._start_time),
            attributes,
            error_code=code.name if code in _SERVER_FAULTS else "",
        )
