"""Hands finished spans to an OpenTelemetry exporter. The only module that imports OpenTelemetry; setup.py imports it
only where there is something to export. The global tracer provider is never touched."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from orchestrator.telemetry import span as spans
from orchestrator.telemetry.encoding import delimited, encode_span, joined
from orchestrator.telemetry.queue import SpanSink
from orchestrator.telemetry.settings import Protocol, TracingSettings

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {kind: SpanKind[kind.value] for kind in spans.SpanKind}
_UNSET = Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("baton")


def span_sinks(settings: TracingSettings) -> list[SpanSink]:
    """Makes what the settings name. Endpoints, headers, certificates and timeouts are read by OpenTelemetry itself."""
    resource = _resource(settings)
    return [
        ConsoleSink(resource) if name == "console" else OtlpSink(resource, settings.protocol)
        for name in settings.exporters
    ]


class OtlpSink:
    """Encodes spans as they come, and sends them with OpenTelemetry's exporter. Implements queue.SpanSink."""

    def __init__(self, resource: Resource, protocol: Protocol) -> None:
        self._resource_spans = _frame(resource)
        self._encoded: list[bytes] = []
        self._exporter = _otlp_exporter(protocol)

    def add(self, span: spans.Span) -> None:
        """Encodes it."""
        self._encoded.append(encode_span(span))

    def flush(self) -> None:
        """Sends what was added; OpenTelemetry's exporter repeats what may succeed, and logs what did not."""
        resource, scope = self._resource_spans
        encoded, self._encoded = self._encoded, []
        body = delimited(1, resource + delimited(2, scope + joined(2, encoded)))
        self._exporter.export([body])  # type: ignore[list-item]  # see _otlp_exporter

    def close(self) -> None:
        """Closes the exporter."""
        self._exporter.shutdown()

    def abandon(self) -> None:
        """Ends the retries of an exporter whose collector does not answer."""
        self._exporter.shutdown()


class ConsoleSink:
    """Writes spans as OpenTelemetry's console exporter does. Implements queue.SpanSink."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._exporter = ConsoleSpanExporter()
        self._readable: list[ReadableSpan] = []

    def add(self, span: spans.Span) -> None:
        """Keeps it."""
        self._readable.append(readable_span(span, self._resource))

    def flush(self) -> None:
        """Writes what was added."""
        readable, self._readable = self._readable, []
        self._exporter.export(readable)

    def close(self) -> None:
        """Closes the exporter."""
        self._exporter.shutdown()

    def abandon(self) -> None:
        """Does nothing: writing is not repeated."""


def readable_span(span: spans.Span, resource: Resource) -> ReadableSpan:
    """Gives a span as OpenTelemetry has it."""
    trace_id = int.from_bytes(span.trace_id, "big")
    return ReadableSpan(
        name=span.name,
        context=_context(trace_id, span.span_id),
        parent=None if span.parent_span_id is None else _context(trace_id, span.parent_span_id),
        resource=resource,
        attributes=span.attributes,
        links=[Link(_context(trace_id, link)) for link in span.links],
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error_code) if span.error_code else _UNSET,
        start_time=span.start_time * 1_000,
        end_time=span.end_time * 1_000,
        instrumentation_scope=_SCOPE,
    )


def _resource(settings: TracingSettings) -> Resource:
    named = {"service.name": settings.service_name} if settings.service_name else {}
    # No service.instance.id: the same span has to be the same bytes whichever replica exports it.
    resource = Resource.create(named)
    kept = {key: value for key, value in resource.attributes.items() if key != "service.instance.id"}
    return Resource(kept, resource.schema_url)


def _frame(resource: Resource) -> tuple[bytes, bytes]:
    """Gives what stands around spans: ResourceSpans without scopes, and ScopeSpans without spans, as OpenTelemetry
    encodes them."""
    any_span = spans.Span("", spans.SpanKind.INTERNAL, bytes(15) + b"\1", bytes(7) + b"\1", None, 0, 0, {})
    (resource_spans,) = encode_spans([readable_span(any_span, resource)]).resource_spans
    (scope_spans,) = resource_spans.scope_spans
    resource_spans.ClearField("scope_spans")
    scope_spans.ClearField("spans")
    return resource_spans.SerializeToString(), scope_spans.SerializeToString()


def _context(trace_id: int, span_id: bytes) -> SpanContext:
    return SpanContext(trace_id, int.from_bytes(span_id, "big"), is_remote=False, trace_flags=_SAMPLED)


def _otlp_exporter(protocol: Protocol) -> SpanExporter:
    """Makes OpenTelemetry's exporter with its encoder taken out: it is given one body, encoded, in place of spans.

    Connection, retries, headers and compression stay its own. tests/telemetry/test_export.py holds that it works with
    the version in use, byte for byte.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        class GrpcExporter(OTLPSpanExporter):
            def _translate_data(self, data: Sequence[object]) -> ExportTraceServiceRequest:
                (body,) = data
                assert isinstance(body, bytes)
                return ExportTraceServiceRequest.FromString(body)

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

    class HttpExporter(HttpSpanExporter):
        def export(self, spans: Sequence[object]) -> SpanExportResult:
            (body,) = spans
            assert isinstance(body, bytes)
            return SpanExportResult.SUCCESS if self._client.export(body).success else SpanExportResult.FAILURE

    return HttpExporter()
