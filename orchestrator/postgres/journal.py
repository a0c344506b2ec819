"""The journal in Postgres: one statement and one commit for a batch of events of many runs, behind two fences.

The first fence is the lease of the replica and the owner and epoch of each run, held under lock by the statement; the
second is the key (namespace, run, sequence). What an entry is and what becomes of it says `engine/ports.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import (
    JournalRow,
    LeaseLost,
    NewRun,
    RunEntry,
    WriteRefused,
    WriteResult,
    WriteState,
)
from orchestrator.postgres.errors import DRIVER_ERRORS, is_about_content, unavailable
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

_QUERIES = load("journal")
_WRITTEN = WriteResult(WriteState.WRITTEN)
_FENCED = WriteResult(WriteState.FENCED)


class PostgresJournalStore:
    """JournalStore in Postgres. `journal` is a pool of the engine's role, `reads` one of the API's."""

    def __init__(self, journal: Pool, reads: Pool) -> None:
        self._journal = journal
        self._reads = reads

    async def write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """See JournalStore.write."""
        if not entries:
            return []
        try:
            return await self._write(replica_id, entries)
        except asyncpg.UniqueViolationError as error:
            # The second fence: events stand where the run's row says that none do. With one entry it is known whose.
            if len(entries) > 1:
                raise WriteRefused("events stand under these sequences already") from error
            return [_FENCED]
        except DRIVER_ERRORS as error:
            if is_about_content(error):
                raise WriteRefused("the database refused the content of the batch") from error
            raise unavailable() from error

    async def read(self, key: RunKey, after_sequence: int, limit: int, payloads: bool) -> list[JournalRow]:
        """See JournalStore.read. Errors: DatabaseUnavailable."""
        query = _QUERIES["read_events" if payloads else "read_headers"]
        rows = await self._reads.fetch_in(key.namespace, query, key.namespace, key.run_id, after_sequence, limit)
        return [_journal_row(row) for row in rows]

    async def _write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        name, arguments = statement_of(replica_id, entries)
        async with self._journal.lend_kept() as connection:
            answer = await connection.fetchrow(_QUERIES[name], *arguments)
            if answer is None or not answer["leased"]:
                raise LeaseLost
            written: list[int] = answer["positions"]
            results: dict[int, WriteResult] = dict.fromkeys(written, _WRITTEN)
            if len(results) < len(entries):
                missing = {position: entry for position, entry in enumerate(entries) if position not in results}
                results |= await _settle(connection, missing)
        return [results[position] for position in range(len(entries))]


async def _settle(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], missing: Mapping[int, RunEntry]
) -> dict[int, WriteResult]:
    """Finds out why entries were not written: their request_id is taken, they stand there already, or they are fenced.

    Runs after the statement, so that it sees what others committed meanwhile.
    """
    asked = {position: entry for position, entry in missing.items() if entry.new is not None and entry.new.request_id}
    taken: dict[int, WriteResult] = {}
    if asked:
        winners = await connection.fetch(
            _QUERIES["winners"],
            list(asked),
            [entry.key.namespace for entry in asked.values()],
            [entry.new.request_id for entry in asked.values() if entry.new is not None],
        )
        for row in winners:
            entry = asked[row["position"]]
            if entry.new is not None and row["run_id"] != entry.key.run_id:
                same_body = row["body_hash"] == entry.new.body_hash
                taken[row["position"]] = WriteResult(WriteState.REQUEST_TAKEN, row["run_id"], same_body)
    doubtful = {position: entry for position, entry in missing.items() if position not in taken}
    stored: dict[int, list[asyncpg.Record]] = {position: [] for position in doubtful}
    rows = await connection.fetch(
        _QUERIES["written_rows"],
        list(doubtful),
        [entry.key.namespace for entry in doubtful.values()],
        [entry.key.run_id for entry in doubtful.values()],
        [entry.rows[0].sequence for entry in doubtful.values()],
        [entry.rows[-1].sequence + 1 for entry in doubtful.values()],
    )
    for row in rows:
        stored[row["position"]].append(row)
    return taken | {
        position: _WRITTEN if _stands(entry, stored[position]) else _FENCED for position, entry in doubtful.items()
    }


def _stands(entry: RunEntry, stored: Sequence[asyncpg.Record]) -> bool:
    """Tells whether what is stored is exactly what the entry wanted to write."""
    if any(row["epoch"] != entry.epoch for row in stored):
        return False
    return tuple(map(_journal_row, stored)) == entry.rows


def _journal_row(row: asyncpg.Record) -> JournalRow:
    return JournalRow(
        sequence=row["sequence"],
        kind=row["kind"],
        step=row["step"],
        attempt=row["attempt"],
        event_time=row["event_time"],
        header=row["header"],
        payload=row["payload"],
        payload_type=row["payload_type"],
    )


def statement_of(replica_id: UUID, entries: Sequence[RunEntry]) -> tuple[str, list[object]]:
    """Names the statement that writes a batch, and lays the batch out: arrays of one length for each kind of row."""
    arrays, events = _entry_arrays(entries), _event_arrays(entries)
    if all(entry.new is None for entry in entries):
        return "continue_batch", [replica_id, *arrays, *events]
    return "write_batch", [replica_id, *arrays, *_submission_arrays(entries), *events]


def _entry_arrays(entries: Sequence[RunEntry]) -> tuple[list[object], ...]:
    return (
        list(range(len(entries))),
        [entry.key.namespace for entry in entries],
        [entry.key.run_id for entry in entries],
        [entry.epoch for entry in entries],
        [entry.rows[0].sequence for entry in entries],
        [entry.rows[-1].sequence + 1 for entry in entries],
        [entry.state for entry in entries],
        [entry.start_time for entry in entries],
        [entry.end_time for entry in entries],
    )


def _submission_arrays(entries: Sequence[RunEntry]) -> tuple[list[object], ...]:
    new: list[tuple[int, NewRun]] = [
        (position, entry.new) for position, entry in enumerate(entries) if entry.new is not None
    ]
    return (
        [position for position, _ in new],
        [run.revision.workflow for _, run in new],
        [run.revision.revision for _, run in new],
        [run.request_id for _, run in new],
        [run.body_hash for _, run in new],
        [run.principal for _, run in new],
        [run.channel for _, run in new],
        [run.workspace for _, run in new],
        [json.dumps(run.labels) if run.labels else "[]" for _, run in new],
        [json.dumps(dict(run.attributes)) if run.attributes else "{}" for _, run in new],
        [run.create_time for _, run in new],
        [run.expire_time for _, run in new],
        [run.journal_format for _, run in new],
        [run.client_id for _, run in new],
    )


def _event_arrays(entries: Sequence[RunEntry]) -> tuple[list[object], ...]:
    rows = [row for entry in entries for row in entry.rows]
    return (
        [position for position, entry in enumerate(entries) for _ in entry.rows],
        [row.sequence for row in rows],
        [row.kind for row in rows],
        [row.attempt for row in rows],
        [row.event_time for row in rows],
        [row.step for row in rows],
        [row.payload_type for row in rows],
        [row.header for row in rows],
        [row.payload for row in rows],
    )
