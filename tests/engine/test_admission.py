"""Admission: what it looks at stays the same however much there is, nobody starves, and no permit lies idle."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, cast

import pytest
from baton.v1 import run_pb2

from orchestrator.domain.waits import QueueReason
from tests.engine.admissions import Place, Run


@pytest.mark.parametrize("queues", [1, 10, 1_000])
def test_a_permit_that_comes_back_goes_to_one_queue(queues: int) -> None:
    place = Place()
    place.add(1)
    run = Run([(f"Do{step % queues}",) for step in range(2_000)])
    for step in range(2_000):
        place.enqueue(run, step)
    assert len(place.admitted) == 1
    looks = place.catalogue_looks

    for count in range(100):
        place.end(*place.admitted[-1][:2])
        assert len(place.admitted) == count + 2

    # Once to find the endpoint of the admitted step; a queue that waits on is not looked at.
    assert place.catalogue_looks - looks <= 100
    served = Counter(f"Do{step % queues}" for _, step, _ in place.admitted)
    assert max(served.values()) - min(served.values()) <= 1
    assert len(served) == min(queues, 101)


def test_what_a_step_waited_for_last_is_told_when_it_goes_on() -> None:
    place = Place(max_calls=2)
    run = Run([("Do",)] * 4)
    place.enqueue(run, 0)
    place.enqueue(run, 1)
    place.add(1)
    place.end(*place.admitted[-1][:2])
    place.add(10)
    for step in (2, 3):
        place.enqueue(run, step)
    place.end(*place.admitted[-1][:2])
    assert place.waited_for == [
        QueueReason.WORKER_NOT_SERVING,
        QueueReason.ENDPOINT,
        QueueReason.NOTHING,
        QueueReason.REPLICA,
    ]


def test_a_step_behind_others_that_wait_looks_at_nothing() -> None:
    place = Place()
    endpoint = place.add(1)
    run = Run([("Do",)] * 1_000)
    place.enqueue(run, 0)
    place.enqueue(run, 1)
    looks, asked = place.catalogue_looks, cast(Any, endpoint.circuit).asked
    for step in range(2, 1_000):
        place.enqueue(run, step)
    assert (place.catalogue_looks, cast(Any, endpoint.circuit).asked) == (looks, asked)
    assert place.wait(run, 999) == run_pb2.WAIT_KIND_LIMIT


@pytest.mark.parametrize("count", [5, 500])
def test_an_admission_looks_at_one_endpoint_of_many(count: int) -> None:
    place = Place()
    for _ in range(count):
        place.add(3)
    asked = sum(cast(Any, endpoint.circuit).asked for endpoint in place.endpoints)
    run = Run([("Do",)] * count * 2)
    for step in range(count * 2):
        place.enqueue(run, step)
    assert {endpoint.in_flight for endpoint in place.endpoints} == {2}
    now_asked = sum(cast(Any, endpoint.circuit).asked for endpoint in place.endpoints)
    assert now_asked - asked == count * 2


def test_queues_take_turns_at_the_limit_of_the_replica() -> None:
    place = Place(max_calls=2)
    for _ in range(3):
        place.add(100)
    run = Run([(f"Do{step % 3}",) for step in range(30)])
    for step in range(30):
        place.enqueue(run, step)
    assert place.wait(run, 29) == run_pb2.WAIT_KIND_LIMIT
    for ended in range(28):
        place.end(*place.admitted[ended][:2])
        assert place.admission.in_flight == 2
    for count in range(6, 30, 3):
        served = Counter(step % 3 for _, step, _ in place.admitted[:count])
        assert max(served.values()) - min(served.values()) <= 2, served


def test_steps_of_a_higher_priority_are_served_first_and_equals_in_turn() -> None:
    place = Place()
    place.add(1)
    runs = {name: Run([(f"Do{name}",)] * 3, priority=priority) for name, priority in (("a", 0), ("b", 5), ("c", 5))}
    for step in range(3):
        for run in runs.values():
            place.enqueue(run, step)
    while place.admission.in_flight:
        place.end(*place.admitted[-1][:2])
    names = [next(name for name, run in runs.items() if run is admitted) for admitted, _, _ in place.admitted]
    assert names == ["a", "b", "c", "b", "c", "b", "c", "a", "a"]


@pytest.mark.parametrize(("weight", "share"), [(1.0, 10), (3.0, 15), (1 / 3, 5)])
def test_a_flood_of_slow_calls_leaves_another_namespace_its_part(weight: float, share: int) -> None:
    place = Place(max_calls=20, weights={"quick": weight})
    place.add(1_000, "flood")
    place.add(1_000, "quick")
    flood, quick = Run([("Do",)] * 200, "flood"), Run([("Do",)] * 1_000, "quick")
    for step in range(200):
        place.enqueue(flood, step)
    for step in range(1_000):
        place.enqueue(quick, step)
    assert len(flood.flights) == 20
    for _ in range(20):
        # The calls of the flood end one by one, those of the other all at once.
        place.end(flood, next(iter(flood.flights)))
        for step in list(quick.flights):
            place.end(quick, step)
        assert place.admission.in_flight == 20
    assert len(quick.flights) == share
    assert place.admission.queued_steps("quick") == 1_000 - sum(1 for run, _, _ in place.admitted if run is quick)


@pytest.mark.parametrize("namespaces", [2, 500])
def test_a_call_that_ends_looks_at_one_namespace_of_many(namespaces: int) -> None:
    place = Place(max_calls=1)
    runs = []
    for number in range(namespaces):
        place.add(5, str(number))
        runs.append(Run([("Do",)] * 20, str(number)))
        for step in range(20):
            place.enqueue(runs[-1], step)
    looks = place.catalogue_looks
    for _ in range(20):
        place.end(*place.admitted[-1][:2])
    assert place.catalogue_looks - looks <= 2 * 20


def test_steps_that_wait_take_their_fallback_when_the_last_circuit_opens() -> None:
    place = Place()
    endpoint = place.add(1)
    run = Run([("Do", "Else")] * 3)
    for step in range(3):
        place.enqueue(run, step)
    place.become(endpoint, "open", 100)
    assert [step.target for step in run.run.steps] == [0, 1, 1]
    assert place.wait(run, 1) == run_pb2.WAIT_KIND_CIRCUIT_OPEN
    place.end(run, 0)
    assert len(place.admitted) == 1
    cast(Any, endpoint.circuit)._state = "half_open"  # As time alone makes it.
    place.pass_time(100)
    assert len(place.admitted) == 2


def test_an_open_circuit_is_tried_in_its_time_while_other_endpoints_are_full() -> None:
    place = Place()
    place.add(1)
    broken = place.add(1)
    run = Run([("Do",)] * 3)
    place.become(broken, "open", 100)
    place.enqueue(run, 0)
    place.enqueue(run, 1)
    assert place.wait(run, 1) == run_pb2.WAIT_KIND_LIMIT
    cast(Any, broken.circuit)._state = "half_open"  # As time alone makes it.
    place.pass_time(100)
    assert [endpoint for _, _, endpoint in place.admitted[1:]] == [broken]


@pytest.mark.parametrize("seed", range(150))
def test_no_step_waits_while_a_call_could_be_made(seed: int) -> None:
    draw = random.Random(seed)
    place = Place(max_calls=draw.choice([3, 1_000_000]))
    for _ in range(draw.randint(0, 3)):
        place.add(draw.randint(1, 3))
    run = Run([(f"Do{draw.randint(0, 3)}",) for _ in range(60)])
    waiting = list(range(60))
    for _ in range(200):
        action = draw.randint(0, 9)
        endpoint = draw.choice(place.endpoints) if place.endpoints else None
        if action <= 3 and waiting:
            place.enqueue(run, waiting.pop())
        elif action <= 6 and run.flights:
            place.end(run, draw.choice(list(run.flights)))
        elif action == 7 and endpoint is not None:
            endpoint._changed(draw.choice(["serving", "not_serving", "unreachable"]), draw.choice([None, 0, 1, 5]))
        elif action == 8 and endpoint is not None:
            place.become(endpoint, *draw.choice([("closed", None), ("open", 1 << 40), ("half_open", None)]))
        elif action == 9 and len(place.endpoints) < 5:
            place.add(draw.randint(1, 3))
        _require_no_idle_permit(place, run)
    for endpoint in place.endpoints:
        endpoint._changed("serving", None)
        place.become(endpoint, "closed")
    if place.endpoints:
        for step in waiting:
            place.enqueue(run, step)
        while run.flights:
            place.end(run, next(iter(run.flights)))
        assert sorted(step for _, step, _ in place.admitted) == list(range(60))
        assert place.admission.in_flight == sum(endpoint.in_flight for endpoint in place.endpoints) == 0


def _require_no_idle_permit(place: Place, run: Run) -> None:
    queued = [step for step in range(60) if place.wait(run, step) is not None]
    if place.admission.in_flight >= place.admission._max_calls:
        return
    able = [
        endpoint
        for endpoint in place.endpoints
        if endpoint.health != "not_serving"
        and endpoint.in_flight < endpoint.max_in_flight
        and (circuit := cast(Any, endpoint.circuit))._state != "open"
        and not (circuit._state == "half_open" and circuit._trial_taken)
    ]
    assert not (queued and able), (queued, [endpoint.key.address for endpoint in able])
