"""Every event comes back from its stored form as it was, and the stored form is the public message."""

from __future__ import annotations

from typing import Any

import pytest
from baton.v1 import event_pb2, failure_pb2
from google.protobuf import any_pb2, duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import events as ev
from orchestrator.domain import waits
from orchestrator.domain.events import Event, Payload, SkipReason
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.run import Run
from orchestrator.domain.states import EventKind
from orchestrator.domain.workflow import Graph, Step
from orchestrator.engine.codec import UnknownEvent, decode, encode, to_message

GRAPH = Graph((Step(0, "a", ()), Step(1, "of-longer-name_2", ()), Step(2, "ü", ())))

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.integers(1, 2**31 - 1)
step = st.integers(0, len(GRAPH.steps) - 1)
instant = st.integers(0, 253_402_300_799_999_999)
type_name = text.filter(lambda name: "/" not in name)
"""What stands behind the last slash of a type URL."""

payload = st.builds(Payload, type_name, st.binary(max_size=50))
detail = st.just(
    any_pb2.Any(type_url="x/google.protobuf.Duration", value=duration_pb2.Duration(seconds=3).SerializeToString())
)
failure = st.builds(
    Failure,
    st.sampled_from(Code),
    text,
    text,
    st.sampled_from(Origin),
    st.lists(detail.map(lambda any_: any_.SerializeToString()), max_size=2).map(tuple),
    text,
    st.booleans(),
)
wait = st.one_of(
    st.builds(waits.Sleeping, instant),
    st.builds(waits.SignalAwaited, text, instant),
    st.builds(waits.ItemsAwaited, st.integers(0, 2**31 - 1)),
    st.just(waits.IterationsAwaited()),
    st.builds(waits.RunAwaited, text, text, text),
)


def built(kind: type[Any], *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draws events of one kind; `fields` are those after the sequence and the time."""
    return st.builds(kind, number, instant, *fields)


events: st.SearchStrategy[Event] = st.one_of(
    built(
        ev.RunSubmitted,
        text,
        text,
        instant,
        text,
        text,
        text,
        st.lists(text, max_size=3).map(tuple),
        st.dictionaries(text, text, max_size=3),
        text,
        text,
        st.none() | payload,
    ),
    built(ev.AttemptStarted, step, number, st.integers(0, 5), text, text, text, instant, instant),
    built(ev.DeliveryStarted, step, number, number, text, text, instant, st.booleans()),
    built(ev.AttemptFailed, step, number, failure, st.none() | instant),
    built(ev.FallbackTaken, step, number, text, failure),
    built(ev.StepSucceeded, step, number, payload),
    built(ev.StepFailed, step, st.integers(0, 5), failure, st.booleans(), st.none() | step),
    built(ev.StepSkipped, step, st.sampled_from(SkipReason)),
    built(ev.StepCancelled, step, st.integers(0, 5)),
    built(ev.RunSucceeded, st.none() | payload),
    built(ev.RunFailed, failure),
    built(ev.RunCancelled, text, text),
    built(ev.StepWaiting, step, wait, st.none() | payload),
    built(ev.ApprovalRequested, step, text, instant, payload, text, st.lists(text, max_size=3).map(tuple), text),
    built(ev.ApprovalDecided, step, st.booleans(), text, text, text),
    built(ev.SignalReceived, text, text, text, payload),
    built(ev.IterationStarted, step, number, instant),
    built(ev.CheckpointRecorded, step, number, payload),
    built(ev.RunUndoing, st.none() | failure, text, text, st.lists(step, max_size=3).map(tuple)),
    built(ev.RunPaused, text, text),
    built(ev.RunResumed, text),
)


@given(events)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    row = encode(event, Run(GRAPH))

    assert decode(row, Run(GRAPH)) == event
    assert (row.sequence, row.kind, row.event_time) == (event.sequence, event.kind, event.time)


@given(events)
def test_what_a_watcher_sees_is_what_the_row_says(event: Event) -> None:
    row = encode(event, Run(GRAPH))
    message = to_message(row, payloads=True)

    assert (message.sequence, message.step, message.attempt) == (row.sequence, row.step, row.attempt)
    kind = message.WhichOneof("kind")
    assert kind is not None
    assert event_pb2.RunEvent.DESCRIPTOR.fields_by_name[kind].number == row.kind
    assert message.HasField("payload") is (row.payload is not None)
    if row.payload is not None:
        assert message.payload.value == row.payload
        assert message.payload.type_url.rpartition("/")[2] == row.payload_type
    assert not to_message(row, payloads=False).HasField("payload")


def test_the_stored_form_of_an_attempt() -> None:
    event = ev.AttemptStarted(
        2, 1_700_000_000_000_001, 1, 3, 0, "shop.v1.Shop/Buy", "shop", "h:1", 5, 1_700_000_001_000_000
    )

    expected = event_pb2.RunEvent(sequence=2, step="of-longer-name_2", attempt=3)
    expected.time.FromMicroseconds(1_700_000_000_000_001)
    expected.attempt_started.method, expected.attempt_started.worker = "shop.v1.Shop/Buy", "shop"
    expected.attempt_started.address = "h:1"
    expected.attempt_started.ready_time.FromMicroseconds(5)
    expected.attempt_started.expire_time.FromMicroseconds(1_700_000_001_000_000)
    row = encode(event, Run(GRAPH))
    assert event_pb2.RunEvent.FromString(row.header) == expected
    assert (row.step, row.attempt, row.payload, row.payload_type) == ("of-longer-name_2", 3, None, "")


def test_the_stored_form_of_a_failure() -> None:
    event = ev.RunFailed(9, 7, Failure(Code.NOT_FOUND, "NO_LOT", "sold out", Origin.WORKER, (), "a", True))

    message = event_pb2.RunEvent.FromString(encode(event, Run(GRAPH)).header)

    assert message.run_failed.failure == failure_pb2.Failure(
        code=5,
        reason="NO_LOT",
        message="sold out",
        origin=1,
        step="a",
        outcome_unknown=True,  # type: ignore[arg-type]
    )


def test_an_event_of_an_unknown_kind_is_an_error() -> None:
    row = encode(ev.RunSucceeded(8, 7, None), Run(GRAPH))._replace(kind=max(EventKind) + 1)

    with pytest.raises(UnknownEvent):
        decode(row, Run(GRAPH))
