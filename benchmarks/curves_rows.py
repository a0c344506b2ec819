"""Rows of a database that has been used for long: ended runs over many weeks, namespaces with workers.

They are made from what Baton itself wrote: every run is a copy of one that ran, under an id and at a time of its own.
"""

from __future__ import annotations

import time

import asyncpg

from orchestrator.postgres.migrate import ensure_partitions

WEEKS = 26
"""Over how many weeks, up to last week, the runs are spread."""

CHUNK_RUNS = 25_000
_WEEK_MS = 7 * 86_400_000

_COUNT = "SELECT count(*) FROM events WHERE namespace = $1 AND run_id = $2"

_RUNS = """
WITH made AS (
    SELECT
        (lpad(to_hex($2::bigint + number * $3::bigint / 1000), 12, '0') || '7' || substr(md5(number::text), 1, 3)
            || '8' || substr(md5(number::text), 4, 15))::uuid AS run_id,
        number, to_timestamp(($2::bigint + number * $3::bigint / 1000) / 1000.0) AS create_time
    FROM generate_series($4::bigint, $5::bigint) AS number
),
begun AS (
    INSERT INTO runs
    SELECT
        t.namespace, m.run_id, t.workflow, t.revision, 'request-' || md5(m.number::text),
        CASE WHEN m.number % 50 = 0 THEN 4 ELSE t.state END, t.round, NULL, t.epoch, t.next_sequence,
        t.journal_format, NULL, t.principal, t.channel, t.workspace, t.labels, t.attributes, m.create_time,
        m.create_time, m.create_time + interval '1 second', m.create_time + interval '1 hour'
    FROM made AS m CROSS JOIN runs AS t
    WHERE t.run_id = $1
),
claimed AS (
    INSERT INTO requests
    SELECT 'default', 'request-' || md5(number::text), sha256(number::text::bytea), run_id, create_time FROM made
)
INSERT INTO events
SELECT
    t.namespace, m.run_id, t.sequence, t.epoch, t.kind, t.attempt, m.create_time, t.step, t.payload_type, t.header,
    t.payload
FROM made AS m CROSS JOIN events AS t
WHERE t.run_id = $1
"""

_NAMESPACES = """
WITH made AS (SELECT 'space-' || number AS namespace FROM generate_series($1::integer, $2::integer) AS number),
catalogue AS (INSERT INTO catalogues SELECT namespace, 1, now() - interval '1 day' FROM made),
worker AS (
    INSERT INTO workers SELECT m.namespace, w.worker, w.max_in_flight, w.create_time
    FROM made AS m CROSS JOIN workers AS w WHERE w.namespace = 'default'
),
endpoint AS (
    INSERT INTO endpoints SELECT m.namespace, e.worker, e.address, e.contract_digest, false, e.create_time
    FROM made AS m CROSS JOIN endpoints AS e WHERE e.namespace = 'default'
),
contract AS (
    INSERT INTO contracts SELECT m.namespace, c.digest, c.files, c.services, c.create_time
    FROM made AS m CROSS JOIN contracts AS c
    WHERE c.namespace = 'default' AND c.digest IN (SELECT contract_digest FROM endpoints WHERE namespace = 'default')
),
revision AS (
    INSERT INTO workflow_revisions
    SELECT m.namespace, r.workflow, r.revision, r.definition, r.contract_digests, r.create_time, r.apply_time
    FROM made AS m CROSS JOIN workflow_revisions AS r WHERE r.namespace = 'default' AND r.workflow = 'chain-3'
)
INSERT INTO workflows
SELECT m.namespace, w.workflow, w.revision, NULL
FROM made AS m CROSS JOIN workflows AS w WHERE w.namespace = 'default' AND w.workflow = 'chain-3'
"""


async def add_events(dsn: str, run_id: str, present: int, wanted: int) -> str:
    """Adds copies of a run until there are `wanted` events of `present`; returns the id of one of them."""
    connection = await asyncpg.connect(dsn)
    try:
        last_ms = time.time_ns() // 1_000_000 - 2 * _WEEK_MS
        for week in range(WEEKS + 1):
            await ensure_partitions(connection, 0, last_ms - week * _WEEK_MS)
        events = await connection.fetchval(_COUNT, "default", run_id)
        first_ms, step_us = last_ms - WEEKS * _WEEK_MS, WEEKS * _WEEK_MS * 1000 // (20_000_000 // events)
        begin, end = present // events, wanted // events
        for first in range(begin, end, CHUNK_RUNS):
            last = min(first + CHUNK_RUNS, end) - 1
            await connection.execute(_RUNS, run_id, first_ms, step_us, first, last, timeout=600)
        await _settle(connection)
        found = await connection.fetchval("SELECT run_id FROM runs WHERE end_time IS NOT NULL ORDER BY run_id LIMIT 1")
        return str(found)
    finally:
        await connection.close()


async def add_namespaces(dsn: str, present: int, wanted: int) -> None:
    """Adds namespaces, each with what `default` has: its workers, contracts and a workflow."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_NAMESPACES, present, wanted - 1, timeout=600)
        await _settle(connection)
    finally:
        await connection.close()


async def _settle(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Lets what autovacuum and the checkpointer would do at some time happen now."""
    await connection.execute("VACUUM ANALYZE", timeout=1200)
    await connection.execute("CHECKPOINT", timeout=600)
