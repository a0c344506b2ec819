"""Spans as bytes: what OpenTelemetry's own encoder would write, for every span of every story."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource

from orchestrator.domain.failures import Code
from orchestrator.telemetry.encoding import encode_span
from orchestrator.telemetry.export import readable_span
from orchestrator.telemetry.span import Span, SpanKind
from tests.telemetry.stories import Story, graph, told_chain, whole_run_spans


def encoded_by_opentelemetry(span: Span) -> trace_pb2.Span:
    (resource_spans,) = encode_spans([readable_span(span, Resource({}))]).resource_spans
    return resource_spans.scope_spans[0].spans[0]


def same(span: Span) -> None:
    ours, theirs = trace_pb2.Span.FromString(encode_span(span)), encoded_by_opentelemetry(span)
    assert ours == theirs
    assert encode_span(span) == theirs.SerializeToString()


@pytest.mark.parametrize(
    "story",
    [told_chain(), Story(graph({"charge": ()})).start("charge").fail("charge", Code.INVALID_ARGUMENT)],
    ids=["succeeded", "failed"],
)
def test_every_span_of_a_run_is_encoded_as_by_opentelemetry(story: Story) -> None:
    spans = whole_run_spans(story.run)
    assert spans
    for span in spans:
        same(span)


IDS = st.binary(min_size=8, max_size=8).filter(any)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
TIMES = st.integers(1, 2**53)


@given(
    st.builds(
        Span,
        name=TEXTS.filter(bool),
        kind=st.sampled_from(SpanKind),
        trace_id=st.binary(min_size=16, max_size=16).filter(any),
        span_id=IDS,
        parent_span_id=st.none() | IDS,
        start_time=TIMES,
        end_time=TIMES,
        attributes=st.dictionaries(TEXTS.filter(bool), TEXTS | st.integers(-(2**63), 2**63 - 1), max_size=5),
        links=st.lists(IDS, max_size=4).map(tuple),
        error_code=st.sampled_from(["", "UNAVAILABLE"]),
    )
)
def test_any_span_is_encoded_as_by_opentelemetry(span: Span) -> None:
    same(span)
