"""Spans of a worker's calls, children of the attempts that Baton sends; nothing where OpenTelemetry is not set up.

Only this module imports the OpenTelemetry SDK, and only when the standard OTEL_* variables ask for an exporter.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from baton.calls import Call

_log = logging.getLogger("baton.worker")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


class Fails(Protocol):
    """Marks a span as failed with a status code."""

    def __call__(self, code: str) -> None:
        """Marks the span."""


class Tracing:
    """Opens a server span for each call, by the tracer of the program or by one made from the environment."""

    def __init__(self, provider: TracerProvider, close: Callable[[], None]) -> None:
        self._tracer, self._sampler = provider.get_tracer("baton"), provider.sampler
        self.close = close
        """Sends what is left; blocks while the exporter tries."""

    @contextmanager
    def span(self, call: Call) -> Iterator[Fails]:
        """Runs a block in the span of a call. Where that is not sampled the caller's span stands in its place."""
        from opentelemetry import context, trace

        parent = _parent(call.traceparent)
        attributes: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": call.method}
        if call.run:
            attributes |= {"baton.run.id": call.run, "baton.step.id": call.step, "baton.step.attempt": call.attempt}
        if parent is not None and not self._records(call, parent, attributes):
            token = context.attach(parent)
            try:
                yield _tell_nobody
            finally:
                context.detach(token)
            return
        with self._tracer.start_as_current_span(
            call.method,
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def fails(code: str) -> None:
                span.set_attribute("error.type", code)
                span.set_status(trace.StatusCode.ERROR)

            yield fails

    def _records(self, call: Call, parent: Context, attributes: dict[str, str | int]) -> bool:
        """Asks the sampler about a call whose caller's span is not sampled, which costs a fifth of a span; the tracer
        asks about others."""
        from opentelemetry import trace
        from opentelemetry.sdk.trace.sampling import Decision

        context = trace.get_current_span(parent).get_span_context()
        if context.trace_flags.sampled:
            return True
        told = self._sampler.should_sample(parent, context.trace_id, call.method, trace.SpanKind.SERVER, attributes)
        return told.decision is not Decision.DROP


def _parent(traceparent: str) -> Context | None:
    """Reads a W3C traceparent; None where there is none, or it cannot be read."""
    from opentelemetry import trace

    try:
        version, trace_id, span_id, flags = traceparent.split("-")
        parent = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent.is_valid else None


def _tell_nobody(code: str) -> None:
    """Marks no span."""


def tracing_for(worker: str) -> Tracing | None:
    """Returns the tracing of a worker: the program's own if it set one up, one from the environment, or None."""
    if "opentelemetry.sdk.trace" in sys.modules:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            return Tracing(provider, lambda: None)
    if not _wanted():
        return None
    try:
        made = _provider(worker)
    except ImportError:
        _log.warning("OTEL_* asks for traces, but the OpenTelemetry SDK is not installed: pip install 'baton[tracing]'")
        return None
    return Tracing(made, made.shutdown)


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
