"""What is known of replicas and of what they found, in Postgres."""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.engine.directory_ports import ReplicaRow
from orchestrator.postgres.directory import PostgresReplicaDirectory
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.scrub import PostgresScrubStore
from tests.conformance.journal_store import LEASE_SECONDS, Stores, now, replica, run_key, states, submission
from tests.postgres.conftest import Pools

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
FIRST = UUID(int=0)


@pytest.fixture
def directory(pools: Pools) -> PostgresReplicaDirectory:
    """The directory over the pools."""
    return PostgresReplicaDirectory(pools.claims)


async def known(directory: PostgresReplicaDirectory, *, include_released: bool = False) -> list[ReplicaRow]:
    return list(await directory.list_replicas(FIRST, 100, include_released=include_released))


async def test_replicas_are_listed_with_what_they_do(
    stores: Stores, pools: Pools, directory: PostgresReplicaDirectory, administrator: Connection
) -> None:
    active, draining, lost, ended = [uuid7() for _ in range(4)]
    store = PostgresReplicaStore(pools.claims, version="9.9")
    for each in (active, draining, lost, ended):
        await store.register(each, "10.0.0.5:7330", LEASE_SECONDS)
    await store.renew(active, LEASE_SECONDS, active_runs=7)
    for owner in (draining, lost):
        await states(stores, owner, submission(run_key()), submission(run_key()), submission(run_key(), end_time=now()))
    await store.renew(lost, LEASE_SECONDS, active_runs=7)
    await store.release(ended)
    # Its lease is over for both; one of them was seen to be lost.
    past = "UPDATE replicas SET lease_expire_time = clock_timestamp() - interval '1 s' WHERE replica_id = $1"
    await administrator.execute(past, lost)
    for _ in range(2):
        rows = await known(directory)
        assert [(row.replica_id, row.alive, row.draining, row.active_runs) for row in rows] == [
            (active, True, False, 7),
            (draining, True, True, 2),
            (lost, False, False, 2),
        ]
        await administrator.execute("UPDATE replicas SET end_time = clock_timestamp() WHERE replica_id = $1", lost)
    assert {(row.address, row.version) for row in rows} == {("10.0.0.5:7330", "9.9")}
    assert 0 < rows[0].lease_expire_time - now() < LEASE_SECONDS * 1_000_000 * 2
    every = await known(directory, include_released=True)
    assert [(row.replica_id, row.released) for row in every if not row.alive] == [(lost, False), (ended, True)]
    page = await directory.list_replicas(active, 1, include_released=True)
    assert [row.replica_id for row in page] == [draining]


async def test_what_was_found_is_added_up_and_stays_known_when_its_finder_is_forgotten(
    stores: Stores, directory: PostgresReplicaDirectory, administrator: Connection
) -> None:
    one, other = await replica(stores), await replica(stores)
    await directory.add_faults(one, {"not_held": 2, "ended": 1})
    await directory.add_faults(one, {"not_held": 3, "ended": 0})
    await directory.add_faults(other, {"not_held": 1})
    rows = {row.replica_id: row.faults for row in await known(directory)}
    assert [(fault.fault, fault.count) for fault in rows[one]] == [("ended", 1), ("not_held", 5)]
    assert [(fault.fault, fault.count) for fault in rows[other]] == [("not_held", 1)]
    ended, held = await directory.list_faults()
    assert (ended.fault, ended.count, held.fault, held.count) == ("ended", 1, "not_held", 6)
    assert ended.first_time < ended.last_time < held.last_time <= now() + 5_000_000

    before = [ended, held]
    for finder in (one, other):
        await administrator.execute("DELETE FROM replicas WHERE replica_id = $1", finder)
        newest = await replica(stores)
        assert await directory.list_faults() == before, "registering adds up what those that are gone have found"
        await directory.add_faults(newest, {"ended": 0})
        before = await directory.list_faults()
    assert await administrator.fetchval("SELECT count(*) FROM faults WHERE replica_id = $1", FIRST) == 2
    assert await administrator.fetchval("SELECT count(*) FROM faults") == 4


async def test_runs_that_nobody_takes_are_counted_those_of_lost_replicas_too(
    stores: Stores, pools: Pools, administrator: Connection
) -> None:
    scrub = PostgresScrubStore(pools.claims)
    lost, alive, due = await replica(stores), await replica(stores), run_key()
    await states(stores, lost, submission(run_key()), submission(run_key()))
    await states(stores, alive, submission(run_key()), submission(due))
    assert await scrub.count_overdue(60, 10) == 0
    past = "clock_timestamp() - interval '2 minutes'"
    await administrator.execute(f"UPDATE replicas SET lease_expire_time = {past} WHERE replica_id = $1", lost)
    await administrator.execute(
        f"UPDATE runs SET owner_replica = NULL, wake_time = {past} WHERE run_id = $1", due.run_id
    )
    assert await scrub.count_overdue(60, 10) == 3
    assert await scrub.count_overdue(60, 2) == 2
    assert await scrub.count_overdue(600, 10) == 0
