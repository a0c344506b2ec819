"""Proves that the API's role sees one namespace alone on every table, and that no role sees more than it needs."""

from __future__ import annotations

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.ids import EndpointKey, RevisionKey, RunKey
from orchestrator.engine.catalogue_ports import ContractRow, Reach, RevisionRow
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.schedule_ports import Progress, ScheduleKey, ScheduleRow
from orchestrator.postgres.errors import RoleError
from orchestrator.postgres.limits import PostgresLimitStore
from orchestrator.postgres.pool import Pool, PoolSettings, Role
from orchestrator.postgres.schedules import PostgresScheduleStore
from orchestrator.postgres.workers import PostgresKeyStore, PostgresWorkerStore
from orchestrator.postgres.workflows import PostgresWorkflowStore
from tests.conformance.journal_store import WRITTEN, Stores, replica, run_key, states, submission
from tests.postgres.conftest import Pools

SHARED = {"faults", "replicas", "replica_sets", "schema_migrations", "signing_keys"}
"""Tables that belong to no namespace."""


async def tables(administrator: asyncpg.Connection[asyncpg.Record], kinds: str) -> set[str]:
    found = await administrator.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind::text = ANY ($1)"
        " AND NOT relispartition",
        list(kinds),
    )
    return {row["relname"] for row in found}


async def fill(stores: Stores, pools: Pools, namespace: str) -> RunKey:
    """Puts something into every table of a namespace."""
    key = run_key(namespace)
    assert await states(stores, await replica(stores), submission(key, "request-1")) == [WRITTEN]
    workers = PostgresWorkerStore(pools.reads, pools.claims)
    await workers.put_endpoint(EndpointKey(namespace, "pay", "h:1"), None, ContractRow("d", b"files", ("S",)), Reach())
    revision = RevisionRow(RevisionKey(namespace, "fulfil-order", "r1"), b"definition", ("d",), 1)
    await PostgresWorkflowStore(pools.reads).put_revision(revision)
    schedules, schedule = PostgresScheduleStore(pools.reads, pools.claims), ScheduleKey(namespace, "nightly")
    assert await schedules.insert(ScheduleRow(schedule, b"definition", b"input", "ada", 1, 1, 1, Progress(5), 5))
    await schedules.add_run(schedule, key.run_id, 5, triggered=False)
    await PostgresLimitStore(pools.reads).put_limit(LimitRow(namespace, "few", 3, "", 1, None, 0, 0), 10)
    return key


async def test_the_api_sees_one_namespace_on_every_table(
    stores: Stores, pools: Pools, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    await fill(stores, pools, "shop")
    await fill(stores, pools, "bank")
    names = await tables(administrator, "rp") - SHARED
    assert len(names) == 12
    for name in names:
        counts = f"SELECT namespace, count(*) AS rows FROM {name} GROUP BY namespace"
        assert {row["namespace"] for row in await administrator.fetch(counts)} == {"shop", "bank"}, name
        for namespace in ("shop", "bank"):
            seen = await pools.reads.fetch_in(namespace, counts)
            assert [(row["namespace"], row["rows"]) for row in seen] == [(namespace, 1)], name
        assert await pools.reads.fetch_in("", counts) == [], name
        assert await pools.reads.fetch(counts) == [], f"{name} is seen without a namespace"


async def test_row_level_security_is_forced_on_every_table(
    administrator: asyncpg.Connection[asyncpg.Record],
) -> None:
    rows = await administrator.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT (relrowsecurity AND relforcerowsecurity)"
    )
    assert rows == []


async def test_the_api_writes_nothing_of_another_namespace(stores: Stores, pools: Pools) -> None:
    await fill(stores, pools, "bank")
    for statement in (
        "INSERT INTO workers VALUES ('bank', 'evil', 1, now())",
        "INSERT INTO endpoints VALUES ('bank', 'pay', 'evil:1', 'd', false, now())",
        "INSERT INTO catalogues VALUES ('bank', 9, now()) ON CONFLICT (namespace) DO UPDATE SET version = 9",
        "UPDATE workers SET namespace = 'bank' WHERE namespace = 'shop'",
    ):
        if statement.startswith("UPDATE"):
            await fill(stores, pools, "shop")
        with pytest.raises(DatabaseUnavailable):
            await pools.reads.fetch_in("shop", statement)
    for statement in ("UPDATE workers SET max_in_flight = 1 RETURNING 1", "DELETE FROM endpoints RETURNING namespace"):
        touched = await pools.reads.fetch_in("other", statement)
        assert touched == []


async def test_rights_are_narrow(pools: Pools, administrator: asyncpg.Connection[asyncpg.Record]) -> None:
    rows = await administrator.fetch(
        "SELECT grantee, table_name, string_agg(privilege_type, ' ' ORDER BY privilege_type) AS rights"
        " FROM information_schema.role_table_grants WHERE grantee LIKE 'baton%' GROUP BY 1, 2"
    )
    granted = {(row["grantee"], row["table_name"]): row["rights"] for row in rows}
    read, append, edit = "SELECT", "INSERT SELECT", "INSERT SELECT UPDATE"
    everything = "DELETE INSERT SELECT UPDATE"
    assert granted == {
        **{("baton_api", name): read for name in ("runs", "requests", "events", "schema_migrations")},
        **{("baton_api", name): edit for name in ("catalogues", "workflows", "workflow_revisions")},
        **{
            ("baton_api", name): everything for name in ("workers", "endpoints", "limits", "schedules", "schedule_runs")
        },
        ("baton_api", "contracts"): append,
        **{("baton_engine", name): everything for name in ("replicas", "faults")},
        ("baton_engine", "runs"): edit,
        ("baton_engine", "replica_sets"): "SELECT UPDATE",
        **{("baton_engine", name): append for name in ("requests", "events", "signing_keys")},
        **{("baton_engine", name): read for name in ("catalogues", "schema_migrations", "schedules")},
        ("baton_engine", "schedule_runs"): "DELETE SELECT",
    }
    rows = await administrator.fetch(
        "SELECT table_name, column_name FROM information_schema.role_column_grants"
        " WHERE grantee = 'baton_engine' AND privilege_type = 'UPDATE' AND table_name LIKE 'schedule%'"
    )
    assert {tuple(row) for row in rows} == {("schedules", "claim_replica"), ("schedules", "claim_expire_time")}
    rows = await administrator.fetch("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'")
    assert len(rows) >= 10
    for row in rows:
        for role in (pools.reads, pools.journal):
            with pytest.raises(DatabaseUnavailable):
                await role.fetch(f"SELECT FROM {row['relname']}")


async def test_a_namespace_may_have_any_name(stores: Stores, pools: Pools) -> None:
    for namespace in ("it's", "'; DROP TABLE runs; --", "ü \\ % {x}", "\U0001f600"):
        key = await fill(stores, pools, namespace)
        row = await stores.runs.get_run(key)
        assert row is not None
        assert row.key == key


async def test_a_role_that_row_level_security_does_not_bind_is_refused(
    administrator: asyncpg.Connection[asyncpg.Record], database: str
) -> None:
    role = f"loose_{uuid7().hex}"
    await administrator.execute(f"CREATE ROLE {role} NOLOGIN BYPASSRLS")

    class Loose(str):
        value = role

    try:
        with pytest.raises(RoleError):
            await Pool.open(database, Loose(role), PoolSettings())  # type: ignore[arg-type]
        with pytest.raises(RoleError):
            await Pool.open(database, Loose("postgres"), PoolSettings())  # type: ignore[arg-type]
    finally:
        await administrator.execute(f"DROP ROLE {role}")


async def test_a_user_without_the_roles_is_told(
    administrator: asyncpg.Connection[asyncpg.Record], database: str
) -> None:
    user = f"stranger_{uuid7().hex}"
    await administrator.execute(f"CREATE ROLE {user} LOGIN")
    try:
        with pytest.raises(RoleError):
            await Pool.open(database.replace("postgres@", f"{user}@"), Role.API, PoolSettings())
    finally:
        await administrator.execute(f"DROP ROLE {user}")


async def test_only_the_engine_reads_the_signing_key(pools: Pools) -> None:
    key = await PostgresKeyStore(pools.claims).signing_key()
    assert len(key) == 32
    assert await PostgresKeyStore(pools.journal).signing_key() == key
    with pytest.raises(DatabaseUnavailable):
        await PostgresKeyStore(pools.reads).signing_key()
