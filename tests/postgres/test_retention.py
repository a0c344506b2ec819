"""Proves that what ended long ago is forgotten, whole, and that nothing else is; with everybody at work meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import WriteState
from orchestrator.postgres import retention
from orchestrator.postgres.migrate import WEEK_MS, ensure_partitions, first_run_id, migrate, partition_name
from orchestrator.postgres.retention import forget, keep_retention
from tests.conformance.journal_store import (
    FENCED,
    WRITTEN,
    Stores,
    ending,
    journal_of,
    reopening,
    replica,
    run_key,
    states,
    step,
    submission,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MONDAY_MS = 1_795_392_000_000  # 2026-11-23
WEEK_SECONDS = WEEK_MS / 1000
LONG_AGO = 1_700_000_000_000_000
OLD_MS = 1_700_000_000_000 - (1_700_000_000_000 - MONDAY_MS) % WEEK_MS
"""The week, long over, in which the runs of these tests were submitted."""

OLD = partition_name(OLD_MS)


@pytest.fixture
async def old_weeks(administrator: Connection) -> Connection:
    """Makes partitions for the old week and the ones beside it."""
    made = await ensure_partitions(administrator, weeks_ahead=1, now_ms=OLD_MS)
    assert OLD in made
    return administrator


def old_key(number: int, namespace: str = "shop") -> RunKey:
    return RunKey(namespace, UUID(int=first_run_id(OLD_MS).int + (7 << 76) + number))


async def partitions(connection: Connection) -> set[str]:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    return {row[0] for row in rows}


async def test_old_runs_and_their_weeks_are_forgotten_and_new_ones_kept(stores: Stores, old_weeks: Connection) -> None:
    me, new = await replica(stores), run_key()
    entries = [
        submission(old_key(number, name), f"old-{number}", end_time=LONG_AGO)
        for number in range(3)
        for name in ("shop", "bank")
    ]
    assert set(await states(stores, me, *entries, submission(new, "new", end_time=LONG_AGO))) == {WRITTEN}
    kept = await partitions(old_weeks)
    done = await forget(old_weeks, WEEK_SECONDS)
    assert done.runs == 6
    assert OLD in done.dropped
    assert await partitions(old_weeks) == kept - set(done.dropped)
    assert await old_weeks.fetchval("SELECT array_agg(request_id) FROM requests") == ["new"]
    assert await stores.runs.get_run(old_key(1)) is None
    assert await journal_of(stores, old_key(1)) == ()
    assert len(await journal_of(stores, new)) == 1
    again = await forget(old_weeks, WEEK_SECONDS)
    assert (again.runs, again.dropped, again.locked) == (0, [], [])


async def test_a_run_that_goes_on_or_ended_lately_keeps_its_week(stores: Stores, old_weeks: Connection) -> None:
    me, live, late, old = await replica(stores), old_key(1), old_key(2), old_key(3)
    lately = time.time_ns() // 1000 - 3_600_000_000
    assert set(
        await states(
            stores, me, submission(live), submission(late, end_time=lately), submission(old, end_time=LONG_AGO)
        )
    ) == {WRITTEN}
    done = await forget(old_weeks, WEEK_SECONDS)
    assert done.runs == 1
    assert OLD not in done.dropped
    assert await stores.runs.get_run(old) is None
    assert len(await journal_of(stores, live)) == 1
    assert await states(stores, me, step(live, 2)) == [WRITTEN]
    assert await states(stores, me, ending(live, 3)) == [WRITTEN]
    await forget(old_weeks, 3_600)
    assert await partitions(old_weeks) >= {"events_default"}
    assert await stores.runs.get_run(late) is None
    assert OLD not in await partitions(old_weeks)


async def test_what_is_not_old_enough_is_kept(stores: Stores, old_weeks: Connection) -> None:
    me, key = await replica(stores), old_key(1)
    await states(stores, me, submission(key, end_time=LONG_AGO))
    done = await forget(old_weeks, time.time() - OLD_MS / 1000 - WEEK_SECONDS + 3_600)
    assert done.runs == 0
    assert OLD not in done.dropped
    assert len(await journal_of(stores, key)) == 1


async def test_a_run_is_either_reopened_or_forgotten(stores: Stores, old_weeks: Connection, database: str) -> None:
    me, reopened, gone = await replica(stores), old_key(1), old_key(2)
    assert set(
        await states(stores, me, submission(reopened, end_time=LONG_AGO), submission(gone, end_time=LONG_AGO))
    ) == {WRITTEN}
    other = await asyncpg.connect(database)
    try:
        async with other.transaction():
            # As one who is about to reopen it.
            await other.execute("SELECT FROM runs WHERE run_id = $1 FOR NO KEY UPDATE", reopened.run_id)
            done = await forget(old_weeks, WEEK_SECONDS)
            assert (done.runs, OLD in done.dropped) == (1, False)
    finally:
        await other.close()
    written: list[WriteState] = await states(stores, me, reopening(reopened, 2), reopening(gone, 2))
    assert written == [WRITTEN, FENCED]
    done = await forget(old_weeks, WEEK_SECONDS)
    assert (done.runs, OLD in done.dropped) == (0, False)
    assert len(await journal_of(stores, reopened)) == 2


async def test_readers_of_the_journal_are_not_queued_behind_for_long(
    stores: Stores, old_weeks: Connection, database: str
) -> None:
    me, key = await replica(stores), run_key()
    reader = await asyncpg.connect(database)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT FROM events")
            done = await forget(old_weeks, WEEK_SECONDS, lock_tries=1)
            assert OLD in done.locked
            assert await states(stores, me, submission(key)) == [WRITTEN]
    finally:
        await reader.close()
    assert OLD in (await forget(old_weeks, WEEK_SECONDS)).dropped


async def test_several_replicas_forget_at_once_while_others_write(
    stores: Stores, old_weeks: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_RUNS", 7)
    monkeypatch.setattr(retention, "BATCH_PAUSE_SECONDS", 0.001)
    me = await replica(stores)
    for first in range(0, 100, 50):
        assert set(
            await states(stores, me, *(submission(old_key(first + n), end_time=LONG_AGO) for n in range(50)))
        ) == {WRITTEN}
    connections = [await asyncpg.connect(database) for _ in range(3)]
    try:
        written = asyncio.ensure_future(_write(stores, me))
        answers = await asyncio.gather(*(forget(one, WEEK_SECONDS, lock_pause_seconds=0.05) for one in connections))
        assert sum(done.runs for done in answers) == 100
        assert [name for done in answers for name in done.dropped].count(OLD) == 1
        assert await written == {WRITTEN}
    finally:
        for connection in connections:
            await connection.close()


async def _write(stores: Stores, me: UUID) -> set[WriteState]:
    return {state for _ in range(30) for state in await states(stores, me, submission(run_key()))}


async def test_an_owner_who_is_no_superuser_forgets_and_others_may_not(empty_database: str) -> None:
    user = f"owner_{uuid7().hex}"
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute(
            f"CREATE ROLE {user} LOGIN; GRANT baton_api, baton_engine TO {user}; GRANT ALL ON SCHEMA public TO {user}"
        )
        await migrate(empty_database.replace("postgres@", f"{user}@"))
        owner = await asyncpg.connect(empty_database.replace("postgres@", f"{user}@"))
        try:
            await ensure_partitions(owner, weeks_ahead=1, now_ms=OLD_MS)
            without_week = UUID(int=first_run_id(OLD_MS - 10 * WEEK_MS).int + 1)
            long_ago = "now() - interval '2 years'"
            await connection.execute(
                "INSERT INTO events VALUES ('shop', $1, 1, 1, 10, 0, now(), '', '', '.', NULL)", without_week
            )
            for run_id, end_time in (
                (old_key(1).run_id, long_ago),
                (old_key(2).run_id, "NULL"),
                (without_week, long_ago),
            ):
                week = f"'{run_id}', 'w', 'r', '', {2 if end_time == 'NULL' else 3}, 1, 2, 2"
                await connection.execute(
                    "INSERT INTO runs (namespace, run_id, workflow, revision, request_id, state, epoch, next_sequence,"
                    " journal_format, principal, channel, workspace, labels, attributes, create_time, expire_time,"
                    f" end_time) VALUES ('shop', {week}, '', '', '', '{{}}', '{{}}', now(), now(), {end_time})"
                )
            await connection.execute("SET ROLE baton_engine")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await forget(connection, WEEK_SECONDS)
            await connection.execute("RESET ROLE")
            done = await forget(owner, WEEK_SECONDS)
            assert (done.runs, OLD in done.dropped) == (2, False)
            assert await connection.fetchval("SELECT count(*) FROM events") == 0
            await connection.execute("UPDATE runs SET state = 3, end_time = now() - interval '2 years'")
            assert OLD in (await forget(owner, WEEK_SECONDS)).dropped
        finally:
            await owner.close()
    finally:
        await connection.execute(f"DROP OWNED BY {user} CASCADE; DROP ROLE {user}")
        await connection.close()


async def test_a_server_forgets_by_itself(
    stores: Stores, old_weeks: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.01)
    await states(stores, await replica(stores), submission(old_key(1), end_time=LONG_AGO))
    upkeep = asyncio.create_task(keep_retention(database, WEEK_SECONDS))
    try:
        async with asyncio.timeout(30):
            while OLD in await partitions(old_weeks):  # noqa: ASYNC110 (nobody tells of DDL)
                await asyncio.sleep(0.01)
    finally:
        upkeep.cancel()
        await asyncio.gather(upkeep, return_exceptions=True)
    assert await stores.runs.get_run(old_key(1)) is None


async def test_what_went_to_the_default_partition_is_forgotten_with_its_run(
    stores: Stores, administrator: Connection
) -> None:
    me, new = await replica(stores), run_key()
    # Of a week that was never made or is dropped, and of one far ahead, as a machine with a wrong clock made them.
    ahead = RunKey("shop", UUID(int=first_run_id(MONDAY_MS + 5_000 * WEEK_MS).int + 1))
    old, live = old_key(1), old_key(2)
    assert set(
        await states(
            stores,
            me,
            submission(old, "old", end_time=LONG_AGO),
            submission(ahead, "ahead", end_time=LONG_AGO),
            submission(live, "live"),
            submission(new, "new", end_time=LONG_AGO),
        )
    ) == {WRITTEN}
    assert await states(stores, me, step(live, 2)) == [WRITTEN]
    assert await administrator.fetchval("SELECT count(*) FROM events_default") == 4
    assert (await forget(administrator, WEEK_SECONDS)).runs == 2
    rows = await administrator.fetch("SELECT run_id, sequence FROM events_default")
    assert sorted((row["run_id"], row["sequence"]) for row in rows) == [(live.run_id, 1), (live.run_id, 2)]
    assert await administrator.fetchval("SELECT array_agg(request_id ORDER BY request_id) FROM requests") == [
        "live",
        "new",
    ]
    assert len(await journal_of(stores, new)) == 1
    assert await states(stores, me, ending(live, 3)) == [WRITTEN]


@pytest.mark.parametrize("wrong_by_years", [-20, 20])
async def test_weeks_are_made_and_dropped_by_the_clock_of_the_database(
    wrong_by_years: int, stores: Stores, old_weeks: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await states(stores, await replica(stores), submission(old_key(1), end_time=LONG_AGO))
    wrong_ns = time.time_ns() + wrong_by_years * 365 * 24 * 3600 * 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: wrong_ns)
    before = await partitions(old_weeks)
    assert await ensure_partitions(old_weeks) == []
    assert (await forget(old_weeks, 30 * 365 * 24 * 3600)).dropped == []
    assert await partitions(old_weeks) == before
    assert OLD in (await forget(old_weeks, WEEK_SECONDS)).dropped
