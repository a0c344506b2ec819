"""Fixtures of the tests of the stores in Postgres: pools over a fresh database, and the stores over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg
import pytest

from orchestrator.postgres.approvals import LOOKED_AT, PAGE_BYTES, PostgresApprovalStore
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.outages import Outages
from orchestrator.postgres.pool import CLAIM_SETTINGS, READ_SETTINGS, Pool, PoolSettings, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.runs import PostgresRunStore
from orchestrator.postgres.schedules import PostgresScheduleStore
from tests.conformance.approval_store import ApprovalStoreMaker
from tests.conformance.journal_store import Stores, replica
from tests.postgres.firing import DrivenClock, Lab


@dataclass(frozen=True, slots=True)
class Pools:
    """One pool for each purpose."""

    journal: Pool
    claims: Pool
    reads: Pool


async def opened(
    stack: AsyncExitStack, dsn: str, role: Role, settings: PoolSettings, outages: Outages | None = None
) -> Pool:
    """Opens a pool that closes with `stack`."""
    pool = await Pool.open(dsn, role, settings, outages)
    stack.push_async_callback(pool.close)
    return pool


@pytest.fixture
async def pools(database: str) -> AsyncIterator[Pools]:
    """Pools over a fresh database, with room for replicas that write at the same time."""
    async with AsyncExitStack() as stack:
        yield Pools(
            journal=await opened(stack, database, Role.ENGINE, PoolSettings(max_size=6, generic_plans=True)),
            claims=await opened(stack, database, Role.ENGINE, CLAIM_SETTINGS),
            reads=await opened(stack, database, Role.API, READ_SETTINGS),
        )


@pytest.fixture
def stores(pools: Pools) -> Stores:
    """The stores over the pools."""
    return Stores(
        PostgresJournalStore(pools.journal, pools.reads),
        PostgresReplicaStore(pools.claims),
        PostgresRunStore(pools.reads),
    )


@pytest.fixture
def approvals(pools: Pools) -> ApprovalStoreMaker:
    """Makes stores of approvals that look at so many requests a page, and give so many bytes."""
    return lambda looked_at=LOOKED_AT, page_bytes=PAGE_BYTES: PostgresApprovalStore(pools.reads, looked_at, page_bytes)


@pytest.fixture
def schedules(pools: Pools) -> PostgresScheduleStore:
    """Schedules over the pools."""
    return PostgresScheduleStore(pools.reads, pools.claims)


@pytest.fixture
async def lab(stores: Stores, schedules: PostgresScheduleStore) -> Lab:
    """One replica's schedules."""
    return Lab(stores, schedules, await replica(stores), DrivenClock())


@pytest.fixture
async def heir(stores: Stores, schedules: PostgresScheduleStore, lab: Lab) -> Lab:
    """A second replica by the same clock."""
    return Lab(stores, schedules, await replica(stores), lab.clock)


@pytest.fixture
async def administrator(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of the superuser, whom row level security does not bind."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()
