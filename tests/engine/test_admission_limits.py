"""Admission under limits: each queue has its turn, a rate holds, and no step waits while a call could be made."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, cast

import pytest
from baton.v1 import limit_pb2

from orchestrator.domain.states import StepState
from orchestrator.engine.endpoints import Endpoint
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


def test_a_trial_at_one_worker_does_not_keep_steps_from_another() -> None:
    place = LimitedPlace(max_calls=4)
    place.limit("of-a", WORKER, "a", 5)
    place.limit("of-b", WORKER, "b", 5)
    tried = place.add_worker("a", 5, ("OnA", "Do"))
    place.add_worker("b", 5, ("OnB", "Do"))
    on_a, on_b, run = Run([("OnA",)]), Run([("OnB",)] * 3), Run([("Do",)])
    for step in range(3):
        place.enqueue(on_b, step)
    place.become(tried, "half_open")
    place.enqueue(on_a, 0)
    place.enqueue(run, 0)
    assert on_a.flights  # It decides, and takes its time.
    assert not run.flights  # The replica makes as many calls as it may.
    place.end(on_b, 0)
    assert run.flights


class Scenario:
    """Some workers, methods and limits, and runs whose steps wait, go on, end and are cancelled."""

    def __init__(self, seed: int, max_calls: int, circuits: bool) -> None:
        self.draw = draw = random.Random(seed)
        self.place = LimitedPlace(max_calls)
        self.circuits = circuits
        self.methods = [f"Do{number}" for number in range(4)]
        self.runs: list[Run] = []
        workers = [f"w{number}" for number in range(draw.randint(1, 3))]
        bounds = [(EVERYWHERE, "", 0.4, 4), *((WORKER, worker, 0.5, 3) for worker in workers)]
        for scope, target, likely, most in (*bounds, *((METHOD, method, 0.4, 3) for method in self.methods)):
            if draw.random() < likely:
                self.place.limit(f"of-{target or 'all'}", scope, target, draw.randint(1, most))
        for worker in workers:
            served = draw.sample(self.methods, draw.randint(1, 4))
            for _ in range(draw.randint(1, 2)):
                self.place.add_worker(worker, draw.randint(1, 3), served)

    def act(self) -> None:
        draw, place = self.draw, self.place
        action, running = draw.randint(0, 11), [run for run in self.runs if run.flights]
        if action <= 3:
            methods = [(draw.choice(self.methods),) for _ in range(draw.randint(1, 4))]
            self.runs.append(Run(methods, priority=draw.choice([0, 0, 5])))
            for step in range(len(methods)):
                place.enqueue(self.runs[-1], step)
        elif action <= 7 and running:
            run = draw.choice(running)
            place.end(run, draw.choice(list(run.flights)))
        elif action == 8 and self.runs:
            self._cancel(draw.choice(self.runs))
        elif action == 9 and self.circuits:
            state = draw.choice([("closed", None), ("open", 1 << 40), ("half_open", None)])
            place.become(draw.choice(place.endpoints), *state)
        elif action == 10:
            health = draw.choice(["serving", "serving", "not_serving"])
            draw.choice(place.endpoints)._changed(cast(Any, health), draw.choice([None, 0, 1, 5]))
            place.settle()
        elif action == 11 and place.rows:
            row = draw.choice(list(place.rows.values()))
            place.limit(row.name, row.scope, row.target, row.max_in_flight + 1)

    def _cancel(self, run: Run) -> None:
        run.forgotten = True
        self.place.admission.left(cast(Any, run))
        for step in list(run.flights):
            self.place.end(run, step)

    def end_all(self) -> None:
        for endpoint in self.place.endpoints:
            endpoint._changed("serving", None)
            self.place.become(endpoint, "closed")
        while running := [run for run in self.runs if run.flights]:
            self.place.end(running[0], next(iter(running[0].flights)))
            self.check()

    def waiting(self) -> list[str]:
        """The methods of the steps that wait, and that some worker serves."""
        steps = [step for run in self.runs if not run.forgotten for step in run.run.steps]
        served = {method for methods in self.place.serves.values() for method in methods}
        return [
            method
            for step in steps
            if step.state is StepState.READY and (method := step.spec.targets[0].method) in served
        ]

    def check(self) -> None:
        """Nothing is exceeded, and no step waits while a call could be made."""
        place = self.place
        for row in place.rows.values():
            assert place.in_use(row.name) <= row.max_in_flight
        if place.admission.in_flight >= place.admission._max_calls:
            return
        able = [endpoint for endpoint in place.endpoints if _is_able(endpoint)]
        for method in self.waiting():
            for endpoint in able:
                worker = endpoint.key.worker
                if method in place.serves[worker]:
                    bounds = [place.rows.get(f"of-{target}") for target in ("all", worker, method)]
                    full = [row for row in bounds if row is not None and place.in_use(row.name) >= row.max_in_flight]
                    assert full, f"a step of {method} waits, and {endpoint.key.address} of {worker} could take it"


def _is_able(endpoint: Endpoint) -> bool:
    circuit = cast(Any, endpoint.circuit)
    is_tried = circuit._state == "half_open" and circuit._trial_taken
    has_room = endpoint.in_flight < endpoint.max_in_flight
    return endpoint.health != "not_serving" and has_room and circuit._state != "open" and not is_tried


@pytest.mark.parametrize("seed", [*range(100), 551, 1085])
@pytest.mark.parametrize(("max_calls", "circuits"), [(1_000_000, False), (4, True), (6, True)])
def test_no_step_waits_while_limits_and_workers_have_room(max_calls: int, circuits: bool, seed: int) -> None:
    scenario = Scenario(seed, max_calls, circuits)
    for _ in range(120):
        scenario.act()
        scenario.check()
    scenario.end_all()
    assert not scenario.waiting()
    assert scenario.place.admission.in_flight == 0
    assert not any(scenario.place.in_use(name) for name in scenario.place.rows)


def test_calls_are_shared_by_workers_with_limits_while_a_queue_waits_for_another_limit() -> None:
    place = LimitedPlace()
    for worker in "ab":
        place.limit(f"of-{worker}", WORKER, worker, 50)
        place.add_worker(worker, 50, ("Do",))
    place.limit("rate", EVERYWHERE, rate=Rate(10, 1_000_000, 1))
    run = Run([("Do",)] * 60)
    for step in range(60):
        place.enqueue(run, step)
    for _ in range(40):
        place.pass_time(place.now + 100_001)
    started = Counter(endpoint.key.worker for _, _, endpoint in place.admitted)
    assert started.total() > 30
    assert abs(started["a"] - started["b"]) <= 2


def test_any_number_of_workers_can_be_passed_over_whose_trials_are_under_way() -> None:
    count = 1_200  # more than Python calls functions within each other
    place = LimitedPlace(max_calls=1)
    for number in range(count):
        place.limit(f"of-{number}", WORKER, f"w{number}", 5)
    limits = place.limits("default")
    place.limits = lambda _: limits  # type: ignore[method-assign]
    endpoints = [place.add_worker(f"w{number}", 5, ("Do",)) for number in range(count)]
    before, run = Run([("Do",)]), Run([("Do",)])
    place.enqueue(before, 0)
    for endpoint in endpoints:
        circuit: Any = endpoint.circuit
        circuit._state, circuit._trial_taken = "half_open", True
        place._group_for(endpoint.key).look(endpoint)
    place.enqueue(run, 0)
    place.end(before, 0)
    assert not run.flights
    place.become(endpoints[-1], "half_open")
    assert run.flights
