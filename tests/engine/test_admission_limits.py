"""Admission under limits: each queue has its turn, a rate holds, and no step waits while a call could be made."""

from __future__ import annotations

import pytest
from baton.v1 import limit_pb2

from orchestrator.engine.limit_ports import Rate
from tests.engine.admissions import LimitedPlace, Run

METHOD, WORKER, EVERYWHERE = (
    limit_pb2.LIMIT_SCOPE_METHOD,
    limit_pb2.LIMIT_SCOPE_WORKER,
    limit_pb2.LIMIT_SCOPE_NAMESPACE,
)


@pytest.mark.parametrize("first", [0, 1])
def test_a_queue_that_two_workers_serve_has_its_turn_at_either(first: int) -> None:
    place = LimitedPlace()
    for worker in "ab":
        place.limit(f"of-{worker}", WORKER, worker, 1)
        place.add_worker(worker, 10, (f"On{worker}", "Both"))
    one, other, both = Run([("Ona",)] * 20), Run([("Onb",)] * 20), Run([("Both",)], priority=50)
    for step in range(20):
        place.enqueue(one, step)
        place.enqueue(other, step)
    place.enqueue(both, 0)
    assert not both.flights
    # Which of the two workers is the less busy one changes each time.
    place.end((one, other)[first], 0)
    place.end((other, one)[first], 0)
    assert both.flights


def test_a_rate_holds_for_queues_that_wait_for_an_endpoint_meanwhile() -> None:
    place = LimitedPlace()
    place.limit("slow", METHOD, "Rated", rate=Rate(1, 1_000_000, 1))
    place.add_worker("w", 100, ("Long", "Rated"))
    rated, long = [Run([("Rated",)] * 3, priority=number) for number in range(11)], Run([("Long",)] * 99)
    for run in rated:
        place.enqueue(run, 0)
    for step in range(99):
        place.enqueue(long, step)
    for _ in range(60):
        place.pass_time(place.now + 1_000_001)
    assert len(place.admitted) == 100  # The endpoint is full, and was for a minute.
    for step in range(99):
        place.end(long, step)
    assert len(place.admitted) == 101
    place.pass_time(place.now + 1_000_001)
    assert len(place.admitted) == 102


def test_who_waited_for_a_permit_of_one_worker_and_got_one_of_another_asks_again() -> None:
    place = LimitedPlace()
    place.limit("of-a", WORKER, "a", 5)
    place.limit("of-b", WORKER, "b", 1)
    place.add_worker("a", 1, ("OnA", "Do"))
    place.add_worker("b", 5, ("OnB", "Do"))
    on_a, on_b, run = Run([("OnA",)]), Run([("OnB",)]), Run([("Do",)] * 2)
    for each, step in ((on_a, 0), (on_b, 0), (run, 0), (run, 1)):
        place.enqueue(each, step)
    assert not run.flights  # One worker is full, and the limit of the other is used up.
    place.end(on_a, 0)
    assert list(run.flights) == [0]
    place.end(on_b, 0)
    assert list(run.flights) == [0, 1]
