"""Admission without a driver, a database or workers: a catalogue of one contract, and runs as far as it looks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from orchestrator.domain.ids import EndpointKey
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import QueueReason
from orchestrator.engine.admission import Admission
from orchestrator.engine.catalogue_ports import EndpointRow, Reach
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.fitting import Pins
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.homes import Homes
from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.ports import ReplicaSet
from orchestrator.engine.queues import Grant
from orchestrator.engine.quotas import NamespaceLimits
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
        timers: Any = SimpleNamespace(at=lambda due_time, fire: self._at(due_time, fire))
        clock: Any = SimpleNamespace(now=lambda: self.now)
        limits = EngineLimits(max_calls_in_flight=max_calls, namespace_weights=weights or {})
        self._worklist = Still(self._give_up)
        self.given_up: list[Any] = []
        self.faulty: Run | None = None
        self.started: list[int] = []
        self.admission = Admission(clock, timers, limits, self._worklist, self._admit, self._circuit_open)
        self.admission.catalogue = cast(Any, self)
        self.admission.homes = cast(Any, None)

    # What admission asks of the catalogue.

    def fitting_groups(self, namespace: str, pins: Pins, method: str) -> list[EndpointGroup]:
        self.catalogue_looks += 1
        return [self.groups_of[namespace]]

    def limits(self, namespace: str) -> NamespaceLimits | None:
        return None

    def group_of(self, endpoint: Endpoint) -> EndpointGroup | None:
        group = self._group_for(endpoint.key)
        return group if endpoint in group.endpoints else None

    # What the test does.

    def add(self, max_in_flight: int, namespace: str = "default") -> Endpoint:
        return self._added(max_in_flight, EndpointKey(namespace, "worker", f"host:{len(self.endpoints)}"), Circuit)

    def _added(self, max_in_flight: int, key: EndpointKey, circuit: Callable[[Any], Any]) -> Endpoint:
        gateway: Any = SimpleNamespace(
            circuit=lambda key, on_change, now: circuit(on_change), follow=lambda row, on_change: lambda: None
        )
        endpoint = Endpoint(
            EndpointRow(key, "contract", False, 0, Reach()),
            max_in_flight,
            gateway,
            self.admission.released,
            self.admission.endpoint_changed,
            lambda: self.now,
            NullObserver(),
        )
        self.endpoints.append(endpoint)
        self._group_for(key).add(endpoint)
        self.admission.namespace_changed(key.namespace)
        self.settle()
        return endpoint

    def _group_for(self, key: EndpointKey) -> EndpointGroup:
        return self.groups_of[key.namespace]

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
        self.admission.call_ended(flight.endpoint, flight.permit)
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
        live.flights[step] = SimpleNamespace(endpoint=grant.endpoint, permit=grant.permit, retried="")
        live.run.steps[step].state = StepState.RUNNING
        self.admitted.append((live, step, grant.endpoint))
        return True

    def _circuit_open(self, live: Any, step: int) -> bool:
        if live.run.steps[step].target == 1:
            return False
        live.run.steps[step].target = 1
        self.admission.enqueue(live, step)
        return True


class LimitedPlace(Place):
    """The same with limits, which are at home here, and with a group of endpoints for each worker."""

    def __init__(self, max_calls: int = 1_000_000) -> None:
        super().__init__(max_calls)
        self.rows: dict[str, LimitRow] = {}
        self.serves: dict[str, Sequence[str]] = {}
        self._group_of_worker: dict[str, EndpointGroup] = {}
        clock: Any = SimpleNamespace(now=lambda: self.now)
        timers: Any = SimpleNamespace(at=lambda due_time, fire: self._at(due_time, fire))
        network: Any = None
        self.homes = self.admission.homes = Homes(
            clock, timers, network, lambda namespace, name: self.rows.get(name), lambda namespace: None, 5.0
        )
        me = UUID(int=1)
        self.homes.begin(me)
        self.homes.set_replicas(ReplicaSet(1, {me: "here"}))

    # What admission asks of the catalogue.

    def limits(self, namespace: str) -> NamespaceLimits | None:
        return NamespaceLimits(self.rows.values()) if self.rows else None

    def fitting_groups(self, namespace: str, pins: Pins, method: str) -> list[EndpointGroup]:
        return [group for worker, group in self._group_of_worker.items() if method in self.serves[worker]]

    def groups(self, namespace: str, method: str) -> list[EndpointGroup]:
        return self.fitting_groups(namespace, Pins(()), method)

    def _group_for(self, key: EndpointKey) -> EndpointGroup:
        worker = key.worker
        group = self._group_of_worker.get(worker)
        if group is None:
            name = worker if NamespaceLimits(self.rows.values()).bounds(worker) else ""
            group = self._group_of_worker[worker] = EndpointGroup("contract", lambda: self.now, name)
        return group

    # What the test does.

    def limit(self, name: str, scope: int, target: str = "", most: int = 0, rate: Rate | None = None) -> None:
        """Applies a limit. One of a worker is to be there before the worker."""
        self.rows[name] = LimitRow("default", name, scope, target, most, rate, 0, 0)
        self.homes.own.limits_changed("default")
        self.admission.namespace_changed("default")
        self.settle()

    def add_worker(
        self, worker: str, max_in_flight: int, methods: Iterable[str], circuit: Callable[[Any], Any] = Circuit
    ) -> Endpoint:
        """Adds an endpoint of a worker, all of whose endpoints serve `methods`."""
        self.serves[worker] = tuple(methods)
        return self._added(max_in_flight, EndpointKey("default", worker, f"host:{len(self.endpoints)}"), circuit)

    def in_use(self, name: str) -> int:
        """Tells how many permits of a limit are lent."""
        return self.homes.own.book("default").use_of(name).get("", (0, 0))[0]
