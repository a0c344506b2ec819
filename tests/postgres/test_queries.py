"""Prepares every named query on the newest schema, as the role that runs it, so that none is only right in theory."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise
from uuid import UUID

import asyncpg
import pytest

from orchestrator.engine.ports import Comparison, FilterTerm
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.runs import compose_ended, compose_list
from orchestrator.postgres.sql import load
from tests.conformance.journal_store import run_key
from tests.postgres.conftest import Pools

FILES = ("approvals", "catalogue", "directory", "journal", "limits", "replicas", "runs", "schedules", "scrub")
_FIRST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)
OF_ENGINE = {
    "list_namespaces",
    "put_signing_key",
    "get_signing_key",
    "claim_due",
    "next_due_time",
    "list_to_cancel",
}


def test_every_file_is_prepared_here() -> None:
    names = {file.name for file in resources.files("orchestrator.postgres").joinpath("queries").iterdir()}
    assert names == {f"{name}.sql" for name in (*FILES, "migrate", "pool", "retention")}


@pytest.mark.parametrize("file", FILES)
async def test_every_query_can_be_prepared(pools: Pools, file: str) -> None:
    for name, text in load(file).items():
        if name in ("list_runs", "list_ended") or name.startswith("term_"):
            continue
        engine = (
            file in ("directory", "replicas")
            or name in OF_ENGINE
            or (file == "journal" and not name.startswith("read_"))
        )
        pool: Pool = pools.claims if engine else pools.reads
        async with pool.lend() as connection:
            await connection.prepare(text)


async def test_every_term_can_be_prepared_with_every_operator(pools: Pools) -> None:
    names = [name.removeprefix("term_") for name in load("runs") if name.startswith("term_") and name != "term_before"]
    assert len(names) == 11
    for name in names:
        field = "attributes.key" if name == "attributes" else name
        operators = [Comparison.HAS] if name == "labels" else [one for one in Comparison if one is not Comparison.HAS]
        for operator in operators:
            query, values = compose_list([FilterTerm(field, operator, "x")], run_key().run_id)
            async with pools.reads.lend() as connection:
                statement = await connection.prepare(query)
                assert len(statement.get_parameters()) == 2 + len(values)
            query, values = compose_ended([FilterTerm(field, operator, "x")])
            async with pools.reads.lend() as connection:
                statement = await connection.prepare(query)
                assert len(statement.get_parameters()) == 4 + len(values)


def test_every_query_has_a_sentence() -> None:
    for file in (*FILES, "migrate", "pool"):
        text = resources.files("orchestrator.postgres").joinpath("queries", f"{file}.sql").read_text()
        lines = text.splitlines()
        for line, following in pairwise(lines):
            if line.startswith("-- name: "):
                assert following.startswith("-- "), line
        assert len(load(file)) == text.count("-- name: ")


async def plan_of(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], name: str, query: str, arguments: str = ""
) -> str:
    """The plan that a statement gets once and for all, whatever its arguments are; these only decide of which weeks
    it is shown."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE {name} AS {query}")
    parameters = await connection.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1", name
    )
    given = arguments or ", ".join(["NULL"] * parameters)
    rows = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE {name} ({given})")
    return "\n".join(row[0] for row in rows)


async def test_the_journal_finds_runs_by_key_though_it_is_planned_on_empty_tables(
    pools: Pools, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    """A statement that is planned while the tables are empty must not scan them, or a prefix of a key, ever after."""
    for vacuumed in (0, 1):
        if vacuumed:
            await administrator.execute("VACUUM ANALYZE runs, requests, replicas")
        async with pools.journal.lend() as connection:
            for statement in ("write_batch", "continue_batch"):
                plan = await plan_of(connection, f"{statement}_{vacuumed}", load("journal")[statement])
                assert "Index Cond: ((namespace = ANY (ARRAY[e.namespace])) AND (run_id = e.run_id))" in plan
                assert plan.count(" on runs r") == 2  # the update, and one look by the primary key below it
                assert "Seq Scan" not in plan
        async with pools.claims.lend() as connection:
            plan = await plan_of(connection, f"adopt_{vacuumed}", load("replicas")["adopt"])
            assert "Seq Scan on runs" not in plan
            assert "Index Cond: ((namespace = ANY (ARRAY[c.namespace])) AND (run_id = c.run_id))" in plan
            plan = await plan_of(connection, f"wake_{vacuumed}", load("replicas")["wake"])
            assert "Seq Scan on runs" not in plan
            assert "Index Scan using runs_by_wake_time" in plan
            assert "Index Cond: ((COALESCE(wake_time" in plan, "from one time to another"
            plan = await plan_of(connection, f"oldest_parked_{vacuumed}", load("replicas")["oldest_parked"])
            assert "Index Scan using runs_by_wake_time" in plan
            assert "Index Cond: (COALESCE(wake_time" in plan
            assert "Sort" not in plan
            plan = await plan_of(connection, f"emptied_{vacuumed}", load("replicas")["emptied"])
            assert "using runs_by_owner on runs" in plan
            assert "Index Cond: (COALESCE(owner_replica" in plan
            for statement, row in (("wake", "f"), ("wake", "c"), ("park", "p"), ("poke", "p")):
                plan = await plan_of(connection, f"{statement}_{row}_{vacuumed}", load("replicas")[statement])
                assert f"Index Cond: ((namespace = ANY (ARRAY[{row}.namespace])) AND (run_id = {row}.run_id))" in plan
            plan = await plan_of(connection, f"claim_{vacuumed}", load("replicas")["claim"])
            assert "Index Cond: ((namespace = $2) AND (run_id = $3))" in plan


async def test_schedules_that_are_due_are_found_by_their_index(pools: Pools) -> None:
    async with pools.claims.lend() as connection:
        plans = {
            name: await plan_of(connection, name, load("schedules")[name])
            for name in ("claim_due", "next_due_time", "list_to_cancel")
        }
    assert "Index Scan using schedules_by_due_time" in plans["claim_due"]
    assert "Index Cond: ((namespace = ANY (ARRAY[d.namespace])) AND (schedule = d.schedule))" in plans["claim_due"]
    assert "schedules_by_due_time" in plans["next_due_time"]
    assert "schedule_runs_to_cancel" in plans["list_to_cancel"]
    assert "Seq Scan" not in "".join(plans.values())


async def test_ends_are_found_by_their_index_under_row_level_security(pools: Pools) -> None:
    query, _ = compose_ended([FilterTerm("client_id", Comparison.EQUAL, "x")])
    async with pools.reads.lend() as connection:
        plan = await plan_of(connection, "ended", query)
    assert "Index Scan using runs_by_end" in plan
    assert "end_xid >= pg_snapshot_xmin" in plan.partition("Index Cond:")[2].partition("\n")[0]
    assert "Sort" not in plan


async def test_requests_to_people_are_found_by_their_index_from_the_oldest_run_under_way_on(pools: Pools) -> None:
    async with pools.reads.lend() as connection:
        plan = await plan_of(
            connection, "asked", load("approvals")["list_approvals"], f"'shop', '{_FIRST}', 0, '{_LAST}', 9, 9, 9"
        )
    assert "Seq Scan" not in plan
    asked, _, rest = plan.partition("CTE waiting")
    oldest, _, weeks = asked.partition("Merge Append")
    assert "Index Only Scan using runs_by_state" in oldest
    assert "Index Cond: ((namespace = $1) AND (state = 2))" in oldest
    conditions = [line.partition("Index Cond: ")[2] for line in weeks.splitlines() if "Index Cond: " in line]
    assert len(conditions) == weeks.count("_namespace_run_id_sequence_idx on events_") > 0
    assert set(conditions) == {
        "((namespace = $1) AND (run_id >= $2) AND (ROW(run_id, sequence) > ROW($2, $3))"
        " AND (run_id <= $4) AND (run_id >= $0))"
    }
    assert "Index Cond: ((namespace = $1) AND (run_id = a.run_id))" in rest
    assert "Index Cond: ((namespace = $1) AND (run_id = a.run_id) AND (sequence > a.sequence))" in rest
    assert "Index Cond: ((namespace = $1) AND (run_id = w.run_id) AND (sequence = w.sequence))" in rest


async def test_unfinished_runs_are_counted_without_a_look_at_those_that_ended(pools: Pools) -> None:
    async with pools.reads.lend() as connection:
        plan = await plan_of(connection, "unfinished", load("runs")["count_unfinished"])
    assert "Index Cond: ((namespace = $1) AND (state = wanted.state))" in plan
