"""Proves that migrations are applied once each, in order, on empty databases and on data, by any number of starters."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.postgres.errors import RoleError, SchemaError
from orchestrator.postgres.migrate import (
    WEEK_MS,
    Migration,
    check_schema,
    ensure_partitions,
    first_run_id,
    keep_partitions,
    migrate,
    migrations,
)
from tests.conformance.journal_store import WRITTEN, Stores, replica, run_key, states, submission

MADE = [Migration(1, "0001_a", "CREATE TABLE events (run_id uuid) PARTITION BY RANGE (run_id)")]
NEXT = migrations()[-1].version + 1
MONDAY_MS = 1_795_392_000_000  # 2026-11-23


async def test_an_empty_database_gets_everything_once(empty_database: str) -> None:
    with pytest.raises(SchemaError, match="baton migrate"):
        await check_schema(empty_database)
    done = await migrate(empty_database)
    assert done[: len(migrations())] == [migration.name for migration in migrations()]
    assert len(done) == len(migrations()) + 10
    await check_schema(empty_database)
    assert await migrate(empty_database) == []


async def test_concurrent_starters_apply_each_once(empty_database: str) -> None:
    answers = await asyncio.gather(*(migrate(empty_database) for _ in range(5)))
    done = [name for answer in answers for name in answer]
    assert len(done) == len(set(done)) == len(migrations()) + 10


async def test_a_newer_version_migrates_data(
    stores: Stores, database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    key = run_key()
    assert await states(stores, await replica(stores), submission(key)) == [WRITTEN]
    newer = [*migrations(), Migration(NEXT, "9999_more", "ALTER TABLE runs ADD note text DEFAULT 'x'")]
    assert await migrate(database, newer) == ["9999_more"]
    assert await administrator.fetchval("SELECT note FROM runs WHERE run_id = $1", key.run_id) == "x"
    assert await stores.runs.get_run(key) is not None
    with pytest.raises(SchemaError, match="run a newer Baton"):
        await migrate(database)
    with pytest.raises(SchemaError, match="run a newer Baton"):
        await check_schema(database)


async def test_a_changed_file_is_refused(database: str) -> None:
    first, *rest = migrations()
    changed = [dataclasses.replace(first, text=first.text + "\n-- changed"), *rest]
    with pytest.raises(SchemaError, match="not the file that was applied"):
        await migrate(database, changed)


async def test_a_file_that_fails_leaves_nothing_behind(
    database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    text = "CREATE TABLE half (i int); SELECT 1 / 0"
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database, [*migrations(), Migration(NEXT, "9999_bad", text)])
    assert await administrator.fetchval("SELECT to_regclass('half')") is None
    assert await migrate(database) == []


async def test_a_table_in_use_is_not_waited_for_long(
    database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    newer = [
        *migrations(),
        Migration(NEXT, "9999_more", "SET LOCAL lock_timeout = '10ms'; DROP TABLE runs"),
    ]
    await administrator.execute("BEGIN; SELECT FROM runs")
    with pytest.raises(SchemaError, match="locked by something else"):
        await migrate(database, newer)
    await administrator.execute("ROLLBACK")


async def test_a_user_who_may_not_make_tables_is_told(empty_database: str) -> None:
    user = f"stranger_{uuid7().hex}"
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute(f"CREATE ROLE {user} LOGIN; REVOKE CREATE ON SCHEMA public FROM public")
        with pytest.raises(RoleError):
            await migrate(empty_database.replace("postgres@", f"{user}@"))
        await connection.execute(f"DROP ROLE {user}")
    finally:
        await connection.close()


async def test_an_owner_who_is_no_superuser_can_do_it_all(empty_database: str) -> None:
    """Managed databases give an owner with CREATEROLE at best; here the roles are there and granted."""
    user = f"owner_{uuid7().hex}"
    connection = await asyncpg.connect(empty_database)
    try:
        await migrate(empty_database, [*MADE])  # makes the roles of the cluster
        await connection.execute("DROP TABLE events, schema_migrations")
        await connection.execute(
            f"CREATE ROLE {user} LOGIN; GRANT baton_api, baton_engine TO {user}; GRANT ALL ON SCHEMA public TO {user}"
        )
        dsn = empty_database.replace("postgres@", f"{user}@")
        assert len(await migrate(dsn)) == len(migrations()) + 10
        await check_schema(dsn)
    finally:
        await connection.execute(f"DROP OWNED BY {user} CASCADE; DROP ROLE {user}")
        await connection.close()


async def test_an_absent_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"postgresql://postgres@/postgres?host={tmp_path}")


async def test_partitions_are_weeks_of_run_ids(
    database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    wednesday_ms = MONDAY_MS + 100 * WEEK_MS + 2 * 24 * 3600 * 1000
    made = await ensure_partitions(administrator, weeks_ahead=2, now_ms=wednesday_ms)
    assert made == ["events_20281016", "events_20281023", "events_20281030", "events_20281106"]
    assert await ensure_partitions(administrator, weeks_ahead=2, now_ms=wednesday_ms) == []
    start_ms = MONDAY_MS + 100 * WEEK_MS
    last_ms = start_ms + WEEK_MS - 1
    for run_id, partition in (
        (first_run_id(start_ms), "events_20281023"),
        (UUID(int=first_run_id(last_ms).int | (7 << 76) | (1 << 60)), "events_20281023"),
        (UUID(int=first_run_id(start_ms).int - 1), "events_20281016"),
        (UUID(int=0), "events_default"),
    ):
        await administrator.execute(
            "INSERT INTO events (namespace, run_id, sequence, epoch, kind, attempt, event_time, step, payload_type,"
            " header) VALUES ('shop', $1, 1, 1, 1, 0, now(), '', '', 'x')",
            run_id,
        )
        found = await administrator.fetchval("SELECT tableoid::regclass::text FROM events WHERE run_id = $1", run_id)
        assert found == partition


async def test_a_week_that_the_default_partition_holds_stays_there_and_the_others_are_made(
    database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    start_ms = MONDAY_MS + 200 * WEEK_MS
    await administrator.execute(
        "INSERT INTO events (namespace, run_id, sequence, epoch, kind, attempt, event_time, step, payload_type,"
        " header) VALUES ('shop', $1, 1, 1, 1, 0, now(), '', '', 'x')",
        first_run_id(start_ms),
    )
    made = await ensure_partitions(administrator, weeks_ahead=1, now_ms=start_ms)
    assert made == ["events_20300916", "events_20300930"]
    assert await administrator.fetchval("SELECT count(*) FROM events_default") == 1


async def test_a_server_makes_the_partitions_that_lack(
    database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    names = [name for name in await migrated_partitions(administrator) if name != "events_default"]
    await administrator.execute(f"DROP TABLE {names[-1]}")
    upkeep = asyncio.create_task(keep_partitions(database))
    try:
        async with asyncio.timeout(30):
            while names[-1] not in await migrated_partitions(administrator):  # noqa: ASYNC110 (nobody tells of DDL)
                await asyncio.sleep(0.01)
    finally:
        upkeep.cancel()
        await asyncio.gather(upkeep, return_exceptions=True)


async def migrated_partitions(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY 1"
    )
    return [row["name"] for row in rows]


async def test_runs_of_today_do_not_fall_into_the_default_partition(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    await states(stores, await replica(stores), submission(run_key()))
    assert await administrator.fetchval("SELECT count(*) FROM events_default") == 0
    assert await administrator.fetchval("SELECT count(*) FROM events") == 1
