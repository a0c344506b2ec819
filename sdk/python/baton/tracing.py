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
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

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

    def __init__(self, tracer: Tracer, close: Callable[[], None]) -> None:
        self._tracer = tracer
        self.close = close
        """Sends what is left; blocks while the exporter tries."""

    @contextmanager
    def span(self, call: Call) -> Iterator[Fails]:
        """Runs a block in the span of a call."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = (
            TraceContextTextMapPropagator().extract({"traceparent": call.traceparent}) if call.traceparent else None
        )
        attributes: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": call.method}
        if call.run:
            attributes |= {"baton.run.id": call.run, "baton.step.id": call.step, "baton.step.attempt": call.attempt}
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
