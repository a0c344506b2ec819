"""The simulated store of schedules: ScheduleStore over tables of its own and the runs of the simulated database.

It does what the statements in `postgres/queries/schedules.sql` do; the conformance suite holds that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.schedule_ports import Claim, ClaimedSchedule, ScheduleKey, ScheduleRow, ScheduleRunRow
from orchestrator.postgres.schedules import KEPT_RUNS
from tests.simulation.database import Database
from tests.simulation.stores import Link
from tests.simulation.tables import Run


@dataclass(slots=True)
class NotedRun:
    """A row of `schedule_runs`."""

    run_id: UUID
    fire_time: int
    triggered: bool
    cancel_round: int | None = None


@dataclass(slots=True)
class Stored:
    """A row of `schedules`, who has claimed it and until when, and its runs."""

    row: ScheduleRow
    claim_replica: UUID | None = None
    claim_expire_time: int = 0
    runs: dict[UUID, NotedRun] = field(default_factory=dict)


class ScheduleTables:
    """The tables of schedules."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows: dict[ScheduleKey, Stored] = {}

    def insert(self, row: ScheduleRow) -> bool:
        """Stores a new schedule."""
        if row.key in self.rows:
            return False
        self.rows[row.key] = Stored(replace(row, version=1))
        return True

    def update(self, row: ScheduleRow, *, release: Claim | None) -> bool:
        """Changes a schedule that nobody has changed meanwhile."""
        stored = self.rows.get(row.key)
        if stored is None or not self.is_unchanged(stored.row, row):
            return False
        if release is not None and not self.has_claim(stored, release):
            return False
        stored.row = replace(row, version=stored.row.version + 1)
        if release is not None:
            stored.claim_replica = None
        return True

    @staticmethod
    def is_unchanged(stored: ScheduleRow, known: ScheduleRow) -> bool:
        """The fence of a schedule: the version that is known, of the schedule that is known."""
        return (stored.version, stored.create_time) == (known.version, known.create_time)

    @staticmethod
    def has_claim(stored: Stored, claim: Claim) -> bool:
        """The fence of a look: that its claim still stands."""
        return (stored.claim_replica, stored.claim_expire_time) == claim

    def claim(
        self, replica_id: UUID, now: int, limit: int, claim_seconds: float, but_of: Collection[str]
    ) -> list[ClaimedSchedule]:
        """Claims what is due and nobody deals with who is alive, the longest due first."""
        due = [
            (stored.row.due_time, stored)
            for stored in self.rows.values()
            if stored.row.due_time is not None
            and stored.row.due_time <= now
            and stored.row.key.namespace not in but_of
            and self.is_free(stored, replica_id)
        ]
        claimed = []
        for _, stored in sorted(due, key=lambda one: (one[0], one[1].row.key))[:limit]:
            doubtful = stored.claim_replica is not None
            self.database.tally("schedules taken over", doubtful and stored.claim_replica != replica_id)
            stored.claim_replica = replica_id
            stored.claim_expire_time = self.database.now() + round(claim_seconds * 1_000_000)
            claim = Claim(replica_id, stored.claim_expire_time)
            claimed.append(ClaimedSchedule(stored.row, doubtful, claim))
        return claimed

    def is_free(self, stored: Stored, replica_id: UUID) -> bool:
        """Whether a replica may claim a schedule."""
        owner = stored.claim_replica
        if owner is None or owner == replica_id or stored.claim_expire_time <= self.database.now():
            return True
        replica = self.database.replicas.get(owner)
        return replica is None or replica.end_time is not None

    def add_run(self, key: ScheduleKey, noted: NotedRun) -> None:
        """Notes a run, and forgets old ones that have ended, and wishes to cancel those."""
        stored = self.rows.get(key)
        if stored is None:
            return
        stored.runs.setdefault(noted.run_id, noted)
        ended = sorted((one for one in stored.runs if self._unfinished(key, one) is None), reverse=True)
        for run_id in ended[KEPT_RUNS:]:
            del stored.runs[run_id]
        for run_id in ended[:KEPT_RUNS]:
            stored.runs[run_id].cancel_round = None

    def _unfinished(self, key: ScheduleKey, run_id: UUID) -> Run | None:
        run = self.database.runs.get(RunKey(key.namespace, run_id))
        return run if run is not None and run.unfinished else None

    def list_runs(self, key: ScheduleKey, limit: int) -> list[ScheduleRunRow]:
        """Lists runs that are noted, newest first."""
        stored, found = self.rows.get(key), list[ScheduleRunRow]()
        for run_id, noted in sorted(stored.runs.items(), reverse=True) if stored is not None else ():
            run = self.database.runs.get(RunKey(key.namespace, run_id))
            if run is not None:
                header = run.events[0].row.header if run.events else b""
                found.append(ScheduleRunRow(run_id, noted.fire_time, noted.triggered, run.state, header))
        return found[:limit]

    def list_unfinished(self, key: ScheduleKey, limit: int) -> list[UUID]:
        """Lists runs that are noted and have not ended, newest first."""
        stored = self.rows.get(key)
        noted = sorted(stored.runs, reverse=True) if stored is not None else []
        return [run_id for run_id in noted if self._unfinished(key, run_id) is not None][:limit]

    def ask_cancel(self, key: ScheduleKey, run_ids: Sequence[UUID]) -> None:
        """Notes that runs are to be cancelled, in the round in which they are."""
        stored = self.rows.get(key)
        for run_id in run_ids:
            run = self._unfinished(key, run_id)
            if stored is not None and run is not None and run_id in stored.runs:
                stored.runs[run_id].cancel_round = run.round

    def list_to_cancel(self, replica_id: UUID, limit: int) -> list[tuple[RunKey, str]]:
        """Lists runs that a replica drives and that are to be cancelled."""
        found = []
        for key, stored in self.rows.items():
            for run_id, noted in stored.runs.items():
                run = self._unfinished(key, run_id)
                if run is not None and run.owner == replica_id and noted.cancel_round == run.round:
                    found.append((run.key, key.schedule))
        return found[:limit]

    def next_due_time(self, now: int) -> int | None:
        """Tells when the next schedule is due."""
        times = [stored.row.due_time for stored in self.rows.values() if stored.row.due_time is not None]
        return min((time for time in times if time > now), default=None)


class SimulatedSchedules:
    """ScheduleStore."""

    def __init__(self, tables: ScheduleTables, link: Link) -> None:
        self._tables, self._link = tables, link

    async def get(self, key: ScheduleKey) -> ScheduleRow | None:
        """See ScheduleStore.get."""

        def get() -> ScheduleRow | None:
            stored = self._tables.rows.get(key)
            return stored.row if stored is not None else None

        return await self._link.ask("get_schedule", get)

    async def list_schedules(self, namespace: str, after: str, limit: int) -> list[ScheduleRow]:
        """See ScheduleStore.list_schedules."""

        def find() -> list[ScheduleRow]:
            keys = sorted(key for key in self._tables.rows if key.namespace == namespace and key.schedule > after)
            return [replace(self._tables.rows[key].row, input=b"") for key in keys[:limit]]

        return await self._link.ask("list_schedules", find)

    async def count(self, namespace: str, limit: int) -> int:
        """See ScheduleStore.count."""
        return await self._link.ask(
            "count_schedules", lambda: min(limit, sum(key.namespace == namespace for key in self._tables.rows))
        )

    async def insert(self, row: ScheduleRow) -> bool:
        """See ScheduleStore.insert."""
        return await self._link.ask("insert_schedule", lambda: self._tables.insert(row))

    async def update(self, row: ScheduleRow, *, release: Claim | None = None) -> bool:
        """See ScheduleStore.update."""
        return await self._link.ask("update_schedule", lambda: self._tables.update(row, release=release))

    async def delete(self, key: ScheduleKey) -> ScheduleRow | None:
        """See ScheduleStore.delete."""

        def delete() -> ScheduleRow | None:
            stored = self._tables.rows.pop(key, None)
            return stored.row if stored is not None else None

        return await self._link.ask("delete_schedule", delete)

    async def claim(
        self, replica_id: UUID, now: int, limit: int, claim_seconds: float, but_of: Collection[str] = ()
    ) -> list[ClaimedSchedule]:
        """See ScheduleStore.claim."""
        return await self._link.ask(
            "claim_due", lambda: self._tables.claim(replica_id, now, limit, claim_seconds, but_of)
        )

    async def next_due_time(self, now: int) -> int | None:
        """See ScheduleStore.next_due_time."""
        return await self._link.ask("next_due_time", lambda: self._tables.next_due_time(now))

    async def add_run(self, key: ScheduleKey, run_id: UUID, fire_time: int, *, triggered: bool) -> None:
        """See ScheduleStore.add_run."""
        await self._link.ask("add_run", lambda: self._tables.add_run(key, NotedRun(run_id, fire_time, triggered)))

    async def list_runs(self, key: ScheduleKey, limit: int) -> list[ScheduleRunRow]:
        """See ScheduleStore.list_runs."""
        return await self._link.ask("list_schedule_runs", lambda: self._tables.list_runs(key, limit))

    async def list_unfinished(self, key: ScheduleKey, limit: int) -> list[UUID]:
        """See ScheduleStore.list_unfinished."""
        return await self._link.ask("list_unfinished", lambda: self._tables.list_unfinished(key, limit))

    async def ask_cancel(self, key: ScheduleKey, run_ids: Sequence[UUID]) -> None:
        """See ScheduleStore.ask_cancel."""
        await self._link.ask("ask_cancel", lambda: self._tables.ask_cancel(key, run_ids))

    async def list_to_cancel(self, replica_id: UUID, limit: int) -> list[tuple[RunKey, str]]:
        """See ScheduleStore.list_to_cancel."""
        return await self._link.ask("list_to_cancel", lambda: self._tables.list_to_cancel(replica_id, limit))
