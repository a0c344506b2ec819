"""Admission: which queued step goes to which endpoint, and why the others wait.

For each method, with the revision of the run (which decides which contracts fit), the priority and the limits that a
step names, there is one queue. Its head is admitted when an endpoint serves the method, is healthy, has a permit free,
its circuit gives leave, and the limits that bound the call give a permit. What is not admitted stays READY; the reason
belongs to the queue and is never journaled. Calls that failed at one worker have queues of their own, which are served
as its retry budget allows.

A permit that comes back goes to one queue, in turn, those of higher priority first; what the replica as a whole can
take goes to the namespace that has the least of it for its weight. So each admission costs the same however many steps,
queues and endpoints there are; only a change of an endpoint's health or circuit, or of a catalogue, looks at all whom
it concerns.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from baton.v1 import run_pb2

from orchestrator.domain.states import StepState
from orchestrator.domain.waits import QueueReason
from orchestrator.engine import waits
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.choice import choose, fitting
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.groups import EndpointGroup, able_groups
from orchestrator.engine.homes import Homes
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.permits import Permit, Pool
from orchestrator.engine.ports import Clock
from orchestrator.engine.queues import Grant, MethodQueue, QueueKey, Queues, Worker, is_under, queue_key
from orchestrator.engine.quotas import NO_LIMITS, NamespaceLimits
from orchestrator.engine.retry_budget import RetryBudgets
from orchestrator.engine.timers import Timers
from orchestrator.engine.waits import Wait
from orchestrator.engine.wishes import keep_in_hand, take_permit, wish_nothing
from orchestrator.engine.worker_ports import Ticket
from orchestrator.engine.worklist import Kind, Worklist


class Admission:
    """Queues steps and gives them to endpoints.

    `admit` is called for each admitted step with what it was given, and tells whether it took that; `circuit_open` for
    one whose every endpoint has an open circuit, and tells whether it left.
    """

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        limits: EngineLimits,
        worklist: Worklist,
        admit: Callable[[LiveRun, int, Grant], bool],
        circuit_open: Callable[[LiveRun, int], bool],
    ) -> None:
        self._clock, self._timers, self._max_calls = clock, timers, limits.max_calls_in_flight
        self._admit, self._circuit_open = admit, circuit_open
        self._worklist, self._to_start = worklist, worklist.of(Kind.START, self._start)
        self._weights = limits.namespace_weights
        self._retries = RetryBudgets(clock, timers, limits, self._work)
        self._queues = Queues(self._load)
        self._to_pump: deque[MethodQueue] = deque()
        self._to_serve: deque[EndpointGroup] = deque()
        self._working = False
        self._line_of_replica = self._queues.of_replica
        self._in_flight_of: defaultdict[str, int] = defaultdict(int)
        self.catalogue: Catalogue
        self.homes: Homes
        self.on_room: Callable[[Endpoint], None] = lambda _: None
        """Told of an endpoint that may have room: calls that go on there come before those that start."""
        self.on_limits: Callable[[str], None] = lambda _: None
        """Told of a namespace whose limits may be others."""
        self.in_flight = 0
        self.paused = False
        """While draining: nothing is admitted."""

    def enqueue(self, live: LiveRun, step: int) -> None:
        """Takes a step that may start now, or a running one whose call is to be sent again: it is granted its call, or
        queued."""
        key = queue_key(live, step)
        queues = self._queues.by_key
        if not (self._working or (queues and key in queues)) and self._start_at_once(key, live, step):
            return
        queue = self._queues.make(key)
        if not self._queues.add(queue, (live, step)):
            return
        if queue.wait is None:
            self._pump_soon(queue)
        elif queue.wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
            # What the others wait for, this one does too; but it may have a fallback.
            self._offer_fallback(queue, live, step)

    @property
    def unsettled_steps(self) -> int:
        """Steps of any namespace that were granted their calls and are yet to start them, in this tick."""
        return len(self._to_start.items)

    def queued_steps(self, namespace: str) -> int:
        """Steps of a namespace that wait here."""
        return self._queues.steps_of.get(namespace, 0)

    def is_queued(self, live: LiveRun, step: int) -> bool:
        """Tells whether a step is in a queue."""
        queue = self._queues.by_key.get(queue_key(live, step))
        return queue is not None and (live, step) in queue.queued

    def wait_of(self, live: LiveRun, step: int) -> Wait | None:
        """Tells why a queued step waits; None where it is in no queue."""
        queue = self._queues.by_key.get(queue_key(live, step))
        if queue is None or (live, step) not in queue.queued or queue.wait is None:
            return None
        before = queue.before((live, step))
        if queue.wait is waits.FOR_PERMIT and queue.wish is not None:
            return waits.no_permit(self.homes.refusal(queue.wish), before)
        return waits.behind(queue.wait, before)

    def released(self, endpoint: Endpoint) -> None:
        """Takes note of a permit that came back."""
        self.on_room(endpoint)
        group = self.catalogue.group_of(endpoint)
        if group is not None:
            group.look(endpoint)
            if self._queues.of_group(group) is not None:
                self._to_serve.append(group)
                self._work()

    def endpoint_changed(self, endpoint: Endpoint) -> None:
        """Looks again at the queues that wait for an endpoint: its health, credit or circuit is another."""
        self.on_room(endpoint)
        group = self.catalogue.group_of(endpoint)
        if group is not None:
            group.look(endpoint)
            self._to_pump.extend(self._queues.of_group(group) or ())
            self._work()

    def namespace_changed(self, namespace: str) -> None:
        """Looks again at every queue of a namespace: its catalogue changed."""
        self.on_limits(namespace)
        self._to_pump.extend(self._queues.of_namespace(namespace))
        self._work()

    def call_ended(self, endpoint: Endpoint, permit: Permit | None, unused: bool = False) -> None:
        """Takes back the permits of a call, or of one that was granted and not made: `unused`."""
        self.in_flight -= 1
        namespace = endpoint.key.namespace
        self._in_flight_of[namespace] -= 1
        if self._line_of_replica.lines:
            self._line_of_replica.eased(namespace)
        # First the endpoint: those in its line were there before whoever gets the permit now.
        endpoint.give_back()
        if permit is not None:
            self.homes.give_back(permit.namespace, permit.kind, unused)
        self._work()

    def call_lent(self, endpoint: Endpoint, permit: Permit | None) -> None:
        """Takes back the permits of a call that waits for what it has delegated."""
        endpoint.lend(1)
        self.call_ended(endpoint, permit)

    def call_resumed(self, endpoint: Endpoint) -> None:
        """Counts such a call again, which has its permits of limits. In what the replica takes as a whole it counts at
        once: nobody can wait for that while others wait for it."""
        self.in_flight += 1
        self._in_flight_of[endpoint.key.namespace] += 1
        endpoint.in_flight += 1
        self.lent_call_ended(endpoint)

    def lent_call_ended(self, endpoint: Endpoint) -> None:
        """Takes note that such a call waits no more."""
        endpoint.lend(-1)
        self.endpoint_changed(endpoint)

    def left(self, live: LiveRun) -> None:
        """Takes the steps of a run out of the queues: it has ended, or is driven here no more."""
        for queue in self._queues.leave(live):
            self._drop(queue)

    def forget(self) -> None:
        """Drops every queue."""
        self._queues.clear()
        self._retries.clear()
        self._to_pump.clear()
        self._to_serve.clear()

    # --- queues

    def _load(self, namespace: str) -> float:
        return self._in_flight_of[namespace] / self._weights.get(namespace, 1.0)

    def _drop(self, queue: MethodQueue) -> None:
        self._queues.drop(queue)
        self._wish_nothing(queue)

    # --- the pump

    def _start_at_once(self, key: QueueKey, live: LiveRun, step: int) -> bool:
        """Grants a call to a step that nobody waits before; most never need the queue that would be made for them. True
        also where it wants none any more; False where it must wait."""
        if not self._may_start(live, step):
            return True
        if self.in_flight >= self._max_calls or (key.retried and not self._may_retry(key.budget)):
            return False
        permit, worker = None, None
        limits = self.limits(key.namespace, key.pools)
        if limits is not None:
            able = able_groups(fitting(self.catalogue, key))
            workers, kinds = limits.kinds(key.method, key.pools, (group.worker for group in able))
            if not able or limits.fault(key.pools) or self.paused:
                return False
            if any(kinds):
                kind = self.homes.take_now(key.namespace, kinds)
                if kind is None:
                    return False
                permit, worker = Permit(key.namespace, kinds[kind]), workers[kind]
        found = self._find(key, worker)
        if isinstance(found, Wait):
            if permit is not None:
                self.homes.give_back(permit.namespace, permit.kind, unused=True)
            return False
        self._give(live, step, Grant(key, *found, permit, QueueReason.NOTHING, self._clock.now()))
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
                elif self._retries.due:
                    self._retry(self._retries.due.popleft())
                elif self._line_of_replica.lines and self.in_flight < self._max_calls:
                    queue = self._line_of_replica.first()
                    self._queues.leave_lines(queue)
                    if self._pump(queue, 1) and queue.steps:
                        self._wait_for_replica(queue)  # For its next turn, after the others.
                else:
                    return
        finally:
            self._working = False

    def _serve(self, group: EndpointGroup) -> None:
        """Gives what a group can take to the queues that wait for it, one step each in turn."""
        line = self._queues.of_group(group)
        if line is None or group.first() is None:
            return
        queue = line.first()
        if self._line_of_replica.lines:
            # Others wait for the replica's own limit: whoever takes a call now is the first of all of them.
            self._wait_for_replica(queue)
            self._to_serve.append(group)  # Those in that line may have no use for it.
            return
        # To the end of the line first: what the pump finds out stands.
        line.next_turn(queue)
        if self._pump(queue, 1) or group not in queue.waits_for:
            self._to_serve.append(group)
        if queue.wait is waits.FOR_PERMIT and (queue.wish is None or not queue.wish.wanted):
            # It has what it waited for, and so asks nobody for the next permit; other groups may have room for that.
            self._queues.leave_lines(queue)
            self._to_pump.append(queue)

    def return_token(self, worker: Worker) -> None:
        """Gives the token of a retry that succeeded, or was not made, back to its budget, and to who waits for one."""
        self._retries.give_back(worker)
        if self._queues.of_retries(worker) is not None:
            self._retries.due.append(worker)
            self._work()

    def _may_retry(self, worker: Worker) -> bool:
        """Whether the retry budget of a worker has a token that nobody stands in line for."""
        return self._queues.of_retries(worker) is None and self._retries.has_token(worker)

    def _retry(self, worker: Worker) -> None:
        """Gives the tokens of a worker's retry budget to the queues that wait for them, one step each in turn."""
        line = self._queues.of_retries(worker)
        if line is not None and self._retries.has_token(worker):
            queue = line.first()
            self._queues.leave_lines(queue)
            if self._pump(queue, 1, has_token=True) and queue.steps:
                self._wait_for_budget(queue)  # For its next turn, after the others.
            self._retries.due.append(worker)
        elif line is not None:
            self._retries.look_later(worker)

    def _pump(self, queue: MethodQueue, most: int | None = None, has_token: bool = False) -> bool:
        """Admits steps of a queue until none is left, none can be, or `most` were; False where none can be. With
        `has_token` it is the turn of these retries."""
        admitted = 0
        while queue.steps:
            live, step = item = queue.steps[0]
            if item not in queue.queued or not self._waits_in(queue, live, step):
                self._queues.pop(queue, item)
                continue
            if admitted == most:
                return True
            if self.in_flight >= self._max_calls and not self.paused:
                self._wait_for_replica(queue)
                return False
            if queue.key.retried and not (has_token or self._may_retry(queue.key.budget)):
                self._wait_for_budget(queue)
                return False
            if not self._admit_first(queue, live, step):
                return False
            admitted += 1
        self._drop(queue)
        return True

    def _waits_in(self, queue: MethodQueue, live: LiveRun, step: int) -> bool:
        try:
            return self._may_start(live, step) and queue_key(live, step) == queue.key
        except Exception:
            self._worklist.fail(live)  # Here, as whoever has made the queue move is not to blame.
            return False

    def _admit_first(self, queue: MethodQueue, live: LiveRun, step: int) -> bool:
        """Admits the first step of a queue, or lets the queue wait."""
        while (found := self._take_for(queue)) is None:
            pass
        if isinstance(found, Wait):
            self._hold(queue, found)
            return False
        self._queues.pop(queue, (live, step))
        endpoint, ticket, permit = found
        self._give(live, step, Grant(queue.key, endpoint, ticket, permit, queue.waited_for, self._clock.now()))
        return True

    def _take_for(self, queue: MethodQueue) -> tuple[Endpoint, Ticket, Permit | None] | Wait | None:
        """Takes what the next call of a queue needs, or says why it waits; None where the circuits of one worker gave
        no leave: it is passed over from now on, and others may be able to take the call."""
        permit, worker = None, None
        limits = self.limits(queue.key.namespace, queue.key.pools)
        if limits is not None:
            taken = waits.DRAINING if self.paused else self._take_permit(queue, limits)
            if isinstance(taken, Wait):
                return taken
            permit, worker = taken
        elif queue.wish is not None:
            self._wish_nothing(queue)
        found = self._find(queue.key, worker)
        if not isinstance(found, Wait):
            return *found, permit
        if permit is not None and queue.wish is not None:
            self.homes.put_back(queue.wish, permit.kind)
        others = worker is not None and able_groups(fitting(self.catalogue, queue.key))
        return None if others else found

    def _give(self, live: LiveRun, step: int, grant: Grant) -> None:
        """Counts a call that may be made, and has it started."""
        key = grant.key
        self.in_flight += 1
        self._in_flight_of[key.namespace] += 1
        if key.retried:
            self._retries.take(key.budget)
        self._to_start.add((live, step, grant))

    def _start(self, live: LiveRun, step: int, grant: Grant) -> None:
        """Starts a call, where the step still wants this one."""
        key, started = grant.key, False
        try:
            started = self._may_start(live, step) and is_under(key, live, step) and self._admit(live, step, grant)
        finally:
            if not started:
                grant.ticket.released()
                if key.retried:
                    self.return_token(key.budget)
                self.call_ended(grant.endpoint, grant.permit, unused=True)
        if not started:
            return
        queue = self._queues.by_key.get(key) if self._queues.by_key else None
        if queue is not None:
            self._queues.take_out(queue, (live, step))  # It may have been queued twice, and has what it waited for.
        if key.retried:
            live.flights[step].retried = key.retried
        else:
            self._retries.called((key.namespace, grant.endpoint.key.worker))

    @staticmethod
    def _may_start(live: LiveRun, step: int) -> bool:
        """Whether a step waits for a call; one that still has one is queued anew when that is gone, and one of a paused
        run when that is resumed."""
        if live.forgotten or live.run.ended or step in live.flights:
            return False
        state = live.run.steps[step].state
        return state is StepState.RUNNING or (state is StepState.READY and not live.run.paused)

    # --- limits

    def limits(self, namespace: str, pools: Sequence[Pool]) -> NamespaceLimits | None:
        """The limits of a namespace, None where they cannot bound a step that names `pools`."""
        limits = self.catalogue.limits(namespace)
        return NO_LIMITS if limits is None and pools else limits

    def _take_permit(self, queue: MethodQueue, limits: NamespaceLimits) -> tuple[Permit | None, str | None] | Wait:
        return take_permit(self.catalogue, self.homes, queue, limits, self._granted)

    def _granted(self, queue: MethodQueue) -> None:
        """There is a permit for a queue: it waited for one, or waits for an endpoint now."""
        if queue.wait is waits.FOR_PERMIT:
            self._queues.leave_lines(queue)
        if queue.wait is None:
            self._pump_soon(queue)
        else:
            self._keep_in_hand(queue)

    def _keep_in_hand(self, queue: MethodQueue) -> None:
        if queue.wish is not None:
            keep_in_hand(self.homes, self._queues, queue, self.catalogue.limits(queue.namespace))

    def _wish_nothing(self, queue: MethodQueue) -> None:
        if queue.wish is not None:
            wish_nothing(self.homes, queue)

    # --- endpoints

    def _find(self, key: QueueKey, worker: str | None = None) -> tuple[Endpoint, Ticket] | Wait:
        return waits.DRAINING if self.paused else choose(self.catalogue, key, worker)

    def _hold(self, queue: MethodQueue, wait: Wait) -> None:
        """Lets a queue wait, in the lines of all that may end its wait."""
        groups = fitting(self.catalogue, queue.key)
        if wait is waits.FOR_PERMIT:
            # Those that can take a call now are not waited for, but the others are: theirs may be another limit.
            groups = [group for group in groups if group.first() is None]
            self._queues.leave_lines(queue)
        self._queues.stand(queue, groups)
        queue.wait, queue.waited_for = wait, wait.reason
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        look_time = waits.look_time(wait, groups)
        if look_time is not None:
            queue.timer = self._timers.at(look_time, lambda: self._pump_soon(queue))
        self._keep_in_hand(queue)
        if wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
            for live, step in list(queue.queued):
                self._offer_fallback(queue, live, step)
            queue.steps = deque(item for item in queue.steps if item in queue.queued)
            if not queue.steps:
                self._drop(queue)

    def _wait_for_replica(self, queue: MethodQueue) -> None:
        """Lets a queue wait, at the end of the line, until the replica has fewer calls in flight than it takes."""
        self._queues.leave_lines(queue)
        queue.wait, queue.waited_for = waits.replica_is_full(self._max_calls), QueueReason.REPLICA
        self._line_of_replica.add(queue)
        self._wish_nothing(queue)

    def _wait_for_budget(self, queue: MethodQueue) -> None:
        """Lets a queue wait, at the end of the line, until the worker that failed may be called again; where all
        circuits are open, for one of these: there may be a fallback for that."""
        groups = fitting(self.catalogue, queue.key)
        if groups and not able_groups(groups):
            wait = waits.none_free(queue.key.method, groups)
            if wait.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN:
                self._hold(queue, wait)
                return
        self._queues.stand_for_retries(queue)
        queue.wait, queue.waited_for = self._retries.wait(queue.key.budget), QueueReason.RETRY_BUDGET
        self._wish_nothing(queue)

    def _offer_fallback(self, queue: MethodQueue, live: LiveRun, step: int) -> None:
        if (live, step) in queue.queued and len(live.run.steps[step].spec.targets) > 1:
            # Out of the queue first: a fallback may call the same method, and be queued here again.
            number = self._queues.take_out(queue, (live, step))
            if not self._circuit_open(live, step) and not live.forgotten:
                self._queues.put_back(queue, (live, step), number)
            self._queues.tidy(queue)
