"""Leases of replicas and ownership of runs in Postgres. Every lease is judged by the database's clock alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import JOURNAL_FORMAT, READABLE_FORMATS
from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import LeaseLost, ParkedRun, Renewal, ReplicaSet, RunOwner, RunRow
from orchestrator.postgres.known import CHANGE_MARGIN_SECONDS, Known
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.runs import run_row
from orchestrator.postgres.sql import load

RENEWAL_TRIES = 3
"""Renewals that may fail to be answered, one after the other, in the time of a lease."""

LEAST_RENEWAL_SECONDS = 1.0
"""A renewal is waited for so long at least: connections are made anew in this time where all is well but busy. A lease
that is hardly longer is lost with the connection that it is renewed on."""

_QUERIES = load("replicas")
MARKED = _QUERIES["is_marked"]
"""Asks what `over_or_lost` tells of."""


def over_or_lost(*, marked: bool) -> DatabaseUnavailable | LeaseLost:
    """What it means that a statement found no lease that goes on, by the answer to MARKED: that it is lost, or that it
    is to be renewed before the statement is sent again. It may have been, or be marked, since."""
    if marked:
        return LeaseLost()
    text = "nothing is written until the lease of this replica is renewed, whose time is over"
    return DatabaseUnavailable(text, retry_delay_seconds=1.0)


def _require_history(claims: Pool, replica_id: UUID) -> None:
    """Errors: LeaseLost where the lease was taken in another history of the database."""
    if not claims.history.holds_lease(replica_id):
        raise LeaseLost


@dataclass(frozen=True, slots=True)
class _Statements:
    """Implements known.Statements for one look."""

    claims: Pool
    reads: Sequence[int]
    writes: int
    replica_id: UUID
    limit: int
    lead_seconds: float

    async def marked(self, emptied: Collection[UUID]) -> list[UUID]:
        """See Statements.marked."""
        return [row["replica_id"] for row in await self.claims.fetch(_QUERIES["marked"], list(emptied))]

    async def emptied(self, marked: Collection[UUID]) -> list[UUID]:
        """See Statements.emptied."""
        rows = await self.claims.fetch(_QUERIES["emptied"], list(marked))
        _require_history(self.claims, self.replica_id)
        return [row["replica_id"] for row in rows]

    async def adopt(self, marked: Collection[UUID]) -> list[RunRow]:
        """See Statements.adopt."""
        rows = await self.claims.fetch(
            _QUERIES["adopt"], self.replica_id, self.limit, self.reads, self.writes, list(marked)
        )
        return [run_row(row) for row in rows]

    async def oldest_parked(self, since: int | None, margin_seconds: float) -> int | None:
        """See Statements.oldest_parked."""
        (row,) = await self.claims.fetch(_QUERIES["oldest_parked"], self.reads, since, margin_seconds)
        _require_history(self.claims, self.replica_id)
        time: int | None = row["time"]
        return time

    async def wake(self, since: int | None) -> list[RunRow]:
        """See Statements.wake."""
        rows = await self.claims.fetch(
            _QUERIES["wake"], self.replica_id, self.limit, self.lead_seconds, self.reads, self.writes, since
        )
        return [run_row(row) for row in rows]


class PostgresReplicaStore:
    """ReplicaStore in Postgres. `claims` is a pool of the engine's role, on the loop that renews the lease.

    Runs are taken over whose journals are in one of the formats that the replica reads; from there on they may hold
    what it `writes`, and are left alone by replicas of a version that does not read that. `version` is that of the
    program, as it is shown.
    """

    def __init__(
        self,
        claims: Pool,
        reads: frozenset[int] = READABLE_FORMATS,
        writes: int = JOURNAL_FORMAT,
        version: str = "",
    ) -> None:
        self._claims, self._version = claims, version
        self._reads, self._writes = sorted(reads), writes
        self._reported: dict[str, int] = {}
        self._heard: tuple[UUID, int] | None = None
        """Who renewed its lease last and was answered, and the database's time then."""
        self._known = Known()

    async def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        """See ReplicaStore.register."""
        await self._claims.fetch(_QUERIES["forget"])
        await self._claims.fetch(_QUERIES["forget_finders"])
        (row,) = await self._claims.fetch(_QUERIES["register"], replica_id, address, lease_seconds, self._version)
        await self._claims.fetch(_QUERIES["join_set"], replica_id)
        self._claims.history.begin_lease(replica_id)
        return Renewal(row["database_time"], row["lease_expire_time"])

    async def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        """See ReplicaStore.renew. A change is told once to each store object, and never missed, however long ago the
        last renewal was answered.

        It is given up early enough for another try, on another connection, within the lease. What was given up may
        have been carried out, or be later: the lease in the database is then longer than the replica knows.
        """
        seconds = max(lease_seconds / RENEWAL_TRIES, LEAST_RENEWAL_SECONDS)
        heard_time = self._heard[1] if self._heard is not None and self._heard[0] == replica_id else None
        arguments = (replica_id, lease_seconds, CHANGE_MARGIN_SECONDS, active_runs, heard_time)
        rows = await self._claims.fetch_within(seconds, _QUERIES["renew"], *arguments)
        if not self._claims.history.holds_lease(replica_id):
            await self.give_up(replica_id)  # Others take the runs over at once.
            raise LeaseLost
        if not rows:
            raise LeaseLost
        changed = {
            namespace: version for namespace, version in rows[0]["changes"] if self._reported.get(namespace) != version
        }
        self._reported |= changed
        row = rows[0]
        self._heard = (replica_id, row["database_time"])
        members = {member: address for member, address, _ in row["members"]}
        loads = {member: load for member, _, load in row["members"] if load is not None}
        replicas = ReplicaSet(row["generation"], members, row["leave_time"], row["loss_time"])
        return Renewal(row["database_time"], row["lease_expire_time"], changed, replicas, loads)

    async def release(self, replica_id: UUID) -> None:
        """See ReplicaStore.release."""
        if not self._claims.history.holds_lease(replica_id):
            # One that forgets what it holds because the database lacks it is lost: workers may be at its calls.
            await self.give_up(replica_id)
            return
        # First, while its row is not marked: others do not take it for one that was lost.
        await self._claims.fetch(_QUERIES["leave_set"], replica_id)
        await self._claims.fetch(_QUERIES["release"], replica_id)

    async def give_up(self, replica_id: UUID) -> None:
        """See ReplicaStore.give_up."""
        await self._claims.fetch(_QUERIES["give_up"], replica_id)

    async def adopt(self, replica_id: UUID, limit: int, *, mark_before: int | None = None) -> list[RunRow]:
        """See ReplicaStore.adopt. Answers nothing where the own lease is over."""
        _require_history(self._claims, replica_id)
        # Two statements: the second sees all that the marked replicas committed before they were marked.
        await self._claims.fetch(_QUERIES["end_dead"], replica_id, mark_before)
        await self._claims.fetch(_QUERIES["leave_dead"])
        return await self._known.adopt(replica_id, self._statements(replica_id, limit))

    async def wake(self, replica_id: UUID, limit: int, lead_seconds: float) -> list[RunRow]:
        """See ReplicaStore.wake. Answers nothing where the own lease is over."""
        _require_history(self._claims, replica_id)
        return await self._known.wake(replica_id, self._statements(replica_id, limit, lead_seconds))

    def _statements(self, replica_id: UUID, limit: int, lead_seconds: float = 0.0) -> _Statements:
        return _Statements(self._claims, self._reads, self._writes, replica_id, limit, lead_seconds)

    async def claim(self, replica_id: UUID, key: RunKey) -> RunRow | None:
        """See ReplicaStore.claim. Answers None where the own lease is over."""
        if not self._claims.history.holds_lease(replica_id):
            return None
        rows = await self._claims.fetch(
            _QUERIES["claim"], replica_id, key.namespace, key.run_id, self._reads, self._writes
        )
        return run_row(rows[0]) if rows else None

    async def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """See ReplicaStore.park."""
        _require_history(self._claims, replica_id)
        (row,) = await self._claims.fetch(
            _QUERIES["park"],
            replica_id,
            [run.key.namespace for run in runs],
            [run.key.run_id for run in runs],
            [run.epoch for run in runs],
            [run.next_sequence for run in runs],
            [run.wake_time for run in runs],
        )
        if not row["leased"]:
            (row,) = await self._claims.fetch(MARKED, replica_id)
            raise over_or_lost(marked=row["marked"])

    async def poke(self, keys: Sequence[RunKey]) -> None:
        """See ReplicaStore.poke."""
        await self._claims.fetch(_QUERIES["poke"], [key.namespace for key in keys], [key.run_id for key in keys])

    async def find_owner(self, key: RunKey) -> RunOwner | None:
        """See ReplicaStore.find_owner."""
        rows = await self._claims.fetch(_QUERIES["find_owner"], key.namespace, key.run_id)
        if not rows:
            return None
        return RunOwner(rows[0]["owner_replica"], rows[0]["address"], rows[0]["alive"], rows[0]["run_ended"])

    async def list_owned(self, replica_id: UUID) -> list[RunRow]:
        """See ReplicaStore.list_owned."""
        return [run_row(row) for row in await self._claims.fetch(_QUERIES["list_owned"], replica_id)]
