"""The lease of a replica whose event loop is blocked: kept for a while, then given up; what comes later is refused. And
one whose connection swallows what is sent."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.lease import LeaseKeeper
from orchestrator.engine.machine import OwnThread
from orchestrator.engine.ports import LeaseLost, Renewal, ReplicaStore
from orchestrator.postgres.pool import CLAIM_SETTINGS, Pool, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from tests.conformance.journal_store import WRITTEN, Stores, replica, run_key, states, step, submission
from tests.postgres.proxy import lossy_proxy

LEASE_SECONDS = 0.4


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresReplicaStore]:
    async with AsyncExitStack() as stack:
        pool = await Pool.open(dsn, Role.ENGINE, CLAIM_SETTINGS)
        stack.push_async_callback(pool.close)
        yield PostgresReplicaStore(pool)


def meanwhile(dsn: str, act: Callable[[PostgresReplicaStore], Awaitable[None]]) -> None:
    """Does something with a store on another thread and blocks the event loop of the caller until it is done."""
    failures: list[BaseException] = []

    async def body() -> None:
        async with asyncio.timeout(20), opened(dsn) as store:
            await act(store)

    def run() -> None:
        try:
            asyncio.run(body())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


class Kept:
    """A replica with a lease, and what it is told of it."""

    def __init__(self, dsn: str, stall_seconds: float, lease_seconds: float = LEASE_SECONDS) -> None:
        self.replica_id: UUID = uuid7()
        self.lost = asyncio.Event()
        self.happened = asyncio.Event()
        self.renewals = 0

        @asynccontextmanager
        async def open_replica_store() -> AsyncIterator[ReplicaStore]:
            async with opened(dsn) as store:
                yield store

        self.keeper = LeaseKeeper(
            open_replica_store,
            DatabaseClock(),
            lease_seconds,
            stall_seconds,
            lambda: 7,
            self._count,
            self._lose,
            OwnThread(),
        )

    def _count(self, _: Renewal) -> None:
        self.renewals += 1
        self.happened.set()

    def _lose(self) -> None:
        self.lost.set()
        self.happened.set()

    async def wait_for_a_renewal(self) -> None:
        """Waits until the lease has been renewed once more; fails where it is lost before."""
        before = self.renewals
        async with asyncio.timeout(20):
            while self.renewals == before:
                assert not self.lost.is_set()
                self.happened.clear()
                await self.happened.wait()


async def test_a_blocked_loop_keeps_its_lease_and_acts_on(stores: Stores, database: str) -> None:
    kept, other, key = Kept(database, stall_seconds=30.0), await replica(stores), run_key()
    await kept.keeper.start(kept.replica_id, "127.0.0.1:7001")
    await states(stores, kept.replica_id, submission(key))

    async def watch(store: PostgresReplicaStore) -> None:
        first = (await store.renew(other, 60.0)).database_time
        while (await store.renew(other, 60.0)).database_time - first < 3 * LEASE_SECONDS * 1_000_000:
            assert await store.adopt(other, 10) == []

    meanwhile(database, watch)
    assert kept.keeper.holds
    assert await states(stores, kept.replica_id, step(key, 2)) == [WRITTEN]
    assert not kept.lost.is_set()
    renewal = await stores.replicas.renew(other, 60.0, 3)
    assert renewal.loads == {kept.replica_id: 7}
    await kept.keeper.stop()
    assert not kept.keeper.holds
    assert (await stores.replicas.renew(other, 60.0)).loads == {other: 3}


async def test_a_loop_that_is_blocked_for_too_long_loses_its_runs_and_does_nothing_to_them(
    stores: Stores, database: str
) -> None:
    kept, heir, key = Kept(database, stall_seconds=0.5), await replica(stores), run_key()
    await kept.keeper.start(kept.replica_id, "127.0.0.1:7001")
    await states(stores, kept.replica_id, submission(key))

    async def take_over(store: PostgresReplicaStore) -> None:
        while not (taken := await store.adopt(heir, 10)):  # noqa: ASYNC110 - the fact is in the database
            await asyncio.sleep(0.01)
        assert [(row.key, row.epoch, row.handed_over) for row in taken] == [(key, 2, False)]

    meanwhile(database, take_over)
    # The loop goes on: nothing has been told to it yet, and nothing may be done.
    assert not kept.keeper.holds
    with pytest.raises(LeaseLost):
        await stores.journal.write(kept.replica_id, [step(key, 2)])
    async with asyncio.timeout(10):
        await kept.lost.wait()
    assert await states(stores, heir, step(key, 2, epoch=2)) == [WRITTEN]
    await kept.keeper.stop()


async def test_a_lease_outlives_the_connection_that_it_is_renewed_on(stores: Stores, database: str) -> None:
    """Twice: what is swallowed is also the connection that took the place of the first."""
    other, key = await replica(stores), run_key()
    with tempfile.TemporaryDirectory(prefix="baton-test-") as directory:
        async with lossy_proxy(database, Path(directory)) as (proxy, dsn):
            kept = Kept(dsn, stall_seconds=30.0, lease_seconds=4.0)
            await kept.keeper.start(kept.replica_id, "127.0.0.1:7001")
            await states(stores, kept.replica_id, submission(key))
            await kept.wait_for_a_renewal()
            for _ in range(2):
                connections = proxy.connections
                proxy.swallow()
                while proxy.connections == connections:
                    await kept.wait_for_a_renewal()
                assert kept.keeper.holds
            assert await stores.replicas.adopt(other, 10) == []
            assert await states(stores, kept.replica_id, step(key, 2)) == [WRITTEN]
            await kept.keeper.stop()
            # What was swallowed comes to the database now, and brings no lease back that was given up.
            proxy.heal()
    assert [row.key for row in await stores.replicas.adopt(other, 10)] == [key]


@pytest.mark.parametrize("failed", [False, True], ids=["in good order", "failed"])
async def test_who_takes_over_is_told_how_its_owner_ended(stores: Stores, database: str, failed: bool) -> None:
    kept, other, key = Kept(database, stall_seconds=30.0), await replica(stores), run_key()
    await kept.keeper.start(kept.replica_id, "127.0.0.1:7001")
    await states(stores, kept.replica_id, submission(key))
    await kept.keeper.stop(lost=failed)
    (row,) = await stores.replicas.adopt(other, 10)
    assert (row.key, row.handed_over) == (key, not failed)
    found = (await stores.replicas.renew(other, 60.0)).replicas
    assert found is not None
    assert set(found.members) == {other}
    assert (found.loss_time is not None) is failed


async def test_changes_are_told_since_the_last_renewal_that_was_answered(
    stores: Stores, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a lease and the time that a change may take are: here no time at all."""
    monkeypatch.setattr("orchestrator.postgres.replicas.CHANGE_MARGIN_SECONDS", 0.0)
    me, other = await replica(stores), await replica(stores)
    await stores.replicas.renew(me, 0.0)
    connection = await asyncpg.connect(database)
    await connection.execute("INSERT INTO catalogues (namespace, version, change_time) VALUES ('shop', 7, now())")
    await connection.close()
    assert (await stores.replicas.renew(me, 0.0)).changed_namespaces == {"shop": 7}
    async with opened(database) as store:
        assert (await store.renew(other, 0.0)).changed_namespaces == {}, "it was never answered, and no time is allowed"
