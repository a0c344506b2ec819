"""A fault of ours in one run, done by hand: the run is given up, and nothing beside it is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import Payload, StepSucceeded
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import CallFailed, Resumption, RunTimeoutPassed
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import FailureMatch, Graph, RetryPolicy, Step, Target
from orchestrator.engine import drive, journal
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, Staged, TimerKey, TimerKind
from orchestrator.engine.machine import Machine
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.pace import Pace
from orchestrator.engine.ports import RunEntry, WriteResult, WriteState
from orchestrator.engine.timers import Timers


def driver() -> Driver:
    clock = DatabaseClock()
    nothing: Any = SimpleNamespace()
    return Driver(clock, Timers(clock), EngineLimits(), NullObserver(), nothing, nothing, Pace(Machine()))


def live_run(accepted: Any = None, steps: int = 1) -> LiveRun:
    target = Target("a.v1.A/Do", RetryPolicy(FailureMatch()), False)
    compiled: Any = SimpleNamespace(graph=Graph(tuple(Step(index, f"s{index}", (target,)) for index in range(steps))))
    scope: Any = None
    live = LiveRun(RunKey("default", uuid4()), 1, compiled, scope, None)
    live.accepted = accepted
    live.run.expire_time = 1 << 60
    return live


def fail(*_: object) -> None:
    raise RuntimeError("a fault of ours")


async def test_a_run_without_a_decision_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "decide", fail)
    made, live = driver(), live_run()
    made.adopt(live)
    assert made.advance(live, Resumption()).events == []
    assert live.forgotten
    assert made.refused == [live.key]
    assert made.runs == {}
    made.advance(live, RunTimeoutPassed())
    assert made.refused == [live.key]


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


async def test_a_journal_that_writes_nothing_says_why_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AWAY_SECONDS", 0.0)
    made, live = driver(), live_run()
    tries: asyncio.Queue[Exception | None] = asyncio.Queue()
    told: list[DatabaseUnavailable | None] = []

    async def write(*_: object) -> list[WriteResult]:
        told.append(made.journal.fault)
        error = await tries.get()
        if error is not None:
            raise error
        return [WriteResult(WriteState.WRITTEN)]

    store: Any = SimpleNamespace(write=write)
    monkeypatch.setattr(made.journal, "_store", store)
    monkeypatch.setattr(made.journal, "_on_result", lambda *_: None)
    made.adopt(live)
    made.journal.stage(live, Staged([StepSucceeded(2, 1, 0, 1, None)], []))
    full = DatabaseUnavailable("the database has no disk space left; try again")
    for outcome in (full, full, full, None):
        tries.put_nowait(outcome)
    writing = asyncio.create_task(made.journal.run(uuid4()))
    await asyncio.wait_for(made.journal.wait_idle(), 20)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert told == [None, None, full, full]
    assert made.journal.fault is None


async def test_a_journal_that_is_not_answered_says_so_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made, live = driver(), live_run()
    sent, answer = asyncio.Event(), asyncio.Event()

    async def write(*_: object) -> list[WriteResult]:
        sent.set()
        await answer.wait()
        return [WriteResult(WriteState.WRITTEN)]

    store: Any = SimpleNamespace(write=write)
    monkeypatch.setattr(made.journal, "_store", store)
    monkeypatch.setattr(made.journal, "_on_result", lambda *_: None)
    made.adopt(live)
    made.journal.stage(live, Staged([StepSucceeded(2, 1, 0, 1, None)], []))
    writing = asyncio.create_task(made.journal.run(uuid4()))
    await asyncio.wait_for(sent.wait(), 20)
    assert made.journal.fault is None
    monkeypatch.setattr(journal, "SILENT_SECONDS", 0.0)
    fault = made.journal.fault
    assert fault is not None
    assert (fault.metadata, fault.retry_delay_seconds) == ({"cause": "SILENT"}, 1.0)
    answer.set()
    await asyncio.wait_for(made.journal.wait_idle(), 20)
    assert made.journal.fault is None
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_what_is_staged_in_the_turn_in_which_a_batch_is_taken_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, first, second = driver(), live_run(), live_run()
    written: list[int] = []

    async def write(_: object, entries: Sequence[RunEntry]) -> list[WriteResult]:
        written.extend(len(entry.rows) for entry in entries)
        return [WriteResult(WriteState.WRITTEN)] * len(entries)

    def stage(live: LiveRun) -> None:
        made.journal.stage(live, Staged([StepSucceeded(2, 1, 0, 1, None)], []))

    store: Any = SimpleNamespace(write=write)
    monkeypatch.setattr(made.journal, "_store", store)
    monkeypatch.setattr(made.journal, "_on_result", lambda *_: None)
    writing = asyncio.create_task(made.journal.run(uuid4()))
    await asyncio.sleep(0)
    # The worklist has its turn before the second is staged, and the journal right after that.
    made._worklist.wake()
    asyncio.get_running_loop().call_soon(stage, second)
    stage(first)
    await asyncio.sleep(0)
    await asyncio.wait_for(made.journal.wait_idle(), 20)
    assert written == [1, 1]
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_what_a_run_staged_while_it_was_written_counts_no_more_once_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, live = driver(), live_run()
    sent, answer = asyncio.Event(), asyncio.Event()

    async def write(*_: object) -> list[WriteResult]:
        sent.set()
        await answer.wait()
        return [WriteResult(WriteState.WRITTEN)]

    store: Any = SimpleNamespace(write=write)
    monkeypatch.setattr(made.journal, "_store", store)
    monkeypatch.setattr(made.journal, "_on_result", lambda *_: None)
    made.adopt(live)
    made.journal.stage(live, Staged([StepSucceeded(2, 1, 0, 1, None)], []))
    writing = asyncio.create_task(made.journal.run(uuid4()))
    await asyncio.wait_for(sent.wait(), 20)
    made.journal.stage(live, Staged([StepSucceeded(3, 2, 0, 1, Payload("a.v1.A", b"output"))], []))
    made.settle()
    made.forget(live, "given up")
    answer.set()
    await asyncio.wait_for(made.journal.wait_idle(), 20)
    assert (made.journal.queued_events, made.journal.queued_bytes, made.is_busy()) == (0, 0, False)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
