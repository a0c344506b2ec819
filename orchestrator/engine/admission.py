"""Admission: which queued step goes to which endpoint, and why the others wait.

For each method (and the revision of the run, which decides which contracts fit) there is one queue. Its head is
admitted when an endpoint serves the method, is healthy, has a permit free and its circuit gives leave; all in memory,
in the same tick. What is not admitted stays READY; the reason belongs to the queue and is never journaled.

A permit that comes back goes to one queue, in turn. So each admission costs the same however many steps, queues and
endpoints there are; only a change of an endpoint's health or circuit, or of a catalogue, looks at all whom it concerns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from baton.v1 import run_pb2

from orchestrator.domain.states import StepState
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.fitting import Pins
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Clock
from orchestrator.engine.timers import Timer, Timers
from orchestrator.engine.worker_ports import Ticket


class QueueKey(NamedTuple):
    """Steps under one key can be called at the same endpoints."""

    namespace: str
    method: str
    pins: Pins


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a queue does not move; `kind` is a WaitKind, `until_time` when it is looked at again."""

    kind: run_pb2.WaitKind.ValueType
    message: str
    until_time: int | None = None


@dataclass(slots=True, eq=False)
class MethodQueue:
    """Queued steps of one key, oldest first. `queued` holds what is in `steps`, so that nothing is queued twice;
    `waits_for` the groups in whose line it stands."""

    key: QueueKey
    steps: deque[tuple[LiveRun, int]] = field(default_factory=deque)
    queued: set[tuple[LiveRun, int]] = field(default_factory=set)
    wait: Wait | None = None
    timer: Timer | None = None
    waits_for: list[EndpointGroup] = field(default_factory=list)


Line = dict[MethodQueue, None]
"""Queues that wait for the same, in the order in which they are served."""


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
        self._by_namespace: dict[str, Line] = {}
        self._lines: dict[EndpointGroup, Line] = {}
        self._line_of_replica: Line = {}  # Queues that wait for the replica's own limit.
        self._to_pump: deque[MethodQueue] = deque()
        self._to_serve: deque[EndpointGroup] = deque()
        self._working = False
        self.catalogue: Catalogue
        self.in_flight = 0
        self.paused = False
        """While draining: nothing is admitted."""

    def enqueue(self, live: LiveRun, step: int) -> None:
        """Queues a step that may start now, or a running one whose call is to be sent again."""
        key = self._key(live, step)
        if key not in self._queues and not self._working and self._start_at_once(key, live, step):
            return
        queue = self._queue(key)
        if (live, step) in queue.queued:
            return
        queue.queued.add((live, step))
        queue.steps.append((live, step))
        if queue.wait is None:
            self._pump_soon(queue)
        elif queue.wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
            # What the others wait for, this one does too; but it may have a fallback.
            self._offer_fallback(queue, live, step)

    def wait_of(self, live: LiveRun, step: int) -> Wait | None:
        """Tells why a queued step waits; None where it is in no queue."""
        queue = self._queues.get(self._key(live, step))
        if queue is None or (live, step) not in queue.queued:
            return None
        return queue.wait

    def released(self, endpoint: Endpoint) -> None:
        """Takes note of a permit that came back."""
        group = self.catalogue.group_of(endpoint)
        if group is not None:
            group.look(endpoint)
            if group in self._lines:
                self._to_serve.append(group)
                self._work()

    def endpoint_changed(self, endpoint: Endpoint) -> None:
        """Looks again at the queues that wait for an endpoint: its health, credit or circuit is another."""
        group = self.catalogue.group_of(endpoint)
        if group is not None:
            group.look(endpoint)
            self._to_pump.extend(self._lines.get(group, ()))
            self._work()

    def namespace_changed(self, namespace: str) -> None:
        """Looks again at every queue of a namespace: its catalogue changed."""
        self._to_pump.extend(self._by_namespace.get(namespace, ()))
        self._work()

    def call_ended(self, endpoint: Endpoint) -> None:
        """Takes back the permits of a call."""
        self.in_flight -= 1
        endpoint.give_back()
        self._work()

    def call_lent(self, endpoint: Endpoint) -> None:
        """Takes back the permits of a call that waits for what it has delegated."""
        endpoint.lent += 1
        self.call_ended(endpoint)

    def call_resumed(self, endpoint: Endpoint, *, over: bool) -> None:
        """Gives the permits of such a call again, whatever the limits, or not where it is `over` by now."""
        endpoint.lent -= 1
        if not over:
            self.in_flight += 1
            endpoint.in_flight += 1
        self.endpoint_changed(endpoint)

    def forget(self) -> None:
        """Drops every queue."""
        for queue in self._queues.values():
            if queue.timer is not None:
                queue.timer.cancel()
        for known in (self._queues, self._by_namespace, self._lines, self._line_of_replica):
            known.clear()
        self._to_pump.clear()
        self._to_serve.clear()

    # --- queues

    @staticmethod
    def _key(live: LiveRun, step: int) -> QueueKey:
        run_step = live.run.steps[step]
        method = run_step.spec.targets[run_step.target].method
        return QueueKey(live.key.namespace, method, live.data.pins(step))

    def _queue(self, key: QueueKey) -> MethodQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = MethodQueue(key)
            self._by_namespace.setdefault(key.namespace, {})[queue] = None
        return queue

    def _drop(self, queue: MethodQueue) -> None:
        self._leave_lines(queue)
        if self._queues.get(queue.key) is queue:
            del self._queues[queue.key]
            _leave(self._by_namespace, queue.key.namespace, queue)

    def _leave_lines(self, queue: MethodQueue) -> None:
        queue.wait = None
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        self._line_of_replica.pop(queue, None)
        for group in queue.waits_for:
            _leave(self._lines, group, queue)
        queue.waits_for = []

    # --- the pump

    def _start_at_once(self, key: QueueKey, live: LiveRun, step: int) -> bool:
        """Admits a step that nobody waits before; most never need the queue that would be made for them. False where
        it must wait."""
        if not self._may_start(live, step):
            return True
        if self.in_flight >= self._max_calls:
            return False
        found = self._find(key)
        if isinstance(found, Wait):
            return False
        self._working = True
        try:
            self._give(live, step, *found)
        finally:
            self._working = False
        self._work()
        return True

    def _pump_soon(self, queue: MethodQueue) -> None:
        self._to_pump.append(queue)
        self._work()

    def _work(self) -> None:
        """Pumps queues and serves groups; what is touched meanwhile comes after it, never inside it."""
        if self._working:
            return
        self._working = True
        try:
            while True:
                if self._to_pump:
                    self._pump(self._to_pump.popleft())
                elif self._to_serve:
                    self._serve(self._to_serve.popleft())
                elif self._line_of_replica and self.in_flight < self._max_calls:
                    queue = next(iter(self._line_of_replica))
                    self._leave_lines(queue)
                    self._pump(queue)
                else:
                    return
        finally:
            self._working = False

    def _serve(self, group: EndpointGroup) -> None:
        """Gives what a group can take to the queues that wait for it, one step each in turn."""
        line = self._lines.get(group)
        if not line or group.first() is None:
            return
        queue = next(iter(line))
        if self._line_of_replica:
            # Others wait for the replica's own limit: whoever takes a call now is the first of all of them.
            self._wait_for_replica(queue)
            return
        # To the end of the line first: what the pump finds out stands.
        del line[queue]
        line[queue] = None
        if self._pump(queue, 1):
            self._to_serve.append(group)

    def _pump(self, queue: MethodQueue, most: int | None = None) -> bool:
        """Admits steps of a queue until none is left, none can be, or `most` were; False where none can be."""
        admitted = 0
        while queue.steps:
            live, step = queue.steps[0]
            if not self._may_start(live, step) or self._key(live, step) != queue.key:
                self._pop(queue)
                continue
            if admitted == most:
                return True
            if self.in_flight >= self._max_calls and not self.paused:
                self._wait_for_replica(queue)
                return False
            found = self._find(queue.key)
            if isinstance(found, Wait):
                self._hold(queue, found)
                return False
            self._pop(queue)
            admitted += 1
            self._give(live, step, *found)
        self._drop(queue)
        return True

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
        """Whether a step waits for a call; one that still has one is queued anew when that is gone, and one of a paused
        run when that is resumed."""
        if live.forgotten or live.run.ended or step in live.flights:
            return False
        state = live.run.steps[step].state
        return state is StepState.RUNNING or (state is StepState.READY and not live.run.paused)

    def _find(self, key: QueueKey) -> tuple[Endpoint, Ticket] | Wait:
        """Takes the least busy endpoint that can take a call now, or says why none can."""
        if self.paused:
            return Wait(run_pb2.WAIT_KIND_OWNER, "this replica is draining; another takes the run over")
        groups = self._fitting(key)
        # One without a connection is called where there is no other: its circuit decides then.
        while candidates := [first for group in groups if (first := group.first()) is not None]:
            endpoint = min(candidates).endpoint
            group = self.catalogue.group_of(endpoint)
            ticket = endpoint.take()
            assert group is not None
            if ticket is not None:
                group.look(endpoint)
                return endpoint, ticket
            group.set_aside(endpoint)
        if not groups:
            return self._nobody(key)
        able, limit = sum(group.able for group in groups), sum(group.limit for group in groups)
        if not able:
            return self._none_serving(key, groups)
        tripped = sum(len(group.tripped) for group in groups)
        if tripped == able:
            return self._all_open([one for group in groups for one in group.tripped])
        text = f"the endpoints that serve {key.method} have as many calls in flight as they take, {limit} in all"
        return Wait(run_pb2.WAIT_KIND_LIMIT, text)

    def _fitting(self, key: QueueKey) -> list[EndpointGroup]:
        return [
            group
            for group in self.catalogue.groups(key.namespace, key.method)
            if self.catalogue.fits(group.contract_digest, key.pins, key.method)
        ]

    @staticmethod
    def _none_serving(key: QueueKey, groups: list[EndpointGroup]) -> Wait:
        fitting = [one for group in groups for one in group.endpoints]
        names = ", ".join(sorted({one.key.worker for one in fitting}))
        states = {"draining" if one.draining else "NOT_SERVING" for one in fitting}
        text = f"every endpoint that serves {key.method} (worker {names}) is {' or '.join(sorted(states))}"
        return Wait(run_pb2.WAIT_KIND_WORKER_NOT_SERVING, text)

    def _nobody(self, key: QueueKey) -> Wait:
        groups = self.catalogue.groups(key.namespace, key.method)
        if groups:
            why = self.catalogue.misfit(groups[0].contract_digest, key.pins, key.method)
            text = f"workers serve {key.method}, but with contracts that this run's revision cannot use: {why}"
        else:
            text = f"no registered worker serves {key.method}; register one with RegisterWorker"
        return Wait(run_pb2.WAIT_KIND_NO_WORKER, text)

    @staticmethod
    def _all_open(endpoints: list[Endpoint]) -> Wait:
        until_times = [time for one in endpoints if (time := one.circuit.until_time) is not None]
        until_time = min(until_times, default=None)
        addresses = ", ".join(sorted(one.key.address for one in endpoints)[:3])
        if until_time is None:
            text = f"the circuit of {addresses} is half-open: one trial call decides"
        else:
            text = f"the circuit of {addresses} is open after failed calls; a trial call follows"
        return Wait(run_pb2.WAIT_KIND_CIRCUIT_OPEN, text, until_time)

    def _hold(self, queue: MethodQueue, wait: Wait) -> None:
        """Lets a queue wait, in the lines of all that may end its wait."""
        waits_for = self._fitting(queue.key)
        if waits_for != queue.waits_for:
            self._leave_lines(queue)
            queue.waits_for = waits_for
            for group in waits_for:
                self._lines.setdefault(group, {})[queue] = None
        queue.wait = wait
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if wait.until_time is not None:
            queue.timer = self._timers.at(wait.until_time, lambda: self._pump_soon(queue))
        if wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
            for live, step in list(queue.steps):
                self._offer_fallback(queue, live, step)
            queue.steps = deque(item for item in queue.steps if item in queue.queued)
            if not queue.steps:
                self._drop(queue)

    def _wait_for_replica(self, queue: MethodQueue) -> None:
        """Lets a queue wait, at the end of the line, until the replica has fewer calls in flight than it takes."""
        self._leave_lines(queue)
        text = f"the replica has {self._max_calls} calls in flight, its limit"
        queue.wait = Wait(run_pb2.WAIT_KIND_LIMIT, text)
        self._line_of_replica[queue] = None

    def _offer_fallback(self, queue: MethodQueue, live: LiveRun, step: int) -> None:
        if len(live.run.steps[step].spec.targets) > 1:
            # Out of the queue first: a fallback may call the same method, and be queued here again.
            queue.queued.discard((live, step))
            if not self._circuit_open(live, step):
                queue.queued.add((live, step))


def _leave(lines: dict[Any, Line], key: object, queue: MethodQueue) -> None:
    """Takes a queue out of one of several lines, and the line away where it was the last."""
    line = lines.get(key)
    if line is not None:
        line.pop(queue, None)
        if not line:
            del lines[key]
