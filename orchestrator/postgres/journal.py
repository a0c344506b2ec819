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
    READ_LIMIT_BYTES,
    JournalRow,
    LeaseLost,
    NewRun,
    RunEntry,
    WriteRefused,
    WriteResult,
    WriteState,
)
from orchestrator.postgres.errors import DRIVER_ERRORS, is_about_content
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.replicas import MARKED, over_or_lost
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
            raise self._journal.unavailable(error) from error

    async def read(
        self, key: RunKey, after_sequence: int, limit: int, payloads: bool, limit_bytes: int = READ_LIMIT_BYTES
    ) -> list[JournalRow]:
        """See JournalStore.read. Errors: DatabaseUnavailable."""
        query = _QUERIES["read_events" if payloads else "read_headers"]
        arguments = (key.namespace, key.run_id, after_sequence, limit, limit_bytes)
        return [journal_row(row) for row in await self._reads.fetch_in(key.namespace, query, *arguments)]

    async def read_payloads(self, key: RunKey, sequences: Sequence[int], limit_bytes: int) -> dict[int, bytes]:
        """See JournalStore.read_payloads. Errors: DatabaseUnavailable."""
        query = _QUERIES["read_payloads"]
        rows = await self._reads.fetch_in(key.namespace, query, key.namespace, key.run_id, sequences, limit_bytes)
        return {row["sequence"]: row["payload"] for row in rows}

    async def read_first(self, keys: Sequence[RunKey], limit: int, limit_bytes: int) -> dict[RunKey, list[JournalRow]]:
        """See JournalStore.read_first. Errors: DatabaseUnavailable."""
        namespaces, run_ids = [key.namespace for key in keys], [key.run_id for key in keys]
        found: dict[RunKey, list[JournalRow]] = {key: [] for key in keys}
        for row in await self._journal.fetch(_QUERIES["read_first"], namespaces, run_ids, limit, limit_bytes):
            found[keys[row["position"] - 1]].append(journal_row(row))
        return found

    async def read_one_of_each(
        self, namespace: str, places: Sequence[tuple[UUID, int]], limit_bytes: int
    ) -> dict[UUID, JournalRow]:
        """See JournalStore.read_one_of_each. Errors: DatabaseUnavailable."""
        run_ids, sequences = [run_id for run_id, _ in places], [sequence for _, sequence in places]
        query = _QUERIES["read_one_of_each"]
        rows = await self._reads.fetch_in(namespace, query, namespace, run_ids, sequences, limit_bytes)
        return {run_ids[row["position"] - 1]: journal_row(row) for row in rows}

    async def _write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        name, arguments = statement_of(replica_id, entries)
        async with self._journal.lend_kept() as connection:
            if not self._journal.history.holds_lease(replica_id):
                raise LeaseLost
            written = await _run(connection, replica_id, entries, name, arguments)
            if len(written) == len(entries):
                return [_WRITTEN] * len(entries)
            results: dict[int, WriteResult] = dict.fromkeys(written, _WRITTEN)
            missing = {position: entry for position, entry in enumerate(entries, 1) if position not in results}
            results |= await _settle(connection, missing)
        return [results[position] for position in range(1, len(entries) + 1)]


async def _run(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record],
    replica_id: UUID,
    entries: Sequence[RunEntry],
    name: str,
    arguments: Sequence[object],
) -> list[int]:
    """Writes a batch and returns the positions of what was written. Ended runs in it are taken first, in the same
    transaction: they then stand as those do that this replica owned before. Errors: LeaseLost, DatabaseUnavailable."""
    reopened = [entry for entry in entries if entry.reopened is not None]
    if not reopened:
        return await _positions(connection, replica_id, name, arguments)
    async with connection.transaction():
        await connection.execute(_QUERIES["reopen"], replica_id, *reopening_of(reopened))
        return await _positions(connection, replica_id, name, arguments)


async def _positions(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record],
    replica_id: UUID,
    name: str,
    arguments: Sequence[object],
) -> list[int]:
    answer = await connection.fetchrow(_QUERIES[name], *arguments)
    if answer is None or not answer["leased"]:
        raise over_or_lost(marked=await connection.fetchval(MARKED, replica_id))
    positions: list[int] = answer["positions"]
    return positions


def reopening_of(entries: Sequence[RunEntry]) -> list[list[object]]:
    """Lays out what the statement `reopen` takes, a column for each."""
    rows = [
        (
            entry.key.namespace,
            entry.key.run_id,
            entry.epoch,
            entry.rows[0].sequence,
            entry.reopened.round,
            entry.reopened.revision,
            entry.reopened.expire_time,
            entry.reopened.journal_format,
        )
        for entry in entries
        if entry.reopened is not None
    ]
    return [list(column) for column in zip(*rows, strict=True)]


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
    return [journal_row(row) for row in stored] == list(entry.rows)


def journal_row(row: asyncpg.Record) -> JournalRow:
    """Makes a JournalRow of a row of `events`."""
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
    """Names the statement that writes a batch, and lays the batch out: arrays of the types of `journal_batches.sql`.

    The rows of the events are handed over as they are: `batch_event` has the fields of JournalRow in their order.
    """
    batch: list[tuple[object, ...]] = []
    submissions: list[tuple[object, ...]] = []
    for entry in entries:
        rows, (namespace, run_id) = entry.rows, entry.key
        batch.append(
            (
                namespace,
                run_id,
                entry.epoch,
                rows[0].sequence,
                rows[-1].sequence + 1,
                entry.state,
                entry.start_time,
                entry.end_time,
                rows,
            )
        )
        if entry.new is not None:
            submissions.append(_submission(len(batch), entry.new))
    if submissions:
        return "write_batch", [replica_id, batch, submissions]
    return "continue_batch", [replica_id, batch]


def _submission(position: int, new: NewRun) -> tuple[object, ...]:
    return (
        position,
        new.revision.workflow,
        new.revision.revision,
        new.request_id,
        new.body_hash,
        new.principal,
        new.channel,
        new.workspace,
        new.labels,
        json.dumps(dict(new.attributes)) if new.attributes else "{}",
        new.create_time,
        new.expire_time,
        new.journal_format,
        new.client_id,
    )
