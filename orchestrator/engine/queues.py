"""Queues of steps that may start, and the lines in which they wait. What may not enter: which step goes where."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.domain.waits import QueueReason
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.fitting import Pins
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.homes import Wish
from orchestrator.engine.lines import Line, SharedLine
from orchestrator.engine.live import LiveRun
from orchestrator.engine.permits import Permit, Pool
from orchestrator.engine.timers import Timer
from orchestrator.engine.waits import Wait
from orchestrator.engine.worker_ports import Ticket

Item = tuple[LiveRun, int]
"""A step of a run."""

Worker = tuple[str, str]
"""A namespace and a worker in it."""

SPARE_STEPS = 64
"""Steps that wait no more and are kept in a queue at least before it is cleared of them."""


class QueueKey(NamedTuple):
    """Steps under one key can be called at the same endpoints, and count in the same limits. `retried` is the worker at
    which the attempt before failed, whose retry budget the next one counts in; empty where none did."""

    namespace: str
    method: str
    pins: Pins
    priority: int = 0
    pools: tuple[Pool, ...] = ()
    retried: str = ""

    @property
    def budget(self) -> Worker:
        """Whose retry budget these steps count in."""
        return self.namespace, self.retried


class Grant(NamedTuple):
    """What a step was given for its call: an endpoint with the ticket of its circuit, a permit of the limits that bound
    it, and when, by which rates count. `waited_for` is what it waited for last."""

    key: QueueKey
    endpoint: Endpoint
    ticket: Ticket
    permit: Permit | None
    waited_for: QueueReason
    time: int


def queue_key(live: LiveRun, step: int) -> QueueKey:
    """The key of a step's next call, as the run stands."""
    run_step, data = live.run.steps[step], live.data
    bounding = data.step(data.bounding_step(step))
    return QueueKey(
        live.key.namespace,
        run_step.spec.targets[run_step.target].method,
        data.pins(step),
        live.run.priority + bounding.priority,
        live.limit_pools.get(step, ()) if bounding.limits else (),
        run_step.retried_worker if run_step.target_attempts else "",
    )


def is_under(key: QueueKey, live: LiveRun, step: int) -> bool:
    """Tells whether a step that was queued under `key` would be so again. The rest of its key never changes."""
    run_step = live.run.steps[step]
    retried = run_step.retried_worker if run_step.target_attempts else ""
    same_pools = not key.pools or live.limit_pools.get(step) == key.pools
    return same_pools and retried == key.retried and run_step.spec.targets[run_step.target].method == key.method


@dataclass(slots=True, eq=False)
class MethodQueue:
    """Queued steps of one key, oldest first. `queued` holds those that wait, so that nothing is queued twice, with how
    many were queued before; `steps` may have some that wait no more. `waits_for` holds the groups in whose line it
    stands; `wish` what it wants of limits, and `reserves` whether it has a permit in hand while it waits for an
    endpoint; `waited_for` is what it waited for last.
    """

    key: QueueKey
    steps: deque[Item] = field(default_factory=deque)
    queued: dict[Item, int] = field(default_factory=dict)
    count: int = 0
    wait: Wait | None = None
    timer: Timer | None = None
    waits_for: list[EndpointGroup] = field(default_factory=list)
    wish: Wish | None = None
    reserves: bool = False
    waited_for: QueueReason = QueueReason.NOTHING

    @property
    def priority(self) -> int:
        """Those with higher ones come first."""
        return self.key.priority

    @property
    def namespace(self) -> str:
        """The namespace of its steps."""
        return self.key.namespace

    def before(self, item: Item) -> int:
        """Steps that came before one and may still be queued; one that ended otherwise counts until it is passed."""
        number = self.queued[item]
        return max(number - self.queued.get(self.steps[0], number), 0)


class Queues:
    """The queues of a replica: by key, by namespace, and in line for groups of endpoints and for the replica itself.

    `load` tells how much of the replica a namespace has for its weight.
    """

    def __init__(self, load: Callable[[str], float]) -> None:
        self.by_key: dict[QueueKey, MethodQueue] = {}
        self._by_namespace: dict[str, Line[MethodQueue]] = {}
        self._by_group: dict[EndpointGroup, Line[MethodQueue]] = {}
        self._by_retried: dict[Worker, Line[MethodQueue]] = {}
        self.of_replica: SharedLine[MethodQueue] = SharedLine(load)
        """Those that wait for the replica's own limit."""
        self.steps_of: Counter[str] = Counter()
        """Queued steps by namespace."""
        self._of_run: dict[LiveRun, dict[tuple[MethodQueue, int], None]] = {}

    def make(self, key: QueueKey) -> MethodQueue:
        """The queue of a key, a new one where there is none."""
        queue = self.by_key.get(key)
        if queue is None:
            queue = self.by_key[key] = MethodQueue(key)
            _line(self._by_namespace, key.namespace).add(queue)
        return queue

    def drop(self, queue: MethodQueue) -> None:
        """Lets a queue go."""
        self.leave_lines(queue)
        if self.by_key.get(queue.key) is queue:
            del self.by_key[queue.key]
            _leave(self._by_namespace, queue.key.namespace, queue)

    def clear(self) -> None:
        """Lets all go, with their steps."""
        for queue in self.by_key.values():
            if queue.timer is not None:
                queue.timer.cancel()
            queue.steps.clear()
            queue.queued.clear()
        for known in (self.by_key, self._by_namespace, self._by_group, self._by_retried, self.of_replica):
            known.clear()
        self.steps_of.clear()
        self._of_run.clear()

    # --- steps

    def add(self, queue: MethodQueue, item: Item) -> bool:
        """Puts a step at the end of a queue; False where it is in it already."""
        if item in queue.queued:
            return False
        queue.steps.append(item)
        self.put_back(queue, item, queue.count)
        queue.count += 1
        return True

    def pop(self, queue: MethodQueue, item: Item) -> None:
        """Takes a step out of a queue, where it is still the first: a fault of its run may have taken it out before."""
        if queue.steps and queue.steps[0] == item:
            queue.steps.popleft()
            self.take_out(queue, item)

    def take_out(self, queue: MethodQueue, item: Item) -> int:
        """Notes that a step is queued no more; returns its number, for `put_back`."""
        number = queue.queued.pop(item, None)
        if number is None:
            return queue.count
        queued = self._of_run[item[0]]
        del queued[queue, item[1]]
        if not queued:
            del self._of_run[item[0]]
        namespace = queue.key.namespace
        self.steps_of[namespace] -= 1
        if not self.steps_of[namespace]:
            del self.steps_of[namespace]
        return number

    def put_back(self, queue: MethodQueue, item: Item, number: int) -> None:
        """Notes that a step is queued after all."""
        queue.queued[item] = number
        self.steps_of[queue.key.namespace] += 1
        self._of_run.setdefault(item[0], {})[queue, item[1]] = None

    def leave(self, live: LiveRun) -> list[MethodQueue]:
        """Takes the steps of a run out of every queue; returns the queues that are empty now."""
        emptied = []
        for queue, step in list(self._of_run.get(live, ())):
            self.take_out(queue, (live, step))
            if not queue.queued:
                queue.steps.clear()
                emptied.append(queue)
            else:
                self.tidy(queue)
        return emptied

    @staticmethod
    def tidy(queue: MethodQueue) -> None:
        """Clears a queue of steps that wait no more, where they are many."""
        if len(queue.steps) > 2 * len(queue.queued) + SPARE_STEPS:
            queue.steps = deque(item for item in queue.steps if item in queue.queued)

    # --- lines

    def of_namespace(self, namespace: str) -> Iterable[MethodQueue]:
        """The queues of a namespace, the highest priority first."""
        return self._by_namespace.get(namespace, ())

    def of_group(self, group: EndpointGroup) -> Line[MethodQueue] | None:
        """The line for a group of endpoints, None where nobody stands in it."""
        return self._by_group.get(group)

    def of_retries(self, worker: Worker) -> Line[MethodQueue] | None:
        """The line for the retry budget of a worker, None where nobody stands in it."""
        return self._by_retried.get(worker)

    def stand_for_retries(self, queue: MethodQueue) -> None:
        """Puts a queue into the line for the retry budget of its worker, and out of others."""
        self.leave_lines(queue)
        _line(self._by_retried, queue.key.budget).add(queue)

    def stand(self, queue: MethodQueue, groups: Sequence[EndpointGroup]) -> None:
        """Puts a queue into the lines for groups, and out of others; it keeps its places where they are the same."""
        if groups == queue.waits_for:
            return
        self.leave_lines(queue)
        queue.waits_for = list(groups)
        for group in groups:
            _line(self._by_group, group).add(queue)

    def reserve(self, queue: MethodQueue, wanted: bool) -> bool:
        """Lets a queue that stands in the lines for groups keep a permit in hand until its turn, where that is wanted;
        False where as many do as may."""
        if queue.reserves and not wanted:
            self._release(queue)
        elif wanted and not queue.reserves:
            queue.reserves = all(group.reserved < group.most_reserved for group in queue.waits_for)
            for group in queue.waits_for:
                group.reserved += queue.reserves
        return queue.reserves

    @staticmethod
    def _release(queue: MethodQueue) -> None:
        for group in queue.waits_for:
            group.reserved -= queue.reserves
        queue.reserves = False

    def leave_lines(self, queue: MethodQueue) -> None:
        """Takes a queue out of every line: it waits no more."""
        queue.wait = None
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        self.of_replica.remove(queue)
        if queue.key.retried:
            _leave(self._by_retried, queue.key.budget, queue)
        self._release(queue)
        for group in queue.waits_for:
            _leave(self._by_group, group, queue)
        queue.waits_for = []


def _line(lines: dict[Any, Line[MethodQueue]], key: object) -> Line[MethodQueue]:
    line = lines.get(key)
    if line is None:
        line = lines[key] = Line()
    return line


def _leave(lines: dict[Any, Line[MethodQueue]], key: object, queue: MethodQueue) -> None:
    """Takes a queue out of one of several lines, and the line away where it was the last."""
    line = lines.get(key)
    if line is not None:
        line.remove(queue)
        if not line:
            del lines[key]
