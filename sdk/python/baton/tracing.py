"""Spans of a worker's calls, children of the attempts that Baton sends; nothing where OpenTelemetry is not set up.

Only this module imports the OpenTelemetry SDK, and only when the standard OTEL_* variables ask for an exporter.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_log = logging.getLogger("baton.worker")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}

_PARENTS = 256
"""Callers' spans that are remembered as they were read: the calls of a run that is not sampled have the same."""

Fails = Callable[[str], None]
"""Marks the span of a call as failed with a status code."""


class Tracing:
    """Opens a server span for each call, by the tracer of the program or by one made from the environment."""

    def __init__(self, tracer: Tracer, close: Callable[[], None]) -> None:
        # Here and once: not everybody has it, and an import costs each call, though it finds what is there.
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()

        @functools.lru_cache(_PARENTS)
        def parent_of(traceparent: str) -> Context:
            return propagator.extract({"traceparent": traceparent})

        self._tracer, self._parent_of = tracer, parent_of
        self._server, self._error = trace.SpanKind.SERVER, trace.StatusCode.ERROR
        self._attach, self._detach, self._with_span = context.attach, context.detach, trace.set_span_in_context
        self.close = close
        """Sends what is left; blocks while the exporter tries."""

    def span(self, method: str, run: str, step: str, attempt: int, traceparent: str) -> CallSpan:
        """Starts the span of a call: a context manager for the block that serves it. Without a run it is a call of
        somebody else's."""
        attributes: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": method}
        if run:
            attributes["baton.run.id"], attributes["baton.step.id"] = run, step
            attributes["baton.step.attempt"] = attempt
        parent = self._parent_of(traceparent) if traceparent else None
        return CallSpan(self, self._tracer.start_span(method, parent, self._server, attributes))

    def begin(self, span: Span) -> Token[Context]:
        """Makes a span the current one; returns what `end` takes."""
        return self._attach(self._with_span(span))

    def end(self, span: Span, token: Token[Context]) -> None:
        """Ends a span that is the current one."""
        self._detach(token)
        span.end()

    def fail(self, span: Span, code: str) -> None:
        """Marks a span as failed with a status code."""
        span.set_attribute("error.type", code)
        span.set_status(self._error)


class CallSpan:
    """The span of a call that is served within the block: the current one there, and ended after it.

    Not a generator, which costs a call that is not sampled as much as the rest of this.
    """

    __slots__ = ("_span", "_token", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing, self._span = tracing, span

    def __enter__(self) -> Fails:
        self._token = self._tracing.begin(self._span)
        return self._fails

    def __exit__(self, *_: object) -> None:
        self._tracing.end(self._span, self._token)

    def _fails(self, code: str) -> None:
        self._tracing.fail(self._span, code)


def tracing_for(worker: str) -> Tracing | None:
    """Returns the tracing of a worker: the program's own if it set one up, one from the environment, or None."""
    if "opentelemetry.sdk.trace" in sys.modules:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            return Tracing(provider.get_tracer("baton"), lambda: None)
    if not _wanted():
        return None
    try:
        made = _provider(worker)
    except ImportError:
        _log.warning("OTEL_* asks for traces, but the OpenTelemetry SDK is not installed: pip install 'baton[tracing]'")
        return None
    return Tracing(made.get_tracer("baton"), made.shutdown)


def _wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none")
    return exporter.strip().lower() == "otlp"


def _provider(worker: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    exporter = importlib.import_module(_EXPORTERS.get(protocol or "grpc", _EXPORTERS["grpc"]))
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": worker}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter()))
    return provider
