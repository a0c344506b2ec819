"""The campaign of locks: while clients submit, somebody locks first the runs' table and then the journal, as a
migration by hand does, with autovacuum off all the time.

Whoever submits is told in time that nothing can be written, with the time to try again, what was accepted is done, and
all goes on once the lock is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.floods import flood
from tests.chaos.logs import now_us, read_log

NAME = "locked"
RUNS_A_SECOND = 20.0
TABLES = ("runs", "events")
LOCKED_SHARE = 0.25
"""How much of the time each lock is held."""

SETTINGS = {"BATON_LEASE_SECONDS": "5", "BATON_ADOPTION_INTERVAL_SECONDS": "1"}

QUEUED_SECONDS = 0.5
"""A submission that was accepted after so long had to wait."""

_CAUGHT_UP = """
SELECT extract(epoch FROM max(end_time)) - $1::float8 FROM runs
WHERE request_id LIKE 'flood-%' AND extract(epoch FROM create_time) < $1::float8
"""


@dataclass(frozen=True, slots=True)
class _Lock:
    """A table that was locked, and from when to when, in microseconds."""

    table: str
    begin_time: int
    end_time: int


async def run_locked(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Submits for as long as the effort says, and locks twice. Errors: NotMeasured."""
    locked_seconds = LOCKED_SHARE * effort.seconds
    async with running(NAME, Shape(clients=0, watchers=0, settings=SETTINGS), seed, keep) as cluster:
        await cluster.database.set(autovacuum="off")
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(flood(cluster, NAME, RUNS_A_SECOND, effort.seconds))
            locks = []
            for table in TABLES:
                await asyncio.sleep(locked_seconds / 2)
                locks.append(await _lock(cluster, table, locked_seconds))
        injected = Counter(f"{lock.table} locked" for lock in locks)
        outcome = await judge(NAME, cluster, injected, Counter(), time.monotonic() - began)
        records = read_log(cluster.directory / f"client-{NAME}.log")
        figures = {lock.table: await _figures(cluster, lock, records) for lock in locks}
        return replace(outcome, more={NAME: {"locked_s": locked_seconds, **figures}})


async def _lock(cluster: Cluster, table: str, seconds: float) -> _Lock:
    """Holds a lock that nothing gets past, not even a read."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            begin_time = now_us()
            await asyncio.sleep(seconds)
            end_time = now_us()
    finally:
        await connection.close()
    return _Lock(table, begin_time, end_time)


async def _figures(cluster: Cluster, lock: _Lock, records: list[dict[str, Any]]) -> dict[str, Any]:
    met = [each for each in records if each["time"] >= lock.begin_time and _began(each) < lock.end_time]
    rejected = [each for each in met if each["what"] == "rejected"]
    queued = [each for each in met if each["what"] == "acknowledged" and each["seconds"] > QUEUED_SECONDS]
    after = [each for each in records if each["what"] == "acknowledged" and _began(each) >= lock.end_time]
    if not after:
        raise NotMeasured(f"nothing was accepted after {lock.table} was locked")
    refused_seconds = tuple(each["seconds"] for each in rejected)
    connection = await asyncpg.connect(cluster.dsn)
    try:
        caught_up: float = await connection.fetchval(_CAUGHT_UP, lock.end_time / 1e6)
    finally:
        await connection.close()
    return {
        "submitted_meanwhile": len(met),
        "queued_and_accepted": len(queued),
        "queued_longest_s": max((each["seconds"] for each in queued), default=None),
        "refused": len(rejected),
        "refused_by_reason": dict(Counter(f"{each['code']} {each['reason']}" for each in rejected)),
        "refused_without_wait": sum(not each["wait_seconds"] for each in rejected),
        "refused_p50_s": percentile(refused_seconds, 0.5),
        "refused_p99_s": percentile(refused_seconds, 0.99),
        "first_accepted_after_s": round((min(each["time"] for each in after) - lock.end_time) / 1e6, 2),
        "caught_up_after_s": round(caught_up, 2),
    }


def _began(record: dict[str, Any]) -> int:
    """When a call was made."""
    began: int = record["time"] - round(record["seconds"] * 1_000_000)
    return began
