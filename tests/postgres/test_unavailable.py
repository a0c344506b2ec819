"""What the stores say and do when the database goes away, and when it is not known whether a commit took place."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.ports import WriteRefused
from orchestrator.postgres import pool as pool_module
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.outages import Outages
from orchestrator.postgres.pool import READ_SETTINGS, Pool, PoolSettings, Role
from tests.conformance.journal_store import (
    WRITTEN,
    Stores,
    ending,
    journal_of,
    replica,
    rows,
    run_key,
    states,
    step,
    submission,
)
from tests.postgres.conftest import Pools, opened
from tests.postgres.proxy import lossy_proxy


async def test_an_ambiguous_commit_is_settled_by_the_identical_batch(
    stores: Stores, pools: Pools, database: str
) -> None:
    me, old, dying = await replica(stores), run_key(), run_key()
    await states(stores, me, submission(old), submission(dying))
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        async with lossy_proxy(database, Path(directory)) as (proxy, dsn), AsyncExitStack() as stack:
            far = await opened(stack, dsn, Role.ENGINE, PoolSettings(max_size=1, generic_plans=True))
            store = PostgresJournalStore(far, pools.reads)
            # Of the shape of the batch below, so that its statement is prepared and only the answer to it can be lost.
            before = [step(old, 2), submission(run_key())]
            assert [result.state for result in await store.write(me, before)] == [WRITTEN] * 2
            batch = [step(old, 3, 2), submission(run_key(), "request-1", count=2), ending(dying, 2)]
            proxy.loses_answers = True
            with pytest.raises(DatabaseUnavailable):
                await store.write(me, batch)
            assert await journal_of(stores, old) == rows(1, 4)  # It did take place.
            proxy.loses_answers = False
            assert [result.state for result in await store.write(me, batch)] == [WRITTEN] * 3
            assert [result.state for result in await store.write(me, [step(old, 5)])] == [WRITTEN]
    assert await journal_of(stores, old) == rows(1, 5)
    assert await journal_of(stores, dying) == rows(1, 2)


async def test_connections_that_were_killed_are_replaced(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    await administrator.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    outcomes: list[str | None] = []
    while not outcomes or outcomes[-1] is not None:
        try:
            outcomes.append(None if await states(stores, me, step(key, 2)) == [WRITTEN] else "wrong")
        except DatabaseUnavailable as error:
            outcomes.append(str(error))
    assert set(outcomes) <= {
        None,
        "the database cannot be reached; try again",
        "the database is starting or stopping; try again",
    }


@pytest.mark.parametrize("times", [1, 2])
async def test_a_read_that_is_cancelled_is_no_error_of_the_pool(pools: Pools, times: int) -> None:
    """Once by the caller who leaves, and once more by a server that stops meanwhile."""
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
    try:
        for _ in range(2 * READ_SETTINGS.max_size):
            reading = asyncio.ensure_future(pools.reads.fetch_in("default", "SELECT pg_sleep(10)"))
            await asyncio.wait({reading}, timeout=0.05)  # not a wait for anything: the moment is to be in the statement
            for _ in range(times):
                reading.cancel()
                await asyncio.wait({reading}, timeout=0)
            with pytest.raises(asyncio.CancelledError):
                await reading
        # None of the connections is lost or left in the transaction.
        names = [f"n{number}" for number in range(READ_SETTINGS.max_size)]
        shown = (pools.reads.fetch_in(name, "SELECT current_setting('baton.namespace')") for name in names)
        assert [found[0][0] for found in await asyncio.gather(*shown)] == names
    finally:
        loop.set_exception_handler(None)
    assert not reported


@pytest.mark.parametrize("code", ["57014", "53300", "40001", "40P01", "55P03", "25006", "57P01", "53100", "58030"])
async def test_errors_that_do_not_blame_the_data_are_unavailability(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record], code: str
) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    await fail_with(administrator, code)
    with pytest.raises(DatabaseUnavailable) as caught:
        await stores.journal.write(me, [step(key, 2)])
    assert "injected" not in str(caught.value)
    await administrator.execute("DROP TRIGGER failing ON events")
    assert await states(stores, me, step(key, 2)) == [WRITTEN]


@pytest.mark.parametrize("code", ["22021", "23514", "54000"])
async def test_errors_that_blame_the_data_are_refusals(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record], code: str
) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    await fail_with(administrator, code)
    with pytest.raises(WriteRefused):
        await stores.journal.write(me, [step(key, 2)])


async def fail_with(administrator: asyncpg.Connection[asyncpg.Record], code: str) -> None:
    """Lets every insert into the journal fail with an SQLSTATE."""
    await administrator.execute(
        f"""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END $$;
        CREATE TRIGGER failing BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION fail()
        """
    )


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await Pool.open(f"postgresql://postgres@/postgres?host={tmp_path}", Role.API, PoolSettings())


async def test_a_pool_that_is_exhausted_says_so_in_time(database: str) -> None:
    async with AsyncExitStack() as stack:
        pool = await opened(stack, database, Role.API, PoolSettings(max_size=1, acquire_timeout_seconds=0.05))
        async with pool.connection():
            with pytest.raises(DatabaseUnavailable):
                await pool.fetch("SELECT 1")
        assert len(await pool.fetch("SELECT 1")) == 1


async def test_who_reads_hardly_waits_for_a_database_that_is_silent_until_it_answers_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "HURRIED_SECONDS", 0.05)
    outages = Outages()
    async with AsyncExitStack() as stack:
        settings = PoolSettings(max_size=1, acquire_timeout_seconds=60)
        patient = await opened(stack, database, Role.API, settings, outages)
        reads = await opened(stack, database, Role.API, replace(settings, hurried=True), outages)
        outages.failed(TimeoutError())
        async with reads.connection():
            async with patient.connection():
                waiting = asyncio.create_task(patient.fetch("SELECT 1"))
                with pytest.raises(DatabaseUnavailable) as refused:
                    await asyncio.wait_for(reads.fetch("SELECT 1"), 20)
                assert refused.value.metadata == {"cause": "SILENT"}
                assert not waiting.done(), "who is to find out that the database answers has given up"
            assert len(await waiting) == 1
            assert not outages.silent
            waiting = asyncio.create_task(reads.fetch("SELECT 1"))
            outages.failed(asyncpg.DeadlockDetectedError())
            assert not outages.silent
        assert len(await waiting) == 1


async def test_a_connection_that_swallows_is_dropped_as_soon_as_its_time_is_over(database: str) -> None:
    """Without a wait for its statement to be cancelled, which would take a minute here."""
    settings = PoolSettings(max_size=1, acquire_timeout_seconds=60, statement_timeout_seconds=60)
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        async with (
            asyncio.timeout(30),
            lossy_proxy(database, Path(directory)) as (proxy, dsn),
            AsyncExitStack() as stack,
        ):
            pool = await opened(stack, dsn, Role.API, settings)

            async def read_in_namespace() -> None:
                async with pool.in_namespace("shop") as connection:
                    proxy.swallow()
                    await connection.fetch("SELECT 1", timeout=0.1)

            async def read_kept() -> None:
                async with pool.lend_kept() as connection:
                    proxy.swallow()
                    await connection.fetch("SELECT 1", timeout=0.1)

            proxy.swallow()
            with pytest.raises(DatabaseUnavailable) as refused:
                await pool.fetch_within(0.1, "SELECT 1")
            assert refused.value.metadata == {"cause": "SILENT"}
            assert len(await pool.fetch("SELECT 1")) == 1
            with pytest.raises(DatabaseUnavailable):
                await read_in_namespace()
            assert len(await pool.fetch_in("shop", "SELECT 1")) == 1
            with pytest.raises(TimeoutError):
                await read_kept()
            assert len(await pool.fetch("SELECT 1")) == 1


async def test_cancelled_reads_leave_no_transaction_and_no_namespace_behind(database: str) -> None:
    async with AsyncExitStack() as stack:
        pool = await opened(stack, database, Role.API, PoolSettings(max_size=1))
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await pool.fetch_in("shop", "SELECT pg_sleep(10)")
        (row,) = await pool.fetch("SELECT current_setting('baton.namespace', true) AS namespace")
        assert not row["namespace"]
        (row,) = await pool.fetch("SELECT count(*) AS idle FROM pg_stat_activity WHERE state LIKE 'idle in%'")
        assert row["idle"] == 0


async def test_a_kept_connection_is_lent_again_and_none_is_lent_twice_at_once(pools: Pools) -> None:
    async def lent() -> int:
        async with pools.journal.lend_kept() as connection:
            return connection.get_server_pid()

    first = await lent()
    assert await lent() == first
    async with pools.journal.lend_kept() as one, pools.journal.lend_kept() as other:
        assert {one.get_server_pid(), other.get_server_pid()} > {first}
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with pools.journal.lend_kept() as failing:
            await failing.execute("SELECT 1 / 0")
    async with pools.journal.lend_kept() as healthy:
        assert await healthy.fetchval("SELECT 1") == 1


async def test_a_kept_connection_that_was_lost_between_loans_is_replaced(
    pools: Pools, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    async with pools.journal.lend_kept() as kept:
        process_id, lost = kept.get_server_pid(), asyncio.Event()
        kept.add_termination_listener(lambda _: lost.set())
    await administrator.execute("SELECT pg_terminate_backend($1)", process_id)
    await asyncio.wait_for(lost.wait(), 10)
    async with pools.journal.lend_kept() as another:
        assert await another.fetchval("SELECT 1") == 1
        assert another.get_server_pid() != process_id
