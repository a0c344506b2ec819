"""The simulated database: replicas, their leases, and the set of those that are alive.

As in `database.py` each method is one statement, which happens at one moment and whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.ports import LeaseLost, Renewal, ReplicaSet
from tests.simulation.tally import Tally


class Locked(Exception):
    """Another statement holds the row of the replica: this one waits. `wait` takes what to call once it is free."""

    def __init__(self, wait: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self.wait = wait


@dataclass(slots=True)
class Replica:
    """A row of `replicas`; `locks` are statements under way that hold it, `waiting` those that wait for that."""

    address: str
    lease_expire_time: int
    end_time: int | None = None
    locks: int = 0
    waiting: list[Callable[[], None]] = field(default_factory=list)
    active_runs: int | None = None
    renew_time: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a renewal tells of others, as its statement saw it when it began."""

    changes: Mapping[str, int]
    replicas: ReplicaSet
    loads: Mapping[UUID, int]


class Leases:
    """The tables of replicas and of catalogue versions. `now` is the clock, in microseconds since the Unix epoch."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.tally = Tally()
        self.replicas: dict[UUID, Replica] = {}
        self.generation = 1
        self.members: list[UUID] = []
        self.leave_time: int | None = None
        self.loss_time: int | None = None
        self.catalogues: dict[str, tuple[int, int]] = {}
        """Version and time of the last change, by namespace."""
        self.on_marked: Callable[[UUID], None] = lambda _: None
        """Told of each replica that is taken for dead."""

    def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        """Inserts a replica."""
        now = self.now()
        self.replicas[replica_id] = Replica(address, now + round(lease_seconds * 1_000_000))
        return Renewal(now, self.replicas[replica_id].lease_expire_time)

    def join_set(self, replica_id: UUID) -> None:
        """Takes a new replica into the set."""
        if replica_id not in self.members:
            self.members.append(replica_id)
            self.generation += 1

    def has_lease(self, replica_id: UUID) -> bool:
        """Whether a replica's lease goes on."""
        replica = self.replicas.get(replica_id)
        return replica is not None and replica.end_time is None and replica.lease_expire_time > self.now()

    def is_marked(self, replica_id: UUID) -> bool:
        """Whether a replica is marked, or unknown."""
        replica = self.replicas.get(replica_id)
        return replica is None or replica.end_time is not None

    def require_lease(self, replica_id: UUID) -> None:
        """Errors: LeaseLost, and DatabaseUnavailable where the lease is over and may be renewed."""
        if not self.has_lease(replica_id):
            raise LeaseLost() if self.is_marked(replica_id) else DatabaseUnavailable("the lease is over")

    def wait_for(self, replica_id: UUID) -> None:
        """Lets a statement wait that locks the row of its own replica while another does. Errors: Locked."""
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.locks:
            raise Locked(replica.waiting.append)

    def renew(
        self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None, before: Seen | None = None
    ) -> Renewal:
        """Extends a lease, also one that is over; `before` is what its statement saw, where it has waited since.
        Errors: LeaseLost."""
        self.wait_for(replica_id)
        if self.is_marked(replica_id):
            raise LeaseLost
        if not self.has_lease(replica_id):
            self.tally("leases renewed that were over")
        now = self.now()
        seen = before or self.see(now)
        replica = self.replicas[replica_id]
        replica.lease_expire_time = now + round(lease_seconds * 1_000_000)
        replica.active_runs, replica.renew_time = active_runs, now
        return Renewal(now, replica.lease_expire_time, seen.changes, seen.replicas, seen.loads)

    def see(self, since: int) -> Seen:
        """Reads what a renewal tells of others; of catalogues those that changed after a time."""
        rows = ((each, self.replicas[each]) for each in self.members if each in self.replicas)
        loads = {each: row.active_runs for each, row in rows if row.end_time is None and row.active_runs is not None}
        changes = {name: version for name, (version, time) in self.catalogues.items() if time > since}
        return Seen(changes, self.replica_set(), loads)

    def replica_set(self) -> ReplicaSet:
        """Reads the set of replicas."""
        members = {each: self.replicas[each].address for each in sorted(self.members) if each in self.replicas}
        return ReplicaSet(self.generation, members, self.leave_time, self.loss_time)

    def leave_set(self, replica_id: UUID) -> None:
        """Takes a replica that leaves in good order out of the set."""
        if replica_id in self.members:
            self.members.remove(replica_id)
            self.generation += 1
            self.leave_time = self.now()

    def release(self, replica_id: UUID) -> None:
        """Ends a lease at once."""
        self.wait_for(replica_id)
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.end_time is None:
            replica.end_time = self.now()
            replica.lease_expire_time = min(replica.lease_expire_time, self.now())

    def give_up(self, replica_id: UUID) -> None:
        """Ends a lease at once; the replica is marked as others are whose lease ran out."""
        self.wait_for(replica_id)
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.end_time is None:
            replica.end_time = now = self.now()
            replica.lease_expire_time = min(replica.lease_expire_time, now - 1)

    def end_dead(self, replica_id: UUID, mark_before: int | None = None) -> None:
        """Marks replicas whose lease is over, and was over by some time, but the one that asks and those that a
        statement under way holds."""
        now = self.now()
        end = now if mark_before is None else min(now, mark_before)
        for each, replica in self.replicas.items():
            over = replica.end_time is None and replica.lease_expire_time <= end
            if over and each != replica_id and not replica.locks:
                replica.end_time = now
                self.on_marked(each)

    def dead_members(self) -> list[UUID]:
        """Marked replicas that are in the set."""
        return [each for each in self.members if each in self.replicas and self.replicas[each].end_time is not None]

    def leave_dead(self) -> None:
        """Takes marked replicas out of the set."""
        dead = self.dead_members()
        if dead:
            self.members = [each for each in self.members if each not in dead]
            self.generation += 1
            self.leave_time = self.loss_time = self.now()

    def lock(self, replica_id: UUID) -> None:
        """Begins a statement under a lease, which is held until `unlock`. Errors: as of `require_lease`."""
        self.wait_for(replica_id)
        self.require_lease(replica_id)
        self.replicas[replica_id].locks += 1

    def unlock(self, replica_id: UUID) -> None:
        """Ends a statement under a lease."""
        replica = self.replicas[replica_id]
        replica.locks -= 1
        if not replica.locks:
            waiting, replica.waiting = replica.waiting, []
            for go_on in waiting:
                go_on()

    # --- the catalogue's version

    def raise_version(self, namespace: str) -> None:
        """Takes note of a change of a namespace's catalogue."""
        version, _ = self.catalogues.get(namespace, (0, 0))
        self.catalogues[namespace] = (version + 1, self.now())
