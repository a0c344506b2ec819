"""A lease holds in the history of the database that it was taken in: who takes over may lack what was written.

The standby is real, and lacks what its server committed last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import asyncpg
import pytest

from orchestrator.engine.ports import LeaseLost
from orchestrator.postgres.history import History
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.outages import Outages
from orchestrator.postgres.pool import CLAIM_SETTINGS, JOURNAL_SETTINGS, READ_SETTINGS, Pool, PoolSettings, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.runs import PostgresRunStore
from tests.chaos.behind import Behind, standing_behind
from tests.conformance.journal_store import (
    WRITTEN,
    Stores,
    journal_of,
    replica,
    rows,
    run_key,
    states,
    step,
    submission,
)
from tests.conformance.replica_store import parked


async def stores_of(stack: AsyncExitStack, dsn: str) -> Stores:
    """Stores as one process has them: its pools know of each other what they find out about the database."""
    outages = Outages()

    async def opened(role: Role, settings: PoolSettings) -> Pool:
        pool = await Pool.open(dsn, role, settings, outages)
        stack.push_async_callback(pool.close)
        return pool

    journal, claims = await opened(Role.ENGINE, JOURNAL_SETTINGS), await opened(Role.ENGINE, CLAIM_SETTINGS)
    reads = await opened(Role.API, READ_SETTINGS)
    return Stores(PostgresJournalStore(journal, reads), PostgresReplicaStore(claims), PostgresRunStore(reads))


@pytest.fixture
async def behind() -> AsyncIterator[Behind]:
    async with standing_behind() as servers:
        yield servers


@pytest.fixture
async def stores(behind: Behind) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        yield await stores_of(stack, behind.dsn)


async def test_a_lease_ends_where_the_database_lacks_what_was_written(behind: Behind, stores: Stores) -> None:
    """Also where rows and memory fit: a run may have come to the same numbers in two histories."""
    me, kept, gone = await replica(stores), run_key(), run_key()
    await states(stores, me, submission(kept))
    await behind.hold()
    assert await states(stores, me, step(kept, 2), submission(gone, "request-1")) == [WRITTEN, WRITTEN]
    await behind.fail_over()

    # The row waits for just this: without a history the fence would take it.
    with pytest.raises(LeaseLost):
        await stores.journal.write(me, [step(kept, 2, text="of what never was")])
    with pytest.raises(LeaseLost):
        await stores.replicas.park(me, [parked(kept, 1_000_000)])
    with pytest.raises(LeaseLost):
        await stores.replicas.adopt(me, 10)
    with pytest.raises(LeaseLost):
        await stores.replicas.wake(me, 10, 60.0)
    assert await stores.replicas.claim(me, kept) is None
    with pytest.raises(LeaseLost):
        await stores.replicas.renew(me, 60.0)

    # Its runs are free at once, as they stand in the database, for whoever takes a lease: such as the same process.
    again = await replica(stores)
    assert [(row.key, row.epoch, row.next_sequence) for row in await stores.replicas.adopt(again, 10)] == [(kept, 2, 2)]
    await stores.replicas.renew(again, 60.0)
    assert await states(stores, again, step(kept, 2, epoch=2), submission(gone, "request-1")) == [WRITTEN, WRITTEN]
    assert await journal_of(stores, kept) == rows(1, 2)


async def test_a_restart_of_the_database_leaves_leases_alone(behind: Behind, stores: Stores) -> None:
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key))
    await behind.restart()
    await stores.replicas.renew(me, 60.0)
    assert await states(stores, me, step(key, 2)) == [WRITTEN]


async def test_every_role_can_tell_the_history(database: str) -> None:
    async with AsyncExitStack() as stack:
        for role in Role:
            outages = Outages()
            pool = await Pool.open(database, role, READ_SETTINGS, outages)
            stack.push_async_callback(pool.close)
            connection = await asyncpg.connect(database)
            cluster = await connection.fetchval("SELECT system_identifier::text FROM pg_control_system()")
            await connection.close()
            assert outages.history.name == f"{cluster}/00000001"


def test_a_lease_is_of_the_history_that_it_began_in() -> None:
    history, one, other = History(), UUID(int=1), UUID(int=2)
    assert not history.led_to("cluster/1")
    history.begin_lease(one)
    assert not history.led_to("cluster/1")
    assert history.holds_lease(one)
    assert history.led_to("cluster/2")
    assert not history.holds_lease(one)
    assert history.led_to("cluster/1")  # The former primary: what was written meanwhile is not there.
    assert not history.holds_lease(one)
    history.begin_lease(other)
    assert history.holds_lease(other)
