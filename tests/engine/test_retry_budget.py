"""Retry budgets: what failed at one worker is tried again in a measure, in turn, and holds up nothing else."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, cast

import pytest
from baton.v1 import run_pb2

from orchestrator.domain.states import StepState
from orchestrator.domain.waits import QueueReason
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.retry_budget import BURST_SECONDS, LOOK_US
from tests.engine.admissions import Place, Run

PER_SECOND = EngineLimits().retry_budget_per_second
RATIO = EngineLimits().retry_budget_ratio
BURST = int(PER_SECOND * BURST_SECONDS)
"""Retries that a budget has at the beginning."""


class FailingPlace(Place):
    """A place whose calls fail, and are tried again for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.add(1_000_000)

    def fail(self, run: Any, step: int, worker: str = "worker") -> None:
        """Ends a call of a step by a failure, and queues the step again."""
        failed = run.run.steps[step]
        failed.state, failed.retried_worker = StepState.READY, worker
        failed.target_attempts += 1
        self.admission.call_ended(run.flights.pop(step).endpoint, None)
        self.enqueue(run, step)

    def spend(self, count: int = BURST) -> None:
        """Uses up a budget."""
        run = Run([("Spend",)] * count)
        for step in range(count):
            self.enqueue(run, step)
        for step in range(count):
            self.fail(run, step)
        self.admitted.clear()


def test_what_finds_the_budget_empty_waits_in_order_and_first_calls_do_not() -> None:
    place = FailingPlace()
    place.spend()
    run = Run([("Do",)] * 60)
    for step in range(60):
        place.enqueue(run, step)
    assert len(place.admitted) == 60
    place.pass_time(1)
    for step in range(60):
        place.fail(run, step)
    # A token for each ten calls; those before had come while the budget was full.
    tried = [step for _, step, _ in place.admitted[60:]]
    assert tried == list(range(6))
    assert place.wait(run, 59) == run_pb2.WAIT_KIND_RETRY_BUDGET
    waiting = place.admission.wait_of(run, 59)  # type: ignore[arg-type]
    assert waiting is not None
    assert "worker worker" in waiting.message
    assert "53 other steps" in waiting.message

    place.enqueue(Run([("Do",)]), 0)
    assert len(place.admitted) == 60 + len(tried) + 1
    for time in range(LOOK_US, 6_000_000, LOOK_US):
        place.pass_time(1 + time)
    assert [step for each, step, _ in place.admitted[60:] if each is run][:60] == list(range(60))
    assert place.waited_for[-1] is QueueReason.RETRY_BUDGET
    assert not place.timers


def test_a_token_comes_back_with_success() -> None:
    """Once its worker is well again, what waits is tried again as quickly as it answers."""
    place = FailingPlace()
    place.spend()
    run = Run([("Do",)] * 1_000)
    for step in range(1_000):
        place.enqueue(run, step)
    for step in range(1_000):
        place.fail(run, step)
    assert 0 < len(place.admitted) - 1_000 <= BURST
    for number in range(1_000, 2_000):
        place.end(*place.admitted[number][:2])
    assert all(step.state is StepState.SUCCEEDED for step in run.run.steps)


def test_a_retry_without_a_token_takes_its_fallback_for_open_circuits() -> None:
    place = FailingPlace()
    place.spend(BURST * 2)
    run = Run([("Do", "Else")])
    place.enqueue(run, 0)
    cast(Any, place.endpoints[0].circuit).become("open", 1 << 40)
    place.fail(run, 0)
    assert (run.run.steps[0].target, place.wait(run, 0)) == (1, run_pb2.WAIT_KIND_CIRCUIT_OPEN)


def test_a_failure_is_charged_to_its_worker_alone() -> None:
    place = FailingPlace()
    place.spend()
    run = Run([("Do",)] * 2)
    for step in range(2):
        place.enqueue(run, step)
    place.fail(run, 0, "another")
    assert [step for _, step, _ in place.admitted] == [0, 1, 0]


def test_queues_take_turns_at_a_budget_and_the_higher_priority_comes_first() -> None:
    place = FailingPlace()
    place.spend(BURST)
    place.spend(BURST * 2)
    runs = {name: Run([(f"Do{name}",)] * 8, priority=name == "urgent") for name in ("a", "b", "urgent")}
    for run in runs.values():
        for step in range(8):
            place.enqueue(run, step)
    for step in range(8):
        for run in runs.values():
            place.fail(run, step)
    place.admitted.clear()
    names: list[str] = []
    while len(names) < 24:
        place.pass_time(place.now + LOOK_US)
        names = [name for each, _, _ in place.admitted for name, run in runs.items() if run is each]
        counts = Counter(names)
        assert abs(counts["a"] - counts["b"]) <= 1
        assert counts["urgent"] == 8 or not counts["a"] + counts["b"]
    assert not any(place.wait(run, step) for run in runs.values() for step in range(8))


def test_steps_of_runs_that_have_left_use_no_token_and_leave_no_timer() -> None:
    place = FailingPlace()
    place.spend(BURST * 2)
    run = Run([("Do",)])
    place.enqueue(run, 0)
    place.fail(run, 0)
    for live, step, _ in list(place.admitted):
        live.run.steps[step].state = StepState.CANCELLED
    place.admission.left(run)  # type: ignore[arg-type]
    assert place.wait(run, 0) is None
    place.admission.forget()
    assert not place.timers


@pytest.mark.parametrize("seed", range(20))
def test_retries_are_bounded_by_calls_and_time_and_all_are_made(seed: int) -> None:
    draw = random.Random(seed)
    place, runs = FailingPlace(), []
    seen = first = retries = succeeded = 0
    healthy_time = 20_000_000
    while place.now < healthy_time or place.admission.queued_steps("default") or place.admission.in_flight:
        if place.now < healthy_time:
            runs.append(Run([(f"Do{draw.randrange(3)}",)] * draw.randrange(1, 30)))
            for step in range(len(runs[-1].run.steps)):
                place.enqueue(runs[-1], step)
        batch = place.admitted[seen:]
        seen = len(place.admitted)
        for live, step, _ in batch:
            again = live.run.steps[step].target_attempts > 0
            first, retries = first + (not again), retries + again
            if place.now < healthy_time and draw.random() < 0.5:
                place.fail(live, step)
            else:
                succeeded += again
                place.end(live, step)
        place.pass_time(place.now + draw.randrange(1, 300_000))
        assert retries <= BURST + RATIO * first + PER_SECOND * place.now / 1_000_000 + succeeded
    assert all(step.state is StepState.SUCCEEDED for run in runs for step in run.run.steps)
    place.pass_time(place.now + LOOK_US)
    assert not place.timers
