"""A fault of ours in one run, done by hand: the run is given up, and nothing beside it is harmed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.events import StepSucceeded
from orchestrator.domain.inputs import CallFailed, Resumption, RunTimeoutPassed
from orchestrator.domain.states import StepState
from orchestrator.engine import drive
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.drive import Driver
from orchestrator.engine.live import LiveRun, Staged, TimerKey, TimerKind
from tests.engine.drivers import driver, live_run


def fail(*_: object) -> None:
    raise RuntimeError("a fault of ours")


async def test_a_run_without_a_decision_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "decide", fail)
    made, live = driver(), live_run()
    made.adopt(live)
    assert made.advance(live, Resumption()).events == []
    assert live.forgotten
    assert list(made.refused) == [live.key]
    assert made.runs == {}
    made.advance(live, RunTimeoutPassed())
    assert list(made.refused) == [live.key]


async def test_entries_of_a_run_that_was_given_up_are_not_written() -> None:
    made, live = driver(), live_run()
    made.adopt(live)
    made.journal.stage(live, Staged([StepSucceeded(1, 1, 0, 1, None)], []))
    made.settle()
    assert (made.journal.queued_events, made.journal.queued_bytes > 0) == (1, True)
    made.forget(live, "gone")
    assert made.journal._take_batch() == []
    assert (made.journal.queued_events, made.journal.queued_bytes) == (0, 0)


def over(live: LiveRun) -> Any:
    """A call of an attempt that is over, by its time: the next one is due, and admission has passed over the step."""
    live.run.steps[0].state = StepState.READY
    ticket = SimpleNamespace(released=lambda: None)
    flight: Any = SimpleNamespace(step=0, attempt=1, ticket=ticket, sending=None, heard_time=0, retried="")
    live.flights[0] = flight
    return flight


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that drivers queue."""
    steps: list[int] = []
    monkeypatch.setattr(Driver, "_queue", lambda _, live, index: steps.append(index))
    return steps


def engaged() -> Driver:
    made = driver()
    made.resumptions = made.liveness = SimpleNamespace(end=lambda *_: None)  # type: ignore[assignment]
    return made


async def test_a_step_is_queued_again_when_the_answer_to_an_attempt_that_is_over_comes(queued: list[int]) -> None:
    made, live = engaged(), live_run()
    flight = over(live)
    failure: Any = None
    made.record(live, flight, CallFailed(0, 1, failure, None, 0.0))
    assert not live.flights
    assert queued == [0]


async def test_a_step_is_queued_again_when_an_attempt_that_is_over_becomes_durable(queued: list[int]) -> None:
    made, live = engaged(), live_run()
    over(live)
    started: Any = SimpleNamespace(step=0, attempt=1)
    made._dispatch(live, started)
    assert not live.flights
    assert queued == [0]


async def test_a_step_that_has_ended_is_not_queued_again(queued: list[int]) -> None:
    made, live = engaged(), live_run()
    flight = over(live)
    live.run.steps[0].state = StepState.CANCELLED
    failure: Any = None
    made.record(live, flight, CallFailed(0, 1, failure, None, 0.0))
    assert queued == []


async def test_steps_that_are_ready_start_in_order_though_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, live = driver(), live_run(steps=4)
    made.adopt(live)
    no_limits: Any = SimpleNamespace(bounding_step=lambda index: index, step=lambda _: SimpleNamespace(limits=()))
    admitted: list[int] = []
    live.data = no_limits
    monkeypatch.setattr(made.admission, "enqueue", lambda _, index: admitted.append(index))
    live.run.time = DatabaseClock().now() + 10_000_000
    for step, later_us in zip(live.run.steps, (0, -1_000_000, -20_000_000, 1), strict=True):
        step.state, step.queue_time = StepState.READY, live.run.time + later_us
    made.queue_again(live, range(4))
    assert admitted == [0, 1, 2]
    assert list(live.timers) == [TimerKey(TimerKind.BACKOFF, 3)]
    made.forget(live, "")
