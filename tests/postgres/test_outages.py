"""What callers and operators are told when the database does not serve, and how connections find one that does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.postgres.causes import Cause, cause_of
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.outages import QUIET_SECONDS, TELL_AGAIN_SECONDS, Outages
from orchestrator.postgres.pool import Pool, PoolSettings, Role
from tests.conformance.journal_store import WRITTEN, Stores, replica, run_key, states, step, submission
from tests.postgres.conftest import Pools, opened
from tests.postgres.test_unavailable import fail_with


class Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("code", "cause", "told"),
    [
        ("25006", "READ_ONLY", "the database takes no writes; try again"),
        ("53100", "DISK_FULL", "the database has no disk space left; try again"),
        ("53300", "TOO_MANY_CONNECTIONS", "the database has no connection left; try again"),
        ("42501", "NOT_ALLOWED", "this server lacks a right in the database; its operator has to mend that"),
        ("57014", "SILENT", "the database does not answer in time; try again"),
        ("40P01", "LOCKED", "other work at the database is in the way; try again"),
        ("58030", "FAILED", "the database failed; try again"),
    ],
)
async def test_callers_are_told_the_class_of_the_cause_and_the_log_is_told_the_rest(
    stores: Stores,
    administrator: asyncpg.Connection[asyncpg.Record],
    caplog: pytest.LogCaptureFixture,
    code: str,
    cause: str,
    told: str,
) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    await fail_with(administrator, code)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable) as caught:
            await stores.journal.write(me, [step(key, 2)])
    assert (str(caught.value), caught.value.metadata) == (told, {"cause": cause})
    (line,) = [vars(record) for record in caplog.records if record.name.endswith("outages")]  # Once, not three times.
    assert (line["cause"], line["sqlstate"], line["detail"]) == (cause, code, "injected")
    assert line["cure"] == Cause[cause].value.cure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (asyncpg.InvalidPasswordError("no"), Cause.LOGIN_REFUSED),
        (asyncpg.InvalidAuthorizationSpecificationError("no"), Cause.LOGIN_REFUSED),
        (asyncpg.InvalidCatalogNameError("no"), Cause.DATABASE_MISSING),
        (asyncpg.UndefinedTableError("no"), Cause.SCHEMA_MISSING),
        (asyncpg.UndefinedColumnError("no"), Cause.SCHEMA_MISSING),
        (asyncpg.CannotConnectNowError("no"), Cause.RESTARTING),
        (asyncpg.ConnectionDoesNotExistError("no"), Cause.UNREACHABLE),
        (asyncpg.InterfaceError("no"), Cause.UNREACHABLE),
        (asyncpg.OutOfMemoryError("no"), Cause.OUT_OF_MEMORY),
        (asyncpg.ClientConfigurationError("no"), Cause.ADDRESS_INVALID),
        (asyncpg.InternalServerError("no"), Cause.FAILED),
        (ConnectionRefusedError(), Cause.UNREACHABLE),
        (TimeoutError(), Cause.SILENT),
    ],
)
def test_each_error_of_the_driver_has_a_cause(error: Exception, cause: Cause) -> None:
    assert cause_of(error) is cause


def test_the_log_is_told_of_changes_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = Time()
    outages = Outages(now)

    def lines() -> list[str]:
        told = [record.message for record in caplog.records]
        caplog.clear()
        return told

    for _ in range(1_000):
        outages.failed(ConnectionRefusedError())
        outages.answered()  # Of another pool: nothing is over yet.
    outages.failed(asyncpg.CannotConnectNowError("the database system is starting up"))
    assert lines() == ["the database cannot be reached", "the database is starting or stopping"]
    now.seconds += QUIET_SECONDS
    outages.answered()
    outages.answered()
    assert lines() == ["the database serves again"]
    assert not outages.ongoing
    for _ in range(10):  # It comes and goes.
        outages.failed(ConnectionRefusedError())
        now.seconds += QUIET_SECONDS
        outages.answered()
    assert lines() == []
    now.seconds += TELL_AGAIN_SECONDS
    outages.failed(ConnectionRefusedError())
    assert lines() == ["the database cannot be reached"]


async def write_by(lend: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    async with lend() as connection:
        await connection.execute("UPDATE replicas SET address = ''")


async def test_connections_to_a_former_primary_are_made_anew(database: str) -> None:
    outages = Outages()
    async with AsyncExitStack() as stack:
        claims = await Pool.open(database, Role.ENGINE, PoolSettings(max_size=1), outages)
        stack.push_async_callback(claims.close)
        reads = await Pool.open(database, Role.API, PoolSettings(max_size=1), outages)
        stack.push_async_callback(reads.close)
        async with reads.connection() as connection:
            before = connection.get_server_pid()
        for lend in (claims.lend, claims.lend_kept):
            async with lend() as former:
                await former.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
                process_id = former.get_server_pid()
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as caught:
                await write_by(lend)
            assert "takes no writes" in str(claims.unavailable(caught.value))
            outages._renewed_seconds = float("-inf")  # A second passes.
            async with lend() as connection:
                assert connection.get_server_pid() != process_id
            await write_by(lend)
        async with reads.connection() as connection:  # They would read from what is a standby now.
            assert connection.get_server_pid() != before


async def test_a_login_that_is_no_longer_taken_blames_no_data(
    database: str, stores: Stores, pools: Pools, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    user = f"former_{uuid7().hex}"
    await administrator.execute(f"CREATE ROLE {user} LOGIN; GRANT baton_engine, baton_api TO {user}")
    async with AsyncExitStack() as stack:
        journal = await opened(stack, database.replace("postgres@", f"{user}@"), Role.ENGINE, PoolSettings(max_size=1))
        store = PostgresJournalStore(journal, pools.reads)
        assert [result.state for result in await store.write(me, [step(key, 2)])] == [WRITTEN]
        await administrator.execute(f"REVOKE baton_engine, baton_api FROM {user}")
        await administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", user)
        told = set()
        while len(told) < 2:  # First, perhaps, that the connection is gone.
            with pytest.raises(DatabaseUnavailable) as caught:
                await store.write(me, [step(key, 3)])
            told.add(caught.value.metadata["cause"])
            if "NOT_ALLOWED" in told:
                break
        await administrator.execute(f"GRANT baton_engine, baton_api TO {user}")
        assert [result.state for result in await store.write(me, [step(key, 3)])] == [WRITTEN]
    await administrator.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")


async def test_a_transaction_whose_beginning_was_cancelled_is_no_error_of_the_pool(database: str) -> None:
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
    try:
        async with AsyncExitStack() as stack:
            pool = await opened(stack, database, Role.API, PoolSettings(max_size=1))
            for turns in range(200):
                reading = asyncio.ensure_future(pool.fetch_in("default", "SELECT 1"))
                for _ in range(turns % 25):
                    await asyncio.sleep(0)
                if turns % 2:
                    await asyncio.sleep(turns / 200_000)  # The moment is to be anywhere between BEGIN and its answer.
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            (row,) = await pool.fetch("SELECT count(*) AS idle FROM pg_stat_activity WHERE state LIKE 'idle in%'")
            assert row["idle"] == 0
    finally:
        loop.set_exception_handler(None)
    assert not reported


async def test_a_pool_that_closes_does_not_wait_for_a_database_that_is_away(database: str) -> None:
    outages = Outages()
    pool = await Pool.open(database, Role.API, PoolSettings(statement_timeout_seconds=60.0), outages)
    reading = asyncio.ensure_future(pool.fetch("SELECT pg_sleep(50)"))
    await asyncio.wait({reading}, timeout=0.05)  # not a wait for anything: it is to be under way
    outages.failed(TimeoutError())
    async with asyncio.timeout(20):
        await pool.close()
    with pytest.raises(DatabaseUnavailable):
        await reading
