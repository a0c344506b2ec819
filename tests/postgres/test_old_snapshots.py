"""Looks for runs to take over while a transaction is left open, so that Postgres can clean nothing away: they do not
come to cost as much as all that was taken over before, and miss nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest

from orchestrator.domain.ids import RunKey
from orchestrator.postgres.known import FRESH_LOOKS, WHOLE_LOOKS
from orchestrator.postgres.pool import CLAIM_SETTINGS, Pool, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from tests.conformance.journal_store import Stores, replica, run_key, states, submission
from tests.conformance.replica_store import parked
from tests.postgres.conftest import opened

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

RUNS = 300
LOOKS = WHOLE_LOOKS - 2
PAST = "clock_timestamp() - interval '1 hour'"


@pytest.fixture
async def snapshot(database: str) -> AsyncIterator[Connection]:
    """A transaction that was left open before anything happened."""
    connection = await asyncpg.connect(database)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM runs")
    yield connection
    await connection.close()


async def submitted(stores: Stores, owner: UUID, count: int) -> list[RunKey]:
    """Runs of a replica."""
    keys = [run_key() for _ in range(count)]
    await states(stores, owner, *(submission(key) for key in keys))
    return keys


class Looker:
    """A replica's store over one connection, which tells how many entries of an index it has passed over."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.store = pool, PostgresReplicaStore(pool)

    async def entries(self, index: str) -> int:
        """Entries of an index that all looks so far have found."""
        await self._pool.fetch("SELECT pg_stat_force_next_flush()")
        query = "SELECT idx_tup_read FROM pg_stat_all_indexes WHERE indexrelname = $1"
        (row,) = await self._pool.fetch(query, index)
        count: int = row["idx_tup_read"]
        return count


@pytest.fixture
async def looker(database: str) -> AsyncIterator[Looker]:
    """A store of its own: nobody else makes its looks."""
    async with AsyncExitStack() as stack:
        settings = dataclasses.replace(CLAIM_SETTINGS, max_size=1)
        yield Looker(await opened(stack, database, Role.ENGINE, settings))


async def test_looks_do_not_pass_over_all_that_was_parked_and_woken(
    stores: Stores, looker: Looker, administrator: Connection, snapshot: Connection
) -> None:
    me = await replica(stores)
    await submitted(stores, me, RUNS)
    await administrator.execute(f"UPDATE runs SET owner_replica = NULL, wake_time = {PAST}")
    assert len(await looker.store.wake(me, RUNS, 0.0)) == RUNS
    for _ in range(FRESH_LOOKS):
        assert await looker.store.wake(me, 10, 0.0) == []
    before = await looker.entries("runs_by_wake_time")
    assert before >= RUNS * FRESH_LOOKS, "it is not counted what a look passes over"
    for _ in range(FRESH_LOOKS):
        assert await looker.store.wake(me, 10, 0.0) == []
    (last,) = await submitted(stores, me, 1)
    await looker.store.park(me, [parked(last, 0)])
    assert [row.key for row in await looker.store.wake(me, 10, 0.0)] == [last]
    assert await looker.entries("runs_by_wake_time") < before + RUNS


async def test_a_run_that_was_poked_long_before_it_is_parked_is_woken_at_once(
    stores: Stores, administrator: Connection
) -> None:
    me = await replica(stores)
    (key,) = await submitted(stores, me, 1)
    await stores.replicas.poke([key])
    await administrator.execute(f"UPDATE runs SET wake_time = {PAST}")
    for _ in range(10):
        assert await stores.replicas.wake(me, 10, 0.0) == []
    await stores.replicas.park(me, [parked(key, 3_600_000_000)])
    assert [row.key for row in await stores.replicas.wake(me, 10, 0.0)] == [key]


async def test_looks_do_not_pass_over_all_that_a_dead_replica_left(
    stores: Stores, looker: Looker, snapshot: Connection
) -> None:
    dead, second, heir = [await replica(stores) for _ in range(3)]
    await submitted(stores, dead, RUNS)
    (last,) = await submitted(stores, second, 1)
    await stores.replicas.release(dead)
    assert len(await looker.store.adopt(heir, RUNS)) == RUNS
    assert await looker.store.adopt(heir, 10) == []
    before = await looker.entries("runs_by_owner")
    assert before >= 3 * RUNS, "it is not counted what a look passes over"
    for _ in range(FRESH_LOOKS):
        assert await looker.store.adopt(heir, 10) == []
    await stores.replicas.release(second)
    assert [row.key for row in await looker.store.adopt(heir, 10)] == [last]
    assert await looker.entries("runs_by_owner") < before + RUNS


async def test_what_somebody_changed_by_hand_is_found_after_a_while(stores: Stores, administrator: Connection) -> None:
    dead, heir = await replica(stores), await replica(stores)
    left, waiting = await submitted(stores, heir, 2)
    await stores.replicas.release(dead)
    for _ in range(LOOKS):
        assert await stores.replicas.adopt(heir, 10) == await stores.replicas.wake(heir, 10, 0.0) == []
    await administrator.execute("UPDATE runs SET owner_replica = $2 WHERE run_id = $1", left.run_id, dead)
    await administrator.execute(
        f"UPDATE runs SET owner_replica = NULL, wake_time = {PAST} WHERE run_id = $1", waiting.run_id
    )
    adopted, woken = [], []
    for _ in range(WHOLE_LOOKS + 1):
        adopted += await stores.replicas.adopt(heir, 10)
        woken += await stores.replicas.wake(heir, 10, 0.0)
    assert [row.key for row in adopted] == [left]
    assert [row.key for row in woken] == [waiting]
