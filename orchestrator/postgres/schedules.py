"""Schedules in Postgres: kept within one namespace as the API's role, claimed over all as the engine's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg

from orchestrator.domain.ids import RunKey
from orchestrator.engine.schedule_ports import (
    Claim,
    ClaimedSchedule,
    Pause,
    Progress,
    Refusal,
    ScheduleKey,
    ScheduleRow,
    ScheduleRunRow,
)
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

KEPT_RUNS = 10
"""Runs of a schedule that are noted after they have ended."""

_QUERIES = load("schedules")


class PostgresScheduleStore:
    """ScheduleStore in Postgres. `reads` is a pool of the API's role, `claims` one of the engine's."""

    def __init__(self, reads: Pool, claims: Pool) -> None:
        self._reads, self._claims = reads, claims

    async def get(self, key: ScheduleKey) -> ScheduleRow | None:
        """See ScheduleStore.get."""
        rows = await self._reads.fetch_in(key.namespace, _QUERIES["get_schedule"], *key)
        return _row(rows[0]) if rows else None

    async def list_schedules(self, namespace: str, after: str, limit: int) -> list[ScheduleRow]:
        """See ScheduleStore.list_schedules."""
        rows = await self._reads.fetch_in(namespace, _QUERIES["list_schedules"], namespace, after, limit)
        return [_row(row) for row in rows]

    async def count(self, namespace: str, limit: int) -> int:
        """See ScheduleStore.count."""
        (row,) = await self._reads.fetch_in(namespace, _QUERIES["count_schedules"], namespace, limit)
        return int(row["count"])

    async def insert(self, row: ScheduleRow) -> bool:
        """See ScheduleStore.insert."""
        content = (row.definition, row.input, row.principal)
        times = (row.create_time, row.update_time, row.progress.next_time, row.due_time)
        query = _QUERIES["insert_schedule"]
        return bool(await self._reads.fetch_in(row.key.namespace, query, *row.key, *content, *times))

    async def update(self, row: ScheduleRow, *, release: Claim | None = None) -> bool:
        """See ScheduleStore.update."""
        progress, pause, refusal = row.progress, row.pause, row.progress.refusal
        rows = await self._reads.fetch_in(
            row.key.namespace,
            _QUERIES["update_schedule"],
            *row.key,
            row.create_time,
            row.version,
            row.definition,
            row.input,
            row.principal,
            row.update_time,
            progress.next_time,
            progress.waiting_time,
            row.due_time,
            *((pause.time, pause.note, pause.principal) if pause is not None else (None, "", "")),
            progress.fired_count,
            progress.skipped_count,
            progress.missed_count,
            progress.refused_count,
            *((refusal.fire_time, refusal.reason, refusal.message) if refusal is not None else (None, "", "")),
            *(release or (None, None)),
        )
        return bool(rows)

    async def delete(self, key: ScheduleKey) -> ScheduleRow | None:
        """See ScheduleStore.delete."""
        rows = await self._reads.fetch_in(key.namespace, _QUERIES["delete_schedule"], *key)
        return _row(rows[0]) if rows else None

    async def claim(
        self, replica_id: UUID, now: int, limit: int, claim_seconds: float, but_of: Collection[str] = ()
    ) -> list[ClaimedSchedule]:
        """See ScheduleStore.claim."""
        rows = await self._claims.fetch(_QUERIES["claim_due"], replica_id, now, limit, claim_seconds, sorted(but_of))
        return [
            ClaimedSchedule(_row(row), row["doubtful"], Claim(replica_id, row["claim_expire_time"])) for row in rows
        ]

    async def next_due_time(self, now: int) -> int | None:
        """See ScheduleStore.next_due_time."""
        (row,) = await self._claims.fetch(_QUERIES["next_due_time"], now)
        found: int | None = row["due_time"]
        return found

    async def add_run(self, key: ScheduleKey, run_id: UUID, fire_time: int, *, triggered: bool) -> None:
        """See ScheduleStore.add_run."""
        async with self._reads.in_namespace(key.namespace) as connection:
            await connection.execute(_QUERIES["add_run"], *key, run_id, fire_time, triggered)
            await connection.execute(_QUERIES["forget_runs"], *key, KEPT_RUNS)

    async def list_runs(self, key: ScheduleKey, limit: int) -> list[ScheduleRunRow]:
        """See ScheduleStore.list_runs."""
        rows = await self._reads.fetch_in(key.namespace, _QUERIES["list_schedule_runs"], *key, limit)
        return [
            ScheduleRunRow(row["run_id"], row["fire_time"], row["triggered"], row["state"], row["submitted"])
            for row in rows
        ]

    async def list_unfinished(self, key: ScheduleKey, limit: int) -> list[UUID]:
        """See ScheduleStore.list_unfinished."""
        rows = await self._reads.fetch_in(key.namespace, _QUERIES["list_unfinished"], *key, limit)
        return [row["run_id"] for row in rows]

    async def ask_cancel(self, key: ScheduleKey, run_ids: Sequence[UUID]) -> None:
        """See ScheduleStore.ask_cancel."""
        await self._reads.fetch_in(key.namespace, _QUERIES["ask_cancel"], *key, list(run_ids))

    async def list_to_cancel(self, replica_id: UUID, limit: int) -> list[tuple[RunKey, str]]:
        """See ScheduleStore.list_to_cancel."""
        rows = await self._claims.fetch(_QUERIES["list_to_cancel"], replica_id, limit)
        return [(RunKey(row["namespace"], row["run_id"]), row["schedule"]) for row in rows]


def _row(row: asyncpg.Record) -> ScheduleRow:
    refused, paused = row["refusal_time"], row["pause_time"]
    refusal = Refusal(refused, row["refusal_reason"], row["refusal_message"]) if refused is not None else None
    return ScheduleRow(
        key=ScheduleKey(row["namespace"], row["schedule"]),
        definition=row["definition"],
        input=row["input"],
        principal=row["principal"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        version=row["version"],
        progress=Progress(
            next_time=row["next_time"],
            waiting_time=row["waiting_time"],
            fired_count=row["fired_count"],
            skipped_count=row["skipped_count"],
            missed_count=row["missed_count"],
            refused_count=row["refused_count"],
            refusal=refusal,
        ),
        due_time=row["due_time"],
        pause=Pause(paused, row["pause_note"], row["pause_principal"]) if paused is not None else None,
    )
