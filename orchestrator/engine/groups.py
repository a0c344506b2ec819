"""Groups of endpoints: which one takes the next call, found without looking at all of them.

The endpoints of a namespace that serve the same contract serve the same methods, so that each endpoint belongs to one
group, however many methods it has; those of a worker with a limit of its own are a group of their own. What may not
enter: queues, and why steps wait (admission.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.worker_ports import Ticket

SPARE_CANDIDATES = 32
"""Outdated candidates that are kept at least before they are cleared away."""

_numbers = itertools.count()


Candidate = tuple[bool, int, int, Endpoint]
"""An endpoint that can take a call, least first: whether it has no connection, its calls in flight, a number that puts
the one first that has been so for longest, and the endpoint."""


class EndpointGroup:
    """Endpoints of one contract. `look` is to be called with an endpoint after each change of it.

    `endpoints` holds all; of those that are neither draining nor NOT_SERVING, `able` counts how many there are, `limit`
    the calls that they take together, `room` how many of these are free, and `tripped` holds those whose circuit is not
    closed. `worker` is set where a limit bounds that worker, whose endpoints are then apart from those of others.
    `reserved` counts queues in line that have a permit of limits in hand, of at most `most_reserved`.
    """

    def __init__(self, contract_digest: str, now: Callable[[], int], worker: str = "") -> None:
        self.contract_digest, self.worker = contract_digest, worker
        self.endpoints: dict[Endpoint, None] = {}
        self.able = self.limit = self.room = self.reserved = 0
        self.tripped: dict[Endpoint, None] = {}
        self._now = now
        self._limits: dict[Endpoint, tuple[int, int]] = {}
        self._candidates: dict[Endpoint, Candidate] = {}
        self._order: list[Candidate] = []  # A heap; entries that are not in _candidates are outdated.
        self._trials: list[tuple[int, int, Endpoint]] = []  # A heap of when open circuits may be tried.
        self._trial_times: dict[Endpoint, int] = {}

    def add(self, endpoint: Endpoint) -> None:
        """Takes an endpoint in."""
        self.endpoints[endpoint] = None
        self.look(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        """Lets an endpoint go."""
        del self.endpoints[endpoint]
        self._set_limit(endpoint, None)
        for known in (self.tripped, self._candidates, self._trial_times):
            known.pop(endpoint, None)

    def look(self, endpoint: Endpoint) -> None:
        """Takes note of what an endpoint can take now."""
        if endpoint.draining or endpoint.health == "not_serving":
            self._set_limit(endpoint, None)
            self.tripped.pop(endpoint, None)
            self._candidates.pop(endpoint, None)
            return
        limit = endpoint.max_in_flight
        self._set_limit(endpoint, limit)
        state = endpoint.circuit.state
        if state == "closed":
            if self.tripped:
                self.tripped.pop(endpoint, None)
        else:
            self.tripped[endpoint] = None
            until_time = endpoint.circuit.until_time
            if until_time is not None and self._trial_times.get(endpoint) != until_time:
                self._trial_times[endpoint] = until_time
                heappush(self._trials, (until_time, next(_numbers), endpoint))
        if state == "open" or endpoint.in_flight >= limit:
            self._candidates.pop(endpoint, None)
            return
        candidate = (endpoint.health == "unreachable", endpoint.in_flight, next(_numbers), endpoint)
        self._candidates[endpoint] = candidate
        heappush(self._order, candidate)
        if len(self._order) > 2 * len(self._candidates) + SPARE_CANDIDATES:
            self._order = list(self._candidates.values())
            heapify(self._order)

    def set_aside(self, endpoint: Endpoint) -> None:
        """Passes over an endpoint, whose circuit gives no leave, until the next look at it."""
        self._candidates.pop(endpoint, None)

    def first(self) -> Candidate | None:
        """Returns the endpoint that should take the next call: one with a connection before one without, then the
        least busy."""
        if self._trials:
            self._look_at_trials()
        while self._order:
            candidate = self._order[0]
            if self._candidates.get(candidate[3]) is candidate:
                return candidate
            heappop(self._order)
        return None

    def _look_at_trials(self) -> None:
        """An open circuit becomes half-open by time alone, and tells nobody."""
        now = self._now()
        due = []
        while self._trials and self._trials[0][0] <= now:
            due.append(heappop(self._trials))
        for until_time, _, endpoint in due:
            if self._trial_times.get(endpoint) == until_time:
                del self._trial_times[endpoint]
                self.look(endpoint)

    @property
    def most_reserved(self) -> int:
        """Queues that may keep a permit in hand while they wait for an endpoint of the group: enough to be ready."""
        return max(self.limit // 10, 1)

    def _set_limit(self, endpoint: Endpoint, limit: int | None) -> None:
        known = self._limits.get(endpoint)
        room = 0 if limit is None or limit < endpoint.in_flight else limit - endpoint.in_flight
        if known is not None:
            self.room += room - known[1]
            if known[0] == limit:
                self._limits[endpoint] = limit, room
                return
            self.able -= 1
            self.limit -= known[0]
            del self._limits[endpoint]
        elif limit is not None:
            self.room += room
        if limit is not None:
            self._limits[endpoint] = limit, room
            self.able += 1
            self.limit += limit


def able_groups(groups: Sequence[EndpointGroup]) -> list[EndpointGroup]:
    """The groups that can take a call now, the least busy endpoint's first."""
    able = [(first, group) for group in groups if (first := group.first()) is not None]
    if len(able) > 1:
        able.sort(key=lambda one: one[0])
    return [group for _, group in able]


def take_least_busy(groups: Sequence[EndpointGroup], worker: str | None) -> tuple[Endpoint, Ticket] | None:
    """Takes the endpoint that is to take the next call, of one worker or any, with the leave of its circuit; None where
    none can. One without a connection is called where there is no other: its circuit decides then."""
    while (found := _least_busy(groups, worker)) is not None:
        endpoint, group = found
        ticket = endpoint.take()
        if ticket is not None:
            group.look(endpoint)
            return endpoint, ticket
        group.set_aside(endpoint)
    return None


def _least_busy(groups: Sequence[EndpointGroup], worker: str | None) -> tuple[Endpoint, EndpointGroup] | None:
    best, best_group = None, None
    for group in groups:
        if worker is None or group.worker == worker:
            first = group.first()
            if first is not None and (best is None or first < best):
                best, best_group = first, group
    return None if best is None or best_group is None else (best[3], best_group)
