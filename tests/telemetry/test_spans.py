"""Spans made from journaled times: their tree, their times, what they say and what they never say."""

from __future__ import annotations

import itertools
import json

import pytest

from orchestrator.domain.failures import Code
from orchestrator.domain.inputs import Reopening
from orchestrator.domain.run import Run
from orchestrator.domain.tracing import (
    attempt_span_id,
    attempt_traceparent,
    is_sampled,
    new_traceparent,
    parse_traceparent,
    run_span_id,
    step_span_id,
)
from orchestrator.telemetry import spans
from orchestrator.telemetry.observer import SpanObserver
from orchestrator.telemetry.span import Span, SpanKind
from orchestrator.telemetry.step_spans import LINKS_LIMIT
from tests.telemetry.critical_path import critical_path
from tests.telemetry.stories import (
    CHAIN,
    DIAMOND,
    RUN_ID,
    SECRET,
    START,
    TRACEPARENT,
    UNSAMPLED,
    Story,
    graph,
    told_chain,
    whole_run_spans,
)


def telling(emitted: list[Span]) -> SpanObserver:
    """An observer whose spans are made at once."""
    return SpanObserver(lambda what: emitted.extend(spans.spans_of(what)))


def spans_of(story: Story) -> list[Span]:
    return whole_run_spans(story.run)


def named(spans: list[Span], name: str) -> Span:
    (span,) = [span for span in spans if span.name == name]
    return span


def test_the_chain_of_parents_leads_from_the_caller_to_the_attempt() -> None:
    spans = spans_of(told_chain())
    run, step = named(spans, "run orders"), named(spans, "step charge")
    attempt = named(spans, "shop.v1.ChargeService/Do")
    assert {span.trace_id.hex() for span in spans} == {TRACEPARENT[3:35]}
    assert run.parent_span_id == bytes.fromhex(TRACEPARENT[36:52])
    assert step.parent_span_id == run.span_id == run_span_id(RUN_ID)
    assert attempt.parent_span_id == step.span_id == step_span_id(RUN_ID, "charge")
    assert attempt.span_id == attempt_span_id(RUN_ID, "charge", 1)
    assert (run.kind, step.kind, attempt.kind) == (SpanKind.INTERNAL, SpanKind.INTERNAL, SpanKind.CLIENT)


def test_the_worker_is_told_the_span_of_its_attempt() -> None:
    traceparent = attempt_traceparent(TRACEPARENT, RUN_ID, "charge", 1)
    assert traceparent == f"{TRACEPARENT[:36]}{attempt_span_id(RUN_ID, 'charge', 1).hex()}-01"
    assert attempt_traceparent(UNSAMPLED, RUN_ID, "charge", 1).endswith("-00")
    assert attempt_traceparent("", RUN_ID, "charge", 1) == ""


def test_times_are_those_of_the_journal() -> None:
    spans = spans_of(told_chain())
    run, attempt, queue = (named(spans, name) for name in ("run orders", "shop.v1.ChargeService/Do", "queue charge"))
    assert run.start_time == START
    assert attempt.end_time - attempt.start_time == 30_000
    assert queue.end_time == attempt.start_time - 1
    assert 2_990 <= queue.end_time - queue.start_time <= 3_000
    assert [span.name for span in spans if span.name.startswith("queue")] == ["queue charge"]


def test_a_step_links_to_those_it_waited_for() -> None:
    story = Story(DIAMOND).start("split").wait(1).succeed("split").start("left").start("right")
    story.wait(2).succeed("left").wait(2).succeed("right").start("join").wait(1).succeed("join")
    join = named(spans_of(story), "step join")
    assert join.links == (step_span_id(RUN_ID, "left"), step_span_id(RUN_ID, "right"))


def test_links_of_a_wide_fan_in_are_limited() -> None:
    names = [f"part{number}" for number in range(LINKS_LIMIT + 10)]
    story = Story(graph({**dict.fromkeys(names, ()), "join": tuple(names)}))
    for name in names:
        story.start(name).succeed(name)
    join = named(spans_of(story.start("join").succeed("join")), "step join")
    assert len(join.links) == LINKS_LIMIT
    assert join.attributes["baton.step.predecessors"] == LINKS_LIMIT + 10


def test_retries_show_each_attempt_and_the_backoff_between() -> None:
    story = Story(graph({"charge": ()})).start("charge").wait(10).fail("charge")
    story.wait(205).start("charge").wait(4).succeed("charge")
    spans = spans_of(story)
    step, backoff, queue = (named(spans, name) for name in ("step charge", "backoff charge", "queue charge"))
    first, second = (span for span in spans if span.kind is SpanKind.CLIENT)
    assert (first.error_code, second.error_code, step.error_code) == ("UNAVAILABLE", "", "")
    assert [first.attributes["baton.step.attempt"], second.attributes["baton.step.attempt"]] == [1, 2]
    assert (
        first.end_time < backoff.start_time < backoff.end_time < queue.start_time < queue.end_time < second.start_time
    )
    assert backoff.end_time - backoff.start_time + 1 == 200_000
    assert len({span.span_id for span in spans}) == len(spans)


def test_a_wait_that_ended_in_a_fallback_is_a_queue_and_no_backoff() -> None:
    story = Story(graph({"charge": ()}, fallback_of="charge")).wait(8).open_circuit("charge")
    spans = spans_of(story.start("charge").wait(3).succeed("charge"))
    assert named(spans, "queue charge").end_time - named(spans, "queue charge").start_time >= 7_000
    assert named(spans, "shop.v1.SpareService/Do").parent_span_id == step_span_id(RUN_ID, "charge")
    assert not [span for span in spans if span.name.startswith("backoff")]


def test_a_step_cancelled_in_its_backoff_shows_that_wait() -> None:
    story = Story(graph({"charge": ()})).start("charge").wait(10).fail("charge").wait(50).cancel()
    spans = spans_of(story)
    step, backoff = named(spans, "step charge"), named(spans, "backoff charge")
    assert backoff.end_time <= step.end_time
    assert backoff.end_time - backoff.start_time >= 49_000
    assert named(spans, "run orders").error_code == "CANCELLED"


def test_failures_are_named_by_code_reason_and_origin() -> None:
    story = Story(graph({"charge": (), "ship": ("charge",)})).start("charge").wait(1)
    spans = spans_of(story.fail("charge", Code.FAILED_PRECONDITION))
    for name in ("shop.v1.ChargeService/Do", "step charge", "run orders"):
        span = named(spans, name)
        assert span.error_code == span.attributes["error.type"] == "FAILED_PRECONDITION"
        assert span.attributes["baton.failure.origin"] == "WORKER"
    assert named(spans, "run orders").attributes["baton.failure.step"] == "charge"
    # It was never ready, so there is nothing to show.
    assert not [span for span in spans if span.name == "step ship"]


def test_attempts_say_whom_they_called() -> None:
    attributes = named(spans_of(told_chain()), "shop.v1.ChargeService/Do").attributes
    assert attributes == {
        "baton.namespace": "default",
        "baton.workflow.name": "orders",
        "baton.workflow.revision": "r1",
        "baton.run.id": str(RUN_ID),
        "baton.step.id": "charge",
        "baton.step.attempt": 1,
        "baton.worker.name": "charge-worker",
        "rpc.system.name": "grpc",
        "rpc.method": "shop.v1.ChargeService/Do",
        "rpc.response.status_code": "OK",
        "server.address": "payments.internal",
        "server.port": 7001,
    }


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("[::1]:7001", "::1", 7001),
        ("dns:///a.example:1", "a.example", 1),
        ("unix:/run/w.sock", "unix:/run/w.sock", None),
    ],
)
def test_addresses_are_told_apart_from_ports(address: str, host: str, port: int | None) -> None:
    story = Story(graph({"charge": ()})).start("charge", address).wait(1).succeed("charge")
    attributes = named(spans_of(story), "shop.v1.ChargeService/Do").attributes
    assert (attributes["server.address"], attributes.get("server.port")) == (host, port)


def test_no_payload_and_no_text_of_a_worker_is_in_a_span() -> None:
    story = told_chain()
    failed = Story(graph({"charge": ()})).start("charge").fail("charge", Code.INTERNAL)
    for span in (*spans_of(story), *spans_of(failed)):
        assert SECRET not in json.dumps(span._asdict(), default=str)


def test_two_replicas_make_the_same_spans() -> None:
    emitted: list[Span] = []
    story = told_chain(telling(emitted))
    rebuilt = Run(story.run.graph)
    for event in story.events:
        rebuilt.apply(event)
    by_id = {span.span_id: span for span in emitted}
    assert by_id == {span.span_id: span for span in whole_run_spans(rebuilt)}
    assert len(by_id) == len(emitted)


def test_a_step_is_emitted_when_it_ends_and_the_run_at_the_end() -> None:
    emitted: list[Span] = []
    story = Story(graph({"a": (), "b": ("a",)}), telling(emitted)).start("a").wait(1)
    assert emitted == []
    story.succeed("a")
    assert [span.name for span in emitted] == ["step a", "shop.v1.AService/Do"]
    story.start("b").wait(1).succeed("b")
    assert [span.name for span in emitted][2:] == ["step b", "shop.v1.BService/Do", "run orders"]


@pytest.mark.parametrize("traceparent", [UNSAMPLED, "", "garbage", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
def test_an_unsampled_or_unreadable_trace_emits_nothing(traceparent: str) -> None:
    emitted: list[Span] = []
    story = told_chain(telling(emitted), traceparent)
    assert story.run.ended
    assert emitted == []


def test_an_exporter_that_raises_does_not_reach_the_engine() -> None:
    def refuse(span: Span) -> None:
        raise RuntimeError("broken")

    assert told_chain(SpanObserver(refuse)).run.ended


def all_stories() -> dict[str, Story]:
    diamond = Story(DIAMOND).wait(2).start("split").wait(4).succeed("split").start("left").wait(1).start("right")
    diamond.wait(9).succeed("left").wait(4).succeed("right").wait(2).start("join").wait(3).succeed("join")
    retried = (
        Story(graph({"a": (), "b": ("a",)})).start("a").wait(2).fail("a").wait(200).start("a").wait(1).succeed("a")
    )
    retried.start("b").wait(1).succeed("b")
    cancelled = Story(DIAMOND).start("split").wait(1).succeed("split").start("left").wait(3).cancel()
    # Nothing takes any time: every fact comes one microsecond after the one before.
    instant = Story(graph({"a": (), "b": ("a",), "c": ("b",)}))
    for step in "abc":
        instant.start(step).succeed(step)
    return {"chain": told_chain(), "diamond": diamond, "retry": retried, "cancel": cancelled, "instant": instant}


@pytest.mark.parametrize("name", list(all_stories()))
def test_children_lie_in_their_parents_and_siblings_never_touch(name: str) -> None:
    spans = spans_of(all_stories()[name])
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_time <= span.end_time
        if (parent := by_id.get(span.parent_span_id or b"")) is not None:
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time
    for one, other in itertools.permutations(spans, 2):
        if one.parent_span_id == other.parent_span_id:
            assert one.end_time != other.start_time


def test_the_critical_path_of_a_chain_holds_every_step() -> None:
    path = critical_path(spans_of(told_chain()))
    calls = [name for name in path if "/" in name or name.startswith("queue")]
    assert calls == [
        "shop.v1.ReserveService/Do",
        "queue charge",
        "shop.v1.ChargeService/Do",
        "shop.v1.ShipService/Do",
    ]


def test_the_critical_path_of_a_retried_step_holds_both_attempts_and_the_backoff() -> None:
    path = critical_path(spans_of(all_stories()["retry"]))
    assert [name for name in path if "/" in name or name.startswith("backoff")] == [
        "shop.v1.AService/Do",
        "backoff a",
        "shop.v1.AService/Do",
        "shop.v1.BService/Do",
    ]


def test_the_critical_path_of_a_fan_out_goes_by_the_slower_branch() -> None:
    path = critical_path(spans_of(all_stories()["diamond"]))
    assert "shop.v1.RightService/Do" in path
    assert "shop.v1.LeftService/Do" not in path


def test_the_path_finder_falls_into_the_trap_that_the_spans_avoid() -> None:
    def span(name: str, start: int, end: int) -> Span:
        return Span(name, SpanKind.INTERNAL, bytes(16), name.encode(), b"r" if name != "r" else None, start, end, {})

    assert "a" not in critical_path([span("r", 0, 30), span("a", 1, 10), span("b", 10, 29)])
    assert "a" in critical_path([span("r", 0, 30), span("a", 1, 10), span("b", 11, 29)])


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (TRACEPARENT, True),
        (UNSAMPLED, False),
        (TRACEPARENT[:-2] + "03", True),
        ("cc" + TRACEPARENT[2:] + "-later", True),
        ("ff" + TRACEPARENT[2:], None),
        (TRACEPARENT + "-more", None),
        (TRACEPARENT.upper(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
        ("", None),
    ],
)
def test_traceparents_are_read_as_w3c_says(text: str, sampled: bool | None) -> None:
    context = parse_traceparent(text)
    assert (None if context is None else context.sampled) == sampled
    if context is not None:
        assert is_sampled(text) == sampled
        assert new_traceparent(context.trace_id, context.span_id, context.sampled)[3:52] == text[3:52]


def test_each_round_has_spans_of_its_own() -> None:
    story = Story(CHAIN).start("reserve").succeed("reserve").start("charge").fail("charge", Code.INVALID_ARGUMENT)
    first = {span.span_id for span in whole_run_spans(story.run)}
    expire_time = story.run.expire_time
    story.given(Reopening((), (), None, story.run.revision, expire_time, "ann", "", None))
    spans = whole_run_spans(story.start("charge").succeed("charge").start("ship").succeed("ship").run)
    run, charge = named(spans, "run orders"), named(spans, "step charge")
    assert run.span_id == run_span_id(RUN_ID, 2)
    assert charge.span_id == step_span_id(RUN_ID, "charge", 2)
    assert charge.links == (step_span_id(RUN_ID, "reserve"),), "it was kept from the first round"
    new = [span for span in spans if span.span_id not in first]
    assert {span.name for span in spans if span.span_id in first} & {"run orders", "step charge", "step ship"} == set()
    assert attempt_span_id(RUN_ID, "charge", 2) in {span.span_id for span in new}
    assert attempt_span_id(RUN_ID, "charge", 1) not in {span.span_id for span in spans}
