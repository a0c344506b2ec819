"""What admission has granted to steps: it is started once, or comes back, whatever happens meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.domain.states import StepState
from orchestrator.engine.permits import Permit, Pool
from tests.engine.admissions import Place, Run


def test_a_step_that_was_given_two_calls_starts_one() -> None:
    place = Place()
    endpoint = place.add(5)
    run = Run([("Do",)])
    for _ in range(2):
        place.admission.enqueue(cast(Any, run), 0)
    assert place.admission.in_flight == 2
    place.settle()
    assert [(step, given) for _, step, given in place.admitted] == [(0, endpoint)]
    assert (place.admission.in_flight, endpoint.in_flight) == (1, 1)


@pytest.mark.parametrize("change", ["target", "retried", "pools"])
def test_a_call_is_not_started_for_a_step_that_wants_another_by_now(change: str) -> None:
    place = Place()
    endpoint = place.add(5)
    run = Run([("Do", "DoElse")])
    step = run.run.steps[0]
    if change == "pools":
        run.data = SimpleNamespace(
            pins=run.data.pins,
            bounding_step=run.data.bounding_step,
            step=lambda _: SimpleNamespace(priority=0, limits=("customer",)),
        )
        run.limit_pools[0] = (Pool("customer", "ann"),)
    place.admission.enqueue(cast(Any, run), 0)
    if change == "target":
        step.target = 1
    elif change == "pools":
        run.limit_pools[0] = (Pool("customer", "bob"),)
    else:
        step.target_attempts, step.retried_worker = 1, "worker"
    place.settle()
    assert place.admitted == []
    assert (place.admission.in_flight, endpoint.in_flight) == (0, 0)


def test_the_token_of_a_retry_comes_back_where_its_call_is_not_started() -> None:
    place = Place()
    place.add(5)
    run = Run([("Do",)])
    step = run.run.steps[0]
    step.target_attempts, step.retried_worker = 1, "worker"
    budget = place.admission._retries._of(("default", "worker"))
    before = budget._tokens
    place.admission.enqueue(cast(Any, run), 0)
    assert budget._tokens == before - 1
    run.forgotten = True
    place.settle()
    assert budget._tokens == before


def test_the_permit_of_a_call_that_is_not_started_comes_back_unused() -> None:
    place = Place()
    place.add(5)
    pool = Pool("everywhere")
    limits: Any = SimpleNamespace(
        fault=lambda pools: "", kinds=lambda method, pools, workers: (list(workers), ((pool,),))
    )
    place.limits = lambda namespace: limits  # type: ignore[method-assign]
    returned: list[Any] = []
    homes: Any = SimpleNamespace(
        take_now=lambda namespace, kinds: 0,
        give_back=lambda namespace, kind, unused: returned.append((namespace, kind, unused)),
    )
    place.admission.homes = homes
    given_up, started = Run([("Do",)]), Run([("Do",)])
    for run in (given_up, started):
        place.admission.enqueue(cast(Any, run), 0)
    given_up.forgotten = True
    place.settle()
    assert returned == [("default", (pool,), True)]
    place.admission.call_ended(started.flights.pop(0).endpoint, Permit("default", (pool,)))
    assert returned[1:] == [("default", (pool,), False)]


def test_a_call_counts_from_when_it_was_given() -> None:
    place = Place()
    place.add(5)
    place.now = 70
    place.admission.enqueue(cast(Any, Run([("Do",)])), 0)
    place.now = 90
    place.settle()
    assert place.started == [70]


@pytest.mark.parametrize("state", ["closed", "half_open"])
def test_what_a_call_was_given_comes_back_where_starting_it_fails(state: str) -> None:
    place = Place()
    endpoint = place.add(5)
    place.become(endpoint, state)
    bad, good = Run([("Do",)]), Run([("Do",)])
    place.faulty = bad
    for run in (bad, good):
        place.enqueue(run, 0)
    place.pass_time(1_000)
    assert place.given_up == [bad]
    assert [run for run, _, _ in place.admitted] == [good]
    assert (place.admission.in_flight, endpoint.in_flight) == (1, 1)


def unreadable(_: int) -> Any:
    raise RuntimeError("a fault of ours")


def test_the_end_of_a_call_is_not_stopped_by_a_run_that_waits_alone_and_cannot_be_looked_at() -> None:
    place = Place()
    endpoint = place.add(1)
    good, bad, later = (Run([("Do",)]) for _ in range(3))
    place.enqueue(good, 0)
    place.enqueue(bad, 0)
    bad.data = SimpleNamespace(bounding_step=unreadable)
    place.end(good, 0)
    assert (place.given_up, endpoint.in_flight, place.admission.in_flight) == ([bad], 0, 0)
    place.enqueue(later, 0)
    assert [run for run, _, _ in place.admitted] == [good, later]


def test_a_run_that_cannot_be_looked_at_takes_no_other_out_of_their_queue() -> None:
    place = Place()
    place.add(1)
    good, bad, innocent = Run([("Do",)]), Run([("Do",)] * 70), Run([("Do",)])
    for run in (good, bad, innocent):
        place.enqueue(run, 0)
    for step in range(1, 70):
        place.enqueue(bad, step)
    bad.data = SimpleNamespace(bounding_step=unreadable)
    place.end(good, 0)
    assert [run for run, _, _ in place.admitted] == [good, innocent]


def test_a_queue_behind_an_open_circuit_keeps_no_step_that_took_its_fallback() -> None:
    place = Place()
    place.become(place.add(1), "open", 1 << 60)
    place.enqueue(Run([("Do",)]), 0)  # Has no fallback, and keeps the queue.
    for _ in range(1_000):
        run = Run([("Do", "DoElse")])
        place.enqueue(run, 0)
        place.admission.left(cast(Any, run))
        run.forgotten = True
    (queue,) = (queue for key, queue in place.admission._queues.by_key.items() if key.method == "Do")
    assert len(queue.queued) == 1
    assert len(queue.steps) < 100


def test_a_step_that_was_granted_a_call_and_queued_too_waits_no_more_once_it_has_started() -> None:
    place = Place()
    endpoint = place.add(1)
    run = Run([("Do",)])
    for _ in range(2):
        place.admission.enqueue(cast(Any, run), 0)  # The second finds no room.
    assert place.admission.queued_steps("default") == 1
    place.settle()
    assert place.admission.queued_steps("default") == 0
    # It failed, and waits for the end of its backoff, of which admission knows nothing.
    run.run.steps[0].state = StepState.READY
    del run.flights[0]
    place.admission.call_ended(endpoint, None)
    place.settle()
    assert (len(place.admitted), endpoint.in_flight) == (1, 0)


def test_a_run_at_which_nothing_can_be_looked_goes_and_those_behind_it_go_on() -> None:
    place = Place()
    place.add(1)
    runs = [Run([("Do",)]) for _ in range(4)]
    for run in runs:
        place.enqueue(run, 0)

    runs[1].data = SimpleNamespace(bounding_step=unreadable)
    for run in (runs[0], *runs[2:]):
        assert place.admitted[-1][0] is run
        place.end(run, 0)
    assert place.given_up == [runs[1]]
    assert place.admission.in_flight == 0
