"""The campaign of the herd: up to 10,000 runs wait, every replica is killed, and all start again in the same instant.

They must take over what was left in bounded batches, each run once, with no more connections than they have settings
for, and work it off. The runs wait for their worker, which comes back just before the deaths: some have been called.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
from baton.v1 import worker_service_pb2

from tests.acceptance.wire import Baton, eventually
from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.load import submit_many, within
from tests.chaos.logs import now_us
from tests.chaos.resources import BACKENDS_A_REPLICA
from tests.chaos.works import WORK

NAME = "herd"
RUNS_LIMIT = 10_000
LEASE_SECONDS = 5.0
"""As is the default; less where there is little time."""

SHARE_DONE = 0.02
"""How much of the backlog is done when the replicas are killed."""

DRAIN_LIMIT_SECONDS = 300.0
"""What has not ended so long after the deaths is judged as it is."""

_ENDED = "SELECT count(*) FROM runs WHERE request_id LIKE 'work-%' AND end_time IS NOT NULL"

_TIMES = """
WITH claimed AS (SELECT * FROM chaos.claim WHERE time > $1)
SELECT
    (SELECT (min(time) - $1) / 1e6 FROM claimed)::float8 AS first_claim_s,
    (SELECT (max(time) - $1) / 1e6 FROM claimed WHERE previous_owner IS NOT NULL)::float8 AS last_orphan_s,
    (SELECT extract(epoch FROM max(end_time)) - $1 / 1e6 FROM runs WHERE request_id LIKE 'work-%')::float8 AS drained_s,
    (SELECT count(DISTINCT run) FROM claimed) AS left_over,
    (SELECT count(DISTINCT run) FROM claimed WHERE previous_owner IS NOT NULL) AS orphaned,
    (SELECT count(*) FROM claimed WHERE previous_owner IS NOT NULL) AS adoptions,
    (SELECT count(*) FROM claimed) AS claims
"""


async def run_herd(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Submits for half of the time, and then kills. Errors: NotMeasured."""
    runs = within(effort.seconds / 2, RUNS_LIMIT)
    lease_seconds = min(LEASE_SECONDS, max(1.0, effort.seconds / 8))
    settings = {"BATON_LEASE_SECONDS": str(lease_seconds), "BATON_ADOPTION_INTERVAL_SECONDS": str(lease_seconds / 5)}
    shape = Shape(clients=0, watchers=0, settings=settings, restart_seconds=(0.1, 0.1))
    async with running(NAME, shape, seed, keep) as cluster:
        began = time.monotonic()
        baton = Baton(cluster.replicas[0].address)
        await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="unary"), timeout=20)
        await submit_many(cluster, runs, WORK, 1, 2)
        await baton.register("unary", f"127.0.0.1:{cluster.worker_proxies['unary'].port}")
        await baton.close()
        connection = await asyncpg.connect(cluster.dsn)
        try:
            done = await _ended(connection, round(SHARE_DONE * runs), DRAIN_LIMIT_SECONDS)
            killed_time = now_us()
            for replica in cluster.replicas:
                replica.send(signal.SIGKILL)
            up_seconds = await _up(cluster, killed_time)
            await _ended(connection, runs, DRAIN_LIMIT_SECONDS)
            measured = await connection.fetchrow(_TIMES, killed_time)
        finally:
            await connection.close()
        assert measured is not None
        outcome = await judge(NAME, cluster, Counter({"all replicas killed": 1}), Counter(), time.monotonic() - began)
        return replace(outcome, more={NAME: _figures(dict(measured), runs, done, up_seconds, shape.replicas)})


async def _ended(connection: asyncpg.Connection[asyncpg.Record], count: int, within_seconds: float) -> int:
    """Waits until so many runs have ended, or for as long; tells how many have. Errors: NotMeasured where none has."""
    ended = 0

    async def look() -> bool:
        nonlocal ended
        found: int = await connection.fetchval(_ENDED)
        ended = found
        return found >= count

    try:
        await eventually(look, within_seconds)
    except AssertionError:
        if not ended:
            raise NotMeasured("no run of the backlog came to its end") from None
    return ended


async def _up(cluster: Cluster, killed_time: int) -> float:
    """Waits until every replica has died and is up again; tells how long after the deaths that was, in seconds."""

    async def all_died() -> bool:
        return all(replica.codes for replica in cluster.replicas)

    await eventually(all_died)
    await asyncio.gather(*(replica.up.wait() for replica in cluster.replicas))
    return (now_us() - killed_time) / 1_000_000


def _figures(measured: dict[str, Any], runs: int, done: int, up_seconds: float, replicas: int) -> dict[str, Any]:
    """Of the runs that were left some had no owner: they were being handed from one replica to another. What was
    claimed more often than once was handed on for the sake of balance, or, among those of the dead, adopted twice."""
    if not measured["orphaned"]:
        raise NotMeasured("no run was left to be taken over")
    times = {name: round(value, 2) for name, value in measured.items() if name.endswith("_s") and value is not None}
    counts = {name: value for name, value in measured.items() if not name.endswith("_s")}
    return {
        "runs": runs,
        "done_before": done,
        "all_up_s": round(up_seconds, 2),
        **times,
        **counts,
        "adoptions_over_needed": round(counts["adoptions"] / counts["orphaned"], 3),
        "claims_over_needed": round(counts["claims"] / counts["left_over"], 3),
        "backends_limit": replicas * BACKENDS_A_REPLICA,
    }
