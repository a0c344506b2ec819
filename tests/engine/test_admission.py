"""Admission: what it looks at stays the same however much there is, nobody starves, and no permit lies idle."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from baton.v1 import run_pb2

from orchestrator.domain.ids import EndpointKey
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import QueueReason
from orchestrator.engine.admission import Admission
from orchestrator.engine.catalogue_ports import EndpointRow, Reach
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.fitting import Pins
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.permits import Permit, Pool
from orchestrator.engine.queues import Grant
from orchestrator.engine.worklist import Worklist


class Circuit:
    """A circuit that is told its state, and counts how often it is asked."""

    def __init__(self, on_change: Any) -> None:
        self._on_change = on_change
        self.asked = 0
        self.until_time: int | None = None
        self._state = "closed"
        self._trial_taken = False

    @property
    def state(self) -> str:
        self.asked += 1
        return self._state

    def become(self, state: str, until_time: int | None = None) -> None:
        self._state, self.until_time, self._trial_taken = state, until_time, False
        self._on_change()

    def admit(self) -> Any:
        if self._state == "open" or self._trial_taken:
            return None
        self._trial_taken = self._state == "half_open"
        return SimpleNamespace(released=self._released)

    def _released(self) -> None:
        if self._trial_taken:
            self._trial_taken = False
            self._on_change()


class Run:
    """What admission sees of a run: `methods` by step, all of them ready."""

    def __init__(self, methods: Sequence[tuple[str, ...]], namespace: str = "default", priority: int = 0) -> None:
        self.key = SimpleNamespace(namespace=namespace, run_id=id(self))
        self.flights: dict[int, Any] = {}
        self.forgotten = False
        specs = [SimpleNamespace(targets=[SimpleNamespace(method=method) for method in each]) for each in methods]
        steps = [SimpleNamespace(target=0, target_attempts=0, state=StepState.READY, spec=spec) for spec in specs]
        self.run = SimpleNamespace(priority=priority, ended=False, paused=False, steps=steps)
        bounding = SimpleNamespace(priority=0, limits=())
        self.data = SimpleNamespace(
            pins=lambda step: Pins(("contract",)), bounding_step=lambda step: step, step=lambda step: bounding
        )
        self.limit_pools: dict[int, Any] = {}


class Still(Worklist):
    """A worklist that is worked off by hand: there is no loop."""

    def wake(self) -> None:
        pass


class Place:
    """Admission with a catalogue of one contract, without a driver, a database or workers."""

    def __init__(self, max_calls: int = 1_000_000, weights: Mapping[str, float] | None = None) -> None:
        self.now = 0
        self.timers: list[tuple[int, Any]] = []
        self.catalogue_looks = 0
        self.admitted: list[tuple[Any, int, Endpoint]] = []
        self.waited_for: list[QueueReason] = []
        self.groups_of = defaultdict[str, EndpointGroup](lambda: EndpointGroup("contract", lambda: self.now))
        self.endpoints: list[Endpoint] = []
        timers: Any = SimpleNamespace(at=self._at)
        clock: Any = SimpleNamespace(now=lambda: self.now)
        limits = EngineLimits(max_calls_in_flight=max_calls, namespace_weights=weights or {})
        self._worklist = Still(self._give_up)
        self.given_up: list[Any] = []
        self.faulty: Run | None = None
        self.started: list[int] = []
        self.admission = Admission(clock, timers, limits, self._worklist, self._admit, self._circuit_open)
        self.admission.catalogue = cast(Any, self)

    # What admission asks of the catalogue.

    def fitting_groups(self, namespace: str, pins: Pins, method: str) -> list[EndpointGroup]:
        self.catalogue_looks += 1
        return [self.groups_of[namespace]]

    def limits(self, namespace: str) -> None:
        return None

    def group_of(self, endpoint: Endpoint) -> EndpointGroup | None:
        group = self.groups_of[endpoint.key.namespace]
        return group if endpoint in group.endpoints else None

    # What the test does.

    def add(self, max_in_flight: int, namespace: str = "default") -> Endpoint:
        gateway: Any = SimpleNamespace(
            circuit=lambda key, on_change, now: Circuit(on_change), follow=lambda row, on_change: lambda: None
        )
        row = EndpointRow(
            EndpointKey(namespace, "worker", f"host:{len(self.endpoints)}"), "contract", False, 0, Reach()
        )
        endpoint = Endpoint(
            row,
            max_in_flight,
            gateway,
            self.admission.released,
            self.admission.endpoint_changed,
            lambda: self.now,
            NullObserver(),
        )
        self.endpoints.append(endpoint)
        self.groups_of[namespace].add(endpoint)
        self.admission.namespace_changed(namespace)
        self.settle()
        return endpoint

    def settle(self) -> None:
        self._worklist.work_off()
        self._worklist.due = False

    def become(self, endpoint: Endpoint, state: str, until_time: int | None = None) -> None:
        cast(Any, endpoint.circuit).become(state, until_time)
        self.settle()

    def enqueue(self, run: Run, step: int) -> None:
        self.admission.enqueue(cast(Any, run), step)
        self.settle()

    def end(self, run: Any, step: int) -> None:
        flight = run.flights.pop(step)
        run.run.steps[step].state = StepState.SUCCEEDED
        self.admission.call_ended(flight.endpoint, None)
        if flight.retried:
            self.admission.return_token((run.key.namespace, flight.retried))
        self.settle()

    def pass_time(self, until: int) -> None:
        self.now = until
        due, self.timers = [one for one in self.timers if one[0] <= until], [t for t in self.timers if t[0] > until]
        for _, fire in due:
            fire()
        self.settle()

    def wait(self, run: Run, step: int) -> Any:
        found = self.admission.wait_of(cast(Any, run), step)
        return None if found is None else found.kind

    def _at(self, due_time: int, fire: Any) -> Any:
        entry = (due_time, fire)
        self.timers.append(entry)
        return SimpleNamespace(cancel=lambda: entry in self.timers and self.timers.remove(entry))

    def _give_up(self, live: Any) -> None:
        live.forgotten = True
        self.given_up.append(live)
        self.admission.left(live)

    def _admit(self, live: Any, step: int, grant: Grant) -> bool:
        if live is self.faulty:
            raise RuntimeError("a fault of ours")
        self.waited_for.append(grant.waited_for)
        self.started.append(grant.time)
        live.flights[step] = SimpleNamespace(endpoint=grant.endpoint, retried="")
        live.run.steps[step].state = StepState.RUNNING
        self.admitted.append((live, step, grant.endpoint))
        return True

    def _circuit_open(self, live: Any, step: int) -> bool:
        if live.run.steps[step].target == 1:
            return False
        live.run.steps[step].target = 1
        self.admission.enqueue(live, step)
        return True


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
