"""Admission: which queued step goes to which endpoint, and why the others wait.

For each method (and the contracts that a run was checked against) there is one queue. Its head is admitted when an
endpoint serves the method, is healthy, has a permit free and its circuit gives leave; all in memory, in the same tick.
What is not admitted stays READY; the reason belongs to the queue and is never journaled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.v1 import run_pb2

from orchestrator.domain.states import StepState
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Clock, Ticket
from orchestrator.engine.timers import Timer, Timers


class QueueKey(NamedTuple):
    """Steps under one key can be called at the same endpoints."""

    namespace: str
    method: str
    contract_digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a queue does not move; `kind` is a WaitKind, `until_time` when it is looked at again."""

    kind: run_pb2.WaitKind.ValueType
    message: str
    until_time: int | None = None


@dataclass(slots=True)
class MethodQueue:
    """Queued steps of one key, oldest first. `queued` holds what is in `steps`, so that nothing is queued twice."""

    key: QueueKey
    steps: deque[tuple[LiveRun, int]] = field(default_factory=deque)
    queued: set[tuple[LiveRun, int]] = field(default_factory=set)
    wait: Wait | None = None
    timer: Timer | None = None


class Admission:
    """Queues steps and gives them to endpoints.

    `admit` is called for each admitted step with its endpoint and ticket, and tells whether it took them;
    `circuit_open` for a step whose every endpoint has an open circuit, and tells whether the step left the queue.
    """

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        max_calls_in_flight: int,
        admit: Callable[[LiveRun, int, Endpoint, Ticket], bool],
        circuit_open: Callable[[LiveRun, int], bool],
    ) -> None:
        self._clock, self._timers, self._max_calls = clock, timers, max_calls_in_flight
        self._admit, self._circuit_open = admit, circuit_open
        self._queues: dict[QueueKey, MethodQueue] = {}
        self._by_method: dict[tuple[str, str], set[QueueKey]] = {}
        self._dirty: deque[MethodQueue] = deque()
        self._pumping = False
        self.catalogue: Catalogue
        self.in_flight = 0
        self.paused = False
        """While draining: nothing is admitted."""

    def enqueue(self, live: LiveRun, step: int) -> None:
        """Queues a step that may start now, or a running one whose call is to be sent again."""
        key = self._key(live, step)
        if key not in self._queues and not self._pumping and self._start_at_once(key, live, step):
            return
        queue = self._queue(key)
        if (live, step) not in queue.queued:
            queue.queued.add((live, step))
            queue.steps.append((live, step))
        self._pump_soon(queue)

    def wait_of(self, live: LiveRun, step: int) -> Wait | None:
        """Tells why a queued step waits; None where it is in no queue."""
        queue = self._queues.get(self._key(live, step))
        if queue is None or (live, step) not in queue.queued:
            return None
        return queue.wait

    def released(self, endpoint: Endpoint) -> None:
        """Looks again at the queues that an endpoint serves."""
        for method in self._methods(endpoint):
            self.method_changed(endpoint.key.namespace, method)

    def method_changed(self, namespace: str, method: str) -> None:
        """Looks again at the queues of a method."""
        for key in tuple(self._by_method.get((namespace, method), ())):
            self._pump_soon(self._queues[key])

    def namespace_changed(self, namespace: str) -> None:
        """Looks again at every queue of a namespace: its catalogue changed."""
        for queue in [queue for key, queue in self._queues.items() if key.namespace == namespace]:
            self._pump_soon(queue)

    def call_ended(self, endpoint: Endpoint) -> None:
        """Takes back the permits of a call."""
        was_full = self.in_flight >= self._max_calls
        self.in_flight -= 1
        endpoint.give_back()
        if was_full:
            for queue in list(self._queues.values()):
                self._pump_soon(queue)

    def forget(self) -> None:
        """Drops every queue."""
        for queue in self._queues.values():
            if queue.timer is not None:
                queue.timer.cancel()
        self._queues.clear()
        self._by_method.clear()
        self._dirty.clear()

    # --- queues

    @staticmethod
    def _key(live: LiveRun, step: int) -> QueueKey:
        target = live.run.steps[step].target
        method = live.compiled.graph.steps[step].targets[target].method
        return QueueKey(live.key.namespace, method, live.compiled.contract_digests)

    def _queue(self, key: QueueKey) -> MethodQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = MethodQueue(key)
            self._by_method.setdefault((key.namespace, key.method), set()).add(key)
        return queue

    def _drop_if_empty(self, queue: MethodQueue) -> None:
        if queue.steps or self._queues.get(queue.key) is not queue:
            return
        if queue.timer is not None:
            queue.timer.cancel()
        del self._queues[queue.key]
        keys = self._by_method[queue.key.namespace, queue.key.method]
        keys.discard(queue.key)
        if not keys:
            del self._by_method[queue.key.namespace, queue.key.method]

    def _methods(self, endpoint: Endpoint) -> list[str]:
        namespace = endpoint.key.namespace
        return [
            method
            for other, method in self._by_method
            if other == namespace and endpoint in self.catalogue.endpoints(namespace, method)
        ]

    # --- the pump

    def _start_at_once(self, key: QueueKey, live: LiveRun, step: int) -> bool:
        """Admits a step that nobody waits before; most never need the queue that would be made for them. False where
        it must wait."""
        if not self._may_start(live, step):
            return True
        found = self._find(key)
        if isinstance(found, Wait):
            return False
        self._pumping = True
        try:
            self._give(live, step, *found)
            self._pump_dirty()
        finally:
            self._pumping = False
        return True

    def _pump_soon(self, queue: MethodQueue) -> None:
        """Pumps a queue; queues touched meanwhile are pumped after it, never inside it."""
        self._dirty.append(queue)
        if self._pumping:
            return
        self._pumping = True
        try:
            self._pump_dirty()
        finally:
            self._pumping = False

    def _pump_dirty(self) -> None:
        while self._dirty:
            self._pump(self._dirty.popleft())

    def _pump(self, queue: MethodQueue) -> None:
        while queue.steps:
            live, step = queue.steps[0]
            if not self._may_start(live, step) or self._key(live, step) != queue.key:
                self._pop(queue)
                continue
            found = self._find(queue.key)
            if isinstance(found, Wait):
                self._hold(queue, found)
                return
            self._pop(queue)
            self._give(live, step, *found)
        queue.wait = None
        self._drop_if_empty(queue)

    @staticmethod
    def _pop(queue: MethodQueue) -> None:
        queue.queued.discard(queue.steps.popleft())

    def _give(self, live: LiveRun, step: int, endpoint: Endpoint, ticket: Ticket) -> None:
        self.in_flight += 1
        if not self._admit(live, step, endpoint, ticket):
            ticket.released()
            self.call_ended(endpoint)

    @staticmethod
    def _may_start(live: LiveRun, step: int) -> bool:
        """Whether a step waits for a call; one that still has one is queued anew when that is gone."""
        if live.forgotten or live.run.ended or step in live.flights:
            return False
        return live.run.steps[step].state in (StepState.READY, StepState.RUNNING)

    def _find(self, key: QueueKey) -> tuple[Endpoint, Ticket] | Wait:
        """Chooses the least busy endpoint that can take a call now, or says why none can."""
        if self.paused:
            return Wait(run_pb2.WAIT_KIND_OWNER, "this replica is draining; another takes the run over")
        if self.in_flight >= self._max_calls:
            return Wait(run_pb2.WAIT_KIND_LIMIT, f"the replica has {self._max_calls} calls in flight, its limit")
        serving = self.catalogue.endpoints(key.namespace, key.method)
        free = [one for one in serving if one.is_free and self.catalogue.fits(one, key.contract_digests)]
        if len(free) > 1:
            # One without a connection is called where there is no other: its circuit decides then.
            free.sort(key=lambda one: (one.health == "unreachable", one.in_flight))
        for endpoint in free:
            ticket = endpoint.take()
            if ticket is not None:
                return endpoint, ticket
        return self._why_none(key, serving)

    def _why_none(self, key: QueueKey, serving: Sequence[Endpoint]) -> Wait:
        """Says why no endpoint can take a call of a method now."""
        fitting = [one for one in serving if self.catalogue.fits(one, key.contract_digests)]
        if not fitting:
            return self._nobody(key, bool(serving))
        able = [one for one in fitting if not one.draining and one.health != "not_serving"]
        if not able:
            names = ", ".join(sorted({one.key.worker for one in fitting}))
            states = {"draining" if one.draining else "NOT_SERVING" for one in fitting}
            state = " or ".join(sorted(states))
            text = f"every endpoint that serves {key.method} (worker {names}) is {state}"
            return Wait(run_pb2.WAIT_KIND_WORKER_NOT_SERVING, text)
        if all(one.circuit.state != "closed" for one in able):
            return self._all_open(key, able)
        limit = sum(one.max_in_flight for one in able)
        text = f"the endpoints that serve {key.method} have as many calls in flight as they take, {limit} in all"
        return Wait(run_pb2.WAIT_KIND_LIMIT, text)

    @staticmethod
    def _nobody(key: QueueKey, unfit: bool) -> Wait:
        if unfit:
            text = f"workers serve {key.method}, but with contracts that this run's revision cannot use"
        else:
            text = f"no registered worker serves {key.method}; register one with RegisterWorker"
        return Wait(run_pb2.WAIT_KIND_NO_WORKER, text)

    def _all_open(self, key: QueueKey, endpoints: list[Endpoint]) -> Wait:
        until_times = [time for one in endpoints if (time := one.circuit.until_time) is not None]
        until_time = min(until_times, default=None)
        addresses = ", ".join(sorted(one.key.address for one in endpoints)[:3])
        if until_time is None:
            text = f"the circuit of {addresses} is half-open: one trial call decides"
        else:
            text = f"the circuit of {addresses} is open after failed calls; a trial call follows"
        return Wait(run_pb2.WAIT_KIND_CIRCUIT_OPEN, text, until_time)

    def _hold(self, queue: MethodQueue, wait: Wait) -> None:
        queue.wait = wait
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if wait.until_time is not None:
            queue.timer = self._timers.at(wait.until_time, lambda: self._pump_soon(queue))
        if wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
            for live, step in list(queue.steps):
                if len(live.compiled.graph.steps[step].targets) > 1:
                    # Out of the queue first: a fallback may call the same method, and be queued here again.
                    queue.queued.discard((live, step))
                    if not self._circuit_open(live, step):
                        queue.queued.add((live, step))
            queue.steps = deque(item for item in queue.steps if item in queue.queued)
