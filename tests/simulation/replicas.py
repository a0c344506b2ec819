"""The store of replicas over the simulated database: leases, and looks for what is to be taken over.

What a replica knows of where there is nothing is the product's own (postgres/known.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import ParkedRun, Renewal, RunOwner, RunRow
from orchestrator.postgres import known
from orchestrator.postgres.known import Known
from tests.simulation.database import Database
from tests.simulation.leases import Locked, Seen

if TYPE_CHECKING:
    from tests.simulation.stores import Link

T = TypeVar("T")
S = TypeVar("S")


def _as_it_began(database: Database, look: Callable[[], S], carry_out: Callable[[S | None], T]) -> Callable[[], T]:
    """A statement that locks a row first: what it has seen of others is as it was when it began, also where it had to
    wait. Rows that it changes are looked at again."""
    seen: list[S] = []

    def begin() -> T:
        is_past = bool(seen) and seen[0] != look()
        try:
            answer = carry_out(seen[0] if seen else None)
        except Locked:
            if not seen:
                seen.append(look())
            raise
        database.tally("statements gone by the past", is_past)
        return answer

    return begin


@dataclass(frozen=True, slots=True)
class _Statements:
    """Implements known.Statements for one look."""

    database: Database
    link: Link
    replica_id: UUID
    limit: int
    lead_seconds: float = 0.0

    async def marked(self, emptied: Collection[UUID]) -> list[UUID]:
        """See Statements.marked."""
        return await self.link.ask("marked", lambda: self.database.marked(emptied))

    async def emptied(self, marked: Collection[UUID]) -> list[UUID]:
        """See Statements.emptied."""
        return await self.link.ask("emptied", lambda: self.database.emptied(marked))

    async def adopt(self, marked: Collection[UUID]) -> list[RunRow]:
        """See Statements.adopt."""
        database, limit = self.database, self.limit
        return await self.link.ask(
            "adopt",
            _as_it_began(
                database,
                lambda: database.orphaned(limit, marked),
                lambda seen: database.adopt(self.replica_id, limit, marked, seen),
            ),
        )

    async def oldest_parked(self, since: int | None, margin_seconds: float) -> int:
        """See Statements.oldest_parked."""
        return await self.link.ask("oldest_parked", lambda: self.database.oldest_parked(since, margin_seconds))

    async def wake(self, since: int | None) -> list[RunRow]:
        """See Statements.wake."""
        database, limit, lead_seconds = self.database, self.limit, self.lead_seconds
        return await self.link.ask(
            "wake",
            _as_it_began(
                database,
                lambda: database.due(limit, lead_seconds, since),
                lambda seen: database.wake(self.replica_id, limit, lead_seconds, since, seen),
            ),
        )


class SimulatedReplicas:
    """ReplicaStore. `on_claimed` holds up the answer that gives a run."""

    def __init__(self, database: Database, link: Link, on_claimed: Callable[[], Awaitable[None]] | None = None) -> None:
        self._database, self._link, self._on_claimed = database, link, on_claimed
        self._known = Known()
        self._reported: dict[str, int] = {}
        self._heard: tuple[UUID, int] | None = None

    async def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        """See ReplicaStore.register."""
        database = self._database
        renewal = await self._link.ask("register", lambda: database.register(replica_id, address, lease_seconds))
        await self._link.ask("join_set", lambda: database.join_set(replica_id))
        return renewal

    async def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        """See ReplicaStore.renew."""
        database, margin_seconds = self._database, known.CHANGE_MARGIN_SECONDS
        heard_time = self.heard_time(replica_id)

        def see() -> Seen:
            since = heard_time if heard_time is not None else database.now() - round(lease_seconds * 1_000_000)
            return database.see(since - round(margin_seconds * 1_000_000))

        renewal = await self._link.ask(
            "renew",
            _as_it_began(
                database, see, lambda seen: database.renew(replica_id, lease_seconds, active_runs, seen or see())
            ),
        )
        self._heard = replica_id, renewal.database_time
        changed = {
            name: version for name, version in renewal.changed_namespaces.items() if self._reported.get(name) != version
        }
        self._reported |= changed
        return Renewal(renewal.database_time, renewal.lease_expire_time, changed, renewal.replicas, renewal.loads)

    def heard_time(self, replica_id: UUID) -> int | None:
        """When the last renewal of a replica was carried out that was answered; None without one."""
        return self._heard[1] if self._heard is not None and self._heard[0] == replica_id else None

    async def release(self, replica_id: UUID) -> None:
        """See ReplicaStore.release."""
        await self._link.ask("leave_set", lambda: self._database.leave_set(replica_id))
        await self._link.ask("release", lambda: self._database.release(replica_id))

    async def give_up(self, replica_id: UUID) -> None:
        """See ReplicaStore.give_up."""
        await self._link.ask("give_up", lambda: self._database.give_up(replica_id))

    async def adopt(self, replica_id: UUID, limit: int, *, mark_before: int | None = None) -> list[RunRow]:
        """See ReplicaStore.adopt."""
        database = self._database
        await self._link.ask("end_dead", lambda: database.end_dead(replica_id, mark_before))
        if database.dead_members():  # Else the statement changes nothing.
            await self._link.ask("leave_dead", database.leave_dead)
        return await self._known.adopt(replica_id, _Statements(database, self._link, replica_id, limit))

    async def wake(self, replica_id: UUID, limit: int, lead_seconds: float) -> list[RunRow]:
        """See ReplicaStore.wake."""
        ask = _Statements(self._database, self._link, replica_id, limit, lead_seconds)
        return await self._known.wake(replica_id, ask)

    async def claim(self, replica_id: UUID, key: RunKey) -> RunRow | None:
        """See ReplicaStore.claim."""
        row = await self._link.ask("claim", lambda: self._database.claim(replica_id, key))
        if row is not None and self._on_claimed is not None:
            await self._on_claimed()
        return row

    async def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """See ReplicaStore.park."""
        await self._link.ask("park", lambda: self._database.park(replica_id, runs))

    async def poke(self, keys: Sequence[RunKey]) -> None:
        """See ReplicaStore.poke."""
        database, times = self._database, list[int]()
        await self._link.ask("poke", lambda: times.append(database.now()), lambda: database.poke(keys, times[-1]))

    async def find_owner(self, key: RunKey) -> RunOwner | None:
        """See ReplicaStore.find_owner."""
        return await self._link.ask("find_owner", lambda: self._database.find_owner(key))

    async def list_owned(self, replica_id: UUID) -> list[RunRow]:
        """See ReplicaStore.list_owned."""
        return await self._link.ask("list_owned", lambda: self._database.list_owned(replica_id))
