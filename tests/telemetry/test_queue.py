"""The queue of spans: bounded, counted, never in the way of the one who puts."""

from __future__ import annotations

import threading

import pytest

from orchestrator.telemetry.observer import SpanObserver
from orchestrator.telemetry.queue import SpanQueue
from orchestrator.telemetry.settings import BatchSettings, TelemetrySettingInvalid, tracing_settings
from orchestrator.telemetry.span import Span, SpanKind
from tests.telemetry.stories import told_chain, whole_run_spans

SECONDS = 20.0
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}


class Gate:
    """A collector that takes nothing until it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Span]] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        self.closed = threading.Event()
        self.abandoned = threading.Event()
        self._added: list[Span] = []

    def add(self, span: Span) -> None:
        self._added.append(span)

    def flush(self) -> None:
        self.entered.set()
        assert self.open.wait(SECONDS)
        self.batches.append(self._added)
        self._added = []

    def close(self) -> None:
        self.closed.set()

    def abandon(self) -> None:
        self.abandoned.set()
        self.open.set()


def span(number: int) -> Span:
    return Span(f"span {number}", SpanKind.SERVER, bytes(15) + b"\1", bytes(7) + b"\1", None, number, number, {})


def test_a_run_becomes_the_same_spans_as_when_read_back() -> None:
    gate = Gate()
    gate.open.set()
    queue = SpanQueue([gate], BatchSettings())
    story = told_chain(SpanObserver(queue.put))
    assert queue.close(SECONDS)
    assert gate.closed.is_set()
    spans = {each.span_id: each for batch in gate.batches for each in batch}
    assert spans == {each.span_id: each for each in whole_run_spans(story.run)}
    assert queue.dropped == 0


def test_what_is_too_much_is_dropped_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    queue = SpanQueue([gate], BatchSettings(queue_limit=4, batch_limit=1))
    queue.put(span(0))
    assert gate.entered.wait(SECONDS)
    for number in range(1, 8):
        queue.put(span(number))
    assert queue.dropped == 3
    gate.open.set()
    assert queue.close(SECONDS)
    assert [each.name for batch in gate.batches for each in batch] == [f"span {number}" for number in range(5)]
    (record,) = [record for record in caplog.records if record.message.startswith("spans dropped")]
    assert vars(record)["spans"] == 3


def test_batches_are_no_larger_than_said() -> None:
    gate = Gate()
    queue = SpanQueue([gate], BatchSettings(queue_limit=100, batch_limit=3))
    queue.put(span(0))
    for number in range(1, 10):
        queue.put(span(number))
    gate.open.set()
    assert queue.close(SECONDS)
    assert max(len(batch) for batch in gate.batches) <= 3
    assert sum(len(batch) for batch in gate.batches) == 10


def test_closing_leaves_a_collector_that_does_not_answer() -> None:
    gate = Gate()
    queue = SpanQueue([gate], BatchSettings())
    queue.put(span(0))
    assert not queue.close(0.05)
    assert gate.abandoned.wait(SECONDS)
    queue.put(span(1))
    assert queue.dropped == 1


def test_one_collector_that_fails_does_not_keep_spans_from_the_others() -> None:
    class Broken(Gate):
        def flush(self) -> None:
            raise OSError("no route")

    gate = Gate()
    gate.open.set()
    queue = SpanQueue([Broken(), gate], BatchSettings())
    queue.put(span(0))
    assert queue.close(SECONDS)
    assert [len(batch) for batch in gate.batches] == [1]


def test_the_environment_sets_the_batches() -> None:
    given = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_BSP_SCHEDULE_DELAY": "250"}
    settings = tracing_settings(ENDPOINT | given)
    assert settings is not None
    assert settings.batch == BatchSettings(100, 10, 0.25)
    small = tracing_settings(ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "100"})
    assert small is not None
    assert small.batch == BatchSettings(100, 100, 5.0)


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
        {"OTEL_BSP_SCHEDULE_DELAY": "soon"},
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "-1"},
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20000"},
    ],
)
def test_batches_that_cannot_be_are_refused_by_name(environment: dict[str, str]) -> None:
    with pytest.raises(TelemetrySettingInvalid, match=next(iter(environment))):
        tracing_settings(ENDPOINT | environment)
