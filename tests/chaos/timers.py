"""The campaign of timers: as many runs as there is time for, 100,000 at most, sleep until one and the same second.

None may wake before its time, none may be lost, and who submits other runs meanwhile must hardly notice. The runs are
parked: until shortly before their time they are rows of the database alone, and the replicas share the waking.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import asyncpg

from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.load import probe, submit_many, within
from tests.chaos.works import ALARM

NAME = "timers"
TIMERS_LIMIT = 100_000
LATE_SECONDS = 300.0
"""What has not ended so long after its time is judged as it is."""

_LATE = """
SELECT extract(epoch FROM end_time)::float8 - $1::float8 AS seconds FROM runs
WHERE request_id LIKE 'alarm-%' AND end_time IS NOT NULL ORDER BY 1
"""


async def run_timers(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Submits for half of the time; the runs are due then. Errors: NotMeasured."""
    timers = within(effort.seconds / 2, TIMERS_LIMIT)
    async with running(NAME, Shape(clients=0, watchers=0), seed, keep) as cluster:
        began = time.monotonic()
        due = int(time.time() + effort.seconds / 2)
        await submit_many(cluster, timers, ALARM, due, due, ALARM)
        if time.time() > due - 3:
            raise NotMeasured(f"{timers} runs were not submitted in time")
        quiet = await probe(cluster, lambda: _at(due - 2))
        late: tuple[float, ...] = ()

        async def all_ended() -> bool:
            nonlocal late
            late = await _late(cluster, due) if time.time() > due else ()
            return len(late) == timers or time.time() > due + LATE_SECONDS

        busy = await probe(cluster, all_ended)
        outcome = await judge(NAME, cluster, Counter({"timers": 1}), Counter(), time.monotonic() - began)
        figures = {
            "timers": timers,
            "ended": len(late),
            "early": sum(each < 0 for each in late),
            "late_p50_s": percentile(late, 0.5),
            "late_p99_s": percentile(late, 0.99),
            "late_max_s": percentile(late, 1.0),
            "other_runs_before_p99_s": percentile(quiet, 0.99),
            "other_runs_meanwhile_p50_s": percentile(busy, 0.5),
            "other_runs_meanwhile_p99_s": percentile(busy, 0.99),
        }
        return replace(outcome, more={NAME: figures})


async def _at(instant: float) -> bool:
    return time.time() >= instant


async def _late(cluster: Cluster, due: int) -> tuple[float, ...]:
    """By how much each run that has ended did so after its time, in seconds, in rising order."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        return tuple(row["seconds"] for row in await connection.fetch(_LATE, due))
    finally:
        await connection.close()
