"""The campaign of slow commits: the same load without, with, and again without commits that take 200 ms each.

It is Postgres itself that is slow: each commit waits until a standby has applied it (`remote_apply`), and that applies
each so much later (`recovery_min_apply_delay`). What is accepted must go on in larger batches, memory must be bounded,
and all must be as quick as before when it is over.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg

from tests.acceptance.wire import eventually
from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.database import Standby
from tests.chaos.floods import flood
from tests.chaos.logs import read_log

NAME = "slow_commits"
RUNS_A_SECOND = 100.0
COMMIT_SECONDS = 0.2
DEADLINE_SECONDS = 2.0
"""Of each submission."""

WARM_SHARE = 0.2
"""Part of a third that goes before, and is not counted."""

SETTINGS = {"BATON_LEASE_SECONDS": "5", "BATON_ADOPTION_INTERVAL_SECONDS": "1"}

_ENDED = """
SELECT extract(epoch FROM end_time - create_time)::float8 AS seconds FROM runs
WHERE request_id LIKE $1 AND end_time < (SELECT min(create_time) FROM runs WHERE request_id LIKE $1)
    + make_interval(secs => $2::float8)
"""


async def run_slow_commits(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """A third of the time for each. Errors: NotMeasured."""
    seconds = effort.seconds / 3
    shape = Shape(clients=0, watchers=0, settings=SETTINGS, standby=Standby.SYNCHRONOUS)
    figures: dict[str, Any] = {"runs_a_second": RUNS_A_SECOND}
    async with running(NAME, shape, seed, keep) as cluster:
        await _wait_for_standby(cluster)
        await flood(cluster, "warm", RUNS_A_SECOND, WARM_SHARE * seconds, deadline_seconds=DEADLINE_SECONDS)
        began = time.monotonic()
        for name, delay_seconds in (("before", 0.0), ("slow", COMMIT_SECONDS), ("after", 0.0)):
            await cluster.database.delay_standby(delay_seconds)
            commit_seconds = await _commit_seconds(cluster, delay_seconds)
            await flood(cluster, name, RUNS_A_SECOND, seconds, deadline_seconds=DEADLINE_SECONDS)
            figures[name] = {"commit_s": commit_seconds} | await _figures(cluster, name, seconds)
        outcome = await judge(NAME, cluster, Counter({"commits slow": 1}), Counter(), time.monotonic() - began)
        return replace(outcome, more={NAME: figures})


async def _wait_for_standby(cluster: Cluster) -> None:
    """Lets each commit of the replicas wait until the standby has applied it: of connections that are made from now on,
    so those that there are end."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        await connection.execute("ALTER DATABASE postgres SET synchronous_commit = 'remote_apply'")
        own = "application_name IN ('baton engine', 'baton api')"
        await connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}")
        query = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {own}"
        await eventually(lambda: connection.fetchval(query))
    finally:
        await connection.close()


async def _commit_seconds(cluster: Cluster, least_seconds: float) -> float:
    """Waits until a commit takes that long; tells how long one takes. Errors: NotMeasured."""
    connection = await asyncpg.connect(cluster.dsn)
    took = 0.0

    async def slow() -> bool:
        nonlocal took
        began = time.monotonic()
        await connection.execute("COMMENT ON SCHEMA chaos IS 'the evidence of a campaign'")
        took = time.monotonic() - began
        return took >= least_seconds

    try:
        await eventually(slow)
    except AssertionError:
        raise NotMeasured(f"a commit took no more than {took:.3f} s") from None
    finally:
        await connection.close()
    return round(took, 4)


async def _figures(cluster: Cluster, name: str, seconds: float) -> dict[str, Any]:
    connection = await asyncpg.connect(cluster.dsn)
    try:
        rows = await connection.fetch(_ENDED, f"flood-{name}-%", seconds)
    finally:
        await connection.close()
    records = read_log(cluster.directory / f"client-{name}.log")
    accepted = tuple(each["seconds"] for each in records if each["what"] == "acknowledged")
    rejected = Counter(f"{each['code']} {each['reason']}" for each in records if each["what"] == "rejected")
    took = tuple(row["seconds"] for row in rows)
    return {
        "submitted": len(records),
        "ended_a_second": round(len(rows) / seconds, 1),
        "rejected_by_reason": dict(rejected),
        "deadline_exceeded": sum(count for what, count in rejected.items() if what.startswith("DEADLINE_EXCEEDED")),
        "accepted_p50_s": percentile(accepted, 0.5),
        "accepted_p99_s": percentile(accepted, 0.99),
        "run_p50_s": percentile(took, 0.5),
        "run_p99_s": percentile(took, 0.99),
    }
