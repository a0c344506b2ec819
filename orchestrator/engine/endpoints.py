"""Endpoints as one replica sees them: health, circuit, calls in flight. Every key begins with the namespace."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue_ports import EndpointRow
from orchestrator.engine.observer import Observer
from orchestrator.engine.worker_ports import Circuit, Health, Ticket, WorkerGateway


class Endpoint:
    """One address of a worker, with what this replica knows of it.

    `on_free` is called when a permit came back, `on_change` when its health, its credit or its circuit is another.
    """

    def __init__(
        self,
        row: EndpointRow,
        max_in_flight: int,
        gateway: WorkerGateway,
        on_free: Callable[[Endpoint], None],
        on_change: Callable[[Endpoint], None],
        now: Callable[[], int],
        observer: Observer,
    ) -> None:
        self.key: EndpointKey = row.key
        self.contract_digest = row.contract_digest
        self.draining = row.draining
        self._registered_max = max_in_flight
        self._credit: int | None = None
        self.create_time = row.create_time
        self.in_flight = 0
        self.lent = 0
        """Calls that wait for what they have delegated: they hold no permit here, but the worker still has them."""
        self.health: Health = "unknown"
        self.gone = False
        self._on_free, self._on_change, self._observer = on_free, on_change, observer
        self.circuit: Circuit = gateway.circuit(row.key, self._circuit_changed, now)
        self._gateway, self._reach = gateway, row.reach
        self._unfollow = gateway.follow(row, self._changed)

    def update(self, row: EndpointRow, max_in_flight: int) -> None:
        """Takes over what the catalogue now says."""
        self.contract_digest, self.draining = row.contract_digest, row.draining
        self._registered_max = max_in_flight
        if row.reach != self._reach:
            # It is reached in another way now, such as through the replica that its worker attached to anew.
            self._reach = row.reach
            self._unfollow()
            self._unfollow = self._gateway.follow(row, self._changed)

    @property
    def attached_replica(self) -> UUID | None:
        """The replica process that its worker is attached to; None where it is called at its own address."""
        return self._reach.attached_replica

    @property
    def max_in_flight(self) -> int:
        """Calls that the endpoint takes from this replica at a time: as registered, or fewer where it says so."""
        if self._credit is None:
            return self._registered_max
        return min(self._registered_max, max(0, self._credit - self.lent))

    @property
    def takes_back(self) -> bool:
        """Whether a call that waited for what it delegated can go on there: where it takes no new ones, such as while
        it drains, one at a time can."""
        return self.gone or self.in_flight < max(self.max_in_flight, 1)

    def take(self) -> Ticket | None:
        """Takes a permit and leave of the circuit for one call; None where the circuit refuses."""
        ticket = self.circuit.admit()
        if ticket is not None:
            self.in_flight += 1
        return ticket

    def give_back(self) -> None:
        """Returns the permit of a call that ended or was never made."""
        self.in_flight -= 1
        self._on_free(self)

    def lend(self, calls: int) -> None:
        """Counts calls more, or fewer where below zero, that wait for what they have delegated."""
        self.lent += calls
        self._gateway.lends(self.key, self.lent)

    def remove(self) -> None:
        """Stops following the endpoint: it left the catalogue. Calls in flight go on."""
        self.gone = True
        self._unfollow()

    def _changed(self, health: Health, credit: int | None) -> None:
        self.health, self._credit = health, credit
        self._on_change(self)

    def _circuit_changed(self) -> None:
        self._observer.circuit_changed(self.key, self.circuit.state)
        self._on_change(self)
