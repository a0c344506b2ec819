"""Hands finished spans to an OpenTelemetry exporter. The only module that imports OpenTelemetry; setup.py imports it
only where there is something to export. The global tracer provider is never touched."""

from __future__ import annotations

import os
import threading

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from orchestrator.telemetry import spans
from orchestrator.telemetry.settings import ExporterName, TracingSettings

QUEUE_LIMIT = 16_384
"""Spans that wait for export unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise; beyond it the oldest are dropped."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {kind: SpanKind[kind.value] for kind in spans.SpanKind}
_UNSET = Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("baton")


class SpanExport:
    """Queues spans for export by threads of its own; emitting never waits."""

    def __init__(self, settings: TracingSettings) -> None:
        named = {"service.name": settings.service_name} if settings.service_name else {}
        # No service.instance.id: the same span has to be the same bytes whichever replica exports it.
        resource = Resource.create(named)
        kept = {key: value for key, value in resource.attributes.items() if key != "service.instance.id"}
        self._resource = Resource(kept, resource.schema_url)
        self._exporters = [_exporter(name, settings) for name in settings.exporters]
        limit = None if os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else QUEUE_LIMIT
        self._processors = [
            BatchSpanProcessor(exporter, max_queue_size=limit, meter_provider=NoOpMeterProvider())
            for exporter in self._exporters
        ]

    def emit(self, span: spans.Span) -> None:
        """Queues a span whose trace is sampled."""
        readable = self._readable(span)
        for processor in self._processors:
            processor.on_end(readable)

    def close(self, timeout_seconds: float) -> bool:
        """Exports what is queued and stops, waiting at most so long; tells whether all was done in that time.

        Blocks: call it from a thread where a loop is running.
        """
        closing = threading.Thread(target=self._shut_down, name="baton-span-export-close", daemon=True)
        closing.start()
        closing.join(timeout_seconds)
        if not closing.is_alive():
            return True
        for exporter in self._exporters:
            # Ends the retries of an exporter whose collector does not answer.
            threading.Thread(target=exporter.shutdown, name="baton-span-export-abandon", daemon=True).start()
        return False

    def _shut_down(self) -> None:
        for processor in self._processors:
            processor.shutdown()  # type: ignore[no-untyped-call]  # The SDK leaves it untyped.

    def _readable(self, span: spans.Span) -> ReadableSpan:
        trace_id = int.from_bytes(span.trace_id, "big")
        parent = None
        if span.parent_span_id is not None:
            parent = _context(trace_id, span.parent_span_id)
        return ReadableSpan(
            name=span.name,
            context=_context(trace_id, span.span_id),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(trace_id, link)) for link in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error_code) if span.error_code else _UNSET,
            start_time=span.start_time * 1_000,
            end_time=span.end_time * 1_000,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: int, span_id: bytes) -> SpanContext:
    return SpanContext(trace_id, int.from_bytes(span_id, "big"), is_remote=False, trace_flags=_SAMPLED)


def _exporter(name: ExporterName, settings: TracingSettings) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter,
        )

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpSpanExporter,
    )

    return HttpSpanExporter()
