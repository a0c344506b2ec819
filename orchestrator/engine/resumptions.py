"""Resumptions: calls that wait for what they have delegated give their permits back, and take them again to go on.

A call that waits so holds nothing, so that it cannot be what its own steps wait for. It goes on once it has a permit of
every limit that bounds it, and its endpoint has room: it stands in the same lines as steps that are to start, and comes
before them at its endpoint. What may not enter: what the caller is told meanwhile (delegate.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from baton.v1 import run_pb2

from orchestrator.engine import waits
from orchestrator.engine.admission import Admission
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.homes import Wish
from orchestrator.engine.lines import Line
from orchestrator.engine.live import Flight, LiveRun
from orchestrator.engine.permits import Kind, Permit
from orchestrator.engine.waiters import Waiters
from orchestrator.engine.waits import Wait


class Resumption:
    """A call without permits, from its first wait until it goes on or is over.

    `waits` are the steps that its requests wait for, one each; while there is none, it wants to go on. `changed` wakes
    those who wait for that. Of `wish` and `wait` one is what it lacks.
    """

    __slots__ = ("changed", "flight", "live", "priority", "wait", "waits", "wish")

    def __init__(self, live: LiveRun, flight: Flight, priority: int) -> None:
        self.live, self.flight, self.priority = live, flight, priority
        self.waits: list[int] = []
        self.wish: Wish | None = None
        self.wait: Wait | None = None
        self.changed = Waiters()


class Resumptions:
    """The calls of this replica that have given their permits back."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        admission.on_room, admission.on_limits = self._room, self._look_again
        self._by_namespace: dict[str, dict[Resumption, None]] = {}
        """Those that want to go on."""
        self._by_endpoint: dict[Endpoint, Line[Resumption]] = {}
        """Those of them that wait for room at their endpoint."""
        self._in_hand: dict[Endpoint, Resumption] = {}
        """At each endpoint one may keep its permits until there is room: else they could be gone by then."""
        self._serving: set[Endpoint] = set()

    @contextmanager
    def lent(self, live: LiveRun, flight: Flight, step: int) -> Iterator[None]:
        """Gives the permits of a running call back for as long as it waits for `step`; after that it wants to go on."""
        one = flight.resumption
        if one is None:
            data = live.data
            priority = live.run.priority + data.step(data.bounding_step(flight.step)).priority
            one = flight.resumption = Resumption(live, flight, priority)
            self._admission.call_lent(flight.endpoint, flight.permit)
            flight.permit = None
            # Its handler is there, and asks. Where a circuit decides by this call, the steps that it waits for would
            # wait for its end.
            flight.ticket.succeeded()
        elif not one.waits:
            self._withdraw(one)
        one.waits.append(step)
        one.changed.wake()  # Who is held until it goes on is held no more.
        try:
            yield
        finally:
            one.waits.remove(step)
            if not one.waits and flight.resumption is one:
                self._by_namespace.setdefault(live.key.namespace, {})[one] = None
                self._try(one)

    def end(self, flight: Flight) -> None:
        """Takes back what a call holds that is over; where it holds nothing, it wants nothing any more."""
        one = flight.resumption
        if one is None:
            self._admission.call_ended(flight.endpoint, flight.permit)
            return
        flight.resumption = None
        self._withdraw(one)
        self._admission.lent_call_ended(flight.endpoint)
        one.changed.wake()

    def wait_of(self, live: LiveRun, step: int) -> Wait | None:
        """Tells why a running call is not at work; None where it is."""
        flight = live.flights.get(step)
        one = flight.resumption if flight is not None else None
        if one is None:
            return None
        if one.waits or one.wait is None:
            return waits.FOR_DELEGATED
        if one.wait is waits.FOR_PERMIT and one.wish is not None:
            return waits.no_permit(self._admission.homes.refusal(one.wish), 0)
        return one.wait

    # --- going on

    def _try(self, one: Resumption) -> None:
        """Lets a call go on, or lets it wait for what it lacks."""
        self._leave_line(one)
        admission, flight = self._admission, one.flight
        namespace, pools = one.live.key.namespace, one.live.limit_pools.get(flight.step, ())
        limits = admission.limits(namespace, pools)
        fault = limits.fault(pools) if limits is not None else ""
        kind: Kind = ()
        if limits is not None and not fault:
            worker = flight.endpoint.key.worker
            kind = limits.kind(flight.method, pools, worker if limits.bounds(worker) else "")
        if one.wish is not None and one.wish.kinds != (kind,):
            self._wish_nothing(one)
        if fault:
            one.wait = Wait(run_pb2.WAIT_KIND_LIMIT, fault)
            return
        if not flight.endpoint.takes_back:
            self._wait_for_room(one)
            return
        if kind:
            if one.wish is None:
                one.wish = Wish(namespace, (kind,), one.priority, lambda: self._try(one), resumes=True)
            if admission.homes.take(one.wish, 1) is None:
                one.wait = waits.FOR_PERMIT
                return
        flight.permit = Permit(namespace, kind) if kind else None
        flight.resumption = None
        self._withdraw(one)
        admission.call_resumed(flight.endpoint)
        one.changed.wake()

    def _wait_for_room(self, one: Resumption) -> None:
        endpoint = one.flight.endpoint
        one.wait = waits.endpoint_is_full(endpoint)
        self._by_endpoint.setdefault(endpoint, Line()).add(one)
        if one.wish is None:
            return
        if one.wish.in_hand and self._in_hand.setdefault(endpoint, one) is one:
            return
        self._wish_nothing(one)

    def _room(self, endpoint: Endpoint) -> None:
        """Lets those go on that wait for room at an endpoint, as far as there is any."""
        if endpoint not in self._by_endpoint or endpoint in self._serving:
            return
        self._serving.add(endpoint)
        try:
            while endpoint.takes_back and (line := self._by_endpoint.get(endpoint)) is not None:
                self._try(self._in_hand.get(endpoint) or line.first())
        finally:
            self._serving.discard(endpoint)

    def _look_again(self, namespace: str) -> None:
        """Looks again at all of a namespace: its limits may be others."""
        for one in list(self._by_namespace.get(namespace, ())):
            if one.flight.resumption is one and not one.waits:
                self._try(one)

    # --- wanting no more

    def _withdraw(self, one: Resumption) -> None:
        self._leave_line(one)
        self._wish_nothing(one)
        one.wait = None
        namespace = one.live.key.namespace
        wanting = self._by_namespace.get(namespace)
        if wanting is not None:
            wanting.pop(one, None)
            if not wanting:
                del self._by_namespace[namespace]

    def _leave_line(self, one: Resumption) -> None:
        endpoint = one.flight.endpoint
        line = self._by_endpoint.get(endpoint)
        if line is None:
            return
        line.remove(one)
        if self._in_hand.get(endpoint) is one:
            del self._in_hand[endpoint]
        if not line:
            del self._by_endpoint[endpoint]

    def _wish_nothing(self, one: Resumption) -> None:
        if one.wish is not None:
            wish, one.wish = one.wish, None
            self._admission.homes.withdraw(wish)
