"""Spans of a worker's calls, by the tracer of the program that it is part of."""

from __future__ import annotations

import asyncio

import pytest
from baton.tracing import Tracing
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-"


def serve(sampler: Sampler, traceparent: str, code: str = "") -> tuple[InMemorySpanExporter, trace.SpanContext]:
    """Serves a call; returns the spans that were recorded, and what its handler saw as its own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace.get_current_span()
    tracing = Tracing(provider.get_tracer("baton"), provider.shutdown)
    with tracing.span("a.Greeter/Greet", "run", "step", 2, traceparent) as fails:
        seen = trace.get_current_span().get_span_context()
        if code:
            fails(code)
    assert trace.get_current_span() is before
    return exporter, seen


def test_a_sampled_call_has_a_span_below_that_of_its_caller() -> None:
    exporter, seen = serve(ParentBased(ALWAYS_ON), TRACEPARENT + "01", "UNAVAILABLE")
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert span.attributes is not None
    assert (span.context.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE_ID, SPAN_ID, True)
    assert seen == span.context
    assert (span.name, span.kind) == ("a.Greeter/Greet", trace.SpanKind.SERVER)
    assert (span.attributes["baton.run.id"], span.attributes["error.type"]) == ("run", "UNAVAILABLE")


def test_calls_of_a_handler_that_is_not_sampled_go_on_with_the_trace_of_its_caller() -> None:
    exporter, seen = serve(ParentBased(ALWAYS_ON), TRACEPARENT + "00", "UNAVAILABLE")
    assert exporter.get_finished_spans() == ()
    assert (seen.trace_id, seen.trace_flags.sampled, seen.is_remote) == (TRACE_ID, False, False)


def test_each_call_has_its_own_caller_for_a_parent_and_an_error_ends_its_span() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider.get_tracer("baton"), provider.shutdown)
    parents = [SPAN_ID, SPAN_ID + 1, SPAN_ID]
    for parent in parents:
        with (
            pytest.raises(asyncio.CancelledError),
            tracing.span("a.Greeter/Greet", "run", "step", 1, f"00-{TRACE_ID:032x}-{parent:016x}-01"),
            provider.get_tracer("handler").start_as_current_span("inner", record_exception=False),
        ):
            raise asyncio.CancelledError
    spans = exporter.get_finished_spans()
    calls = [span for span in spans if span.name == "a.Greeter/Greet"]
    assert [span.parent and span.parent.span_id for span in calls] == parents
    inner = [span for span in spans if span.name == "inner"]
    assert [span.parent and span.parent.span_id for span in inner] == [span.context.span_id for span in calls]
    assert [(span.status.status_code, span.events) for span in calls] == 3 * [(trace.StatusCode.UNSET, ())]
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_sampler_may_record_what_its_caller_does_not() -> None:
    exporter, _ = serve(ALWAYS_ON, TRACEPARENT + "00")
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert span.parent.span_id == SPAN_ID


@pytest.mark.parametrize(
    "traceparent", ["", "garbage", f"00-{0:032x}-{SPAN_ID:016x}-01", TRACEPARENT + "xx", "ff" + TRACEPARENT[2:] + "01"]
)
def test_a_call_without_a_caller_s_span_begins_a_trace(traceparent: str) -> None:
    exporter, seen = serve(ParentBased(ALWAYS_ON), traceparent)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert seen.trace_id not in (0, TRACE_ID)
