"""The campaign of overload: three times as many submissions as can be done, for a while, and then none.

Capacity is set by the worker: so many calls at a time, each taking so long. What is beyond must be rejected at once
with the time to try again, what was accepted must be done, and the replicas must be as quick as before when it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio

from tests.acceptance.processes import Program
from tests.acceptance.wire import Baton, Refusal
from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.logs import read_log
from tests.chaos.works import WORK, WORK_SECONDS, given

NAME = "overload"
TIMES = 3
IN_FLIGHT = 5
"""Calls that each replica has at the worker at a time."""

ACTIVE_RUNS = 60
"""Runs that each replica takes: 2.4 s of work."""

PROBES = 20
RECOVERY_LIMIT_SECONDS = 60.0


async def run_overload(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Floods for as long as the effort says. Errors: NotMeasured."""
    seconds = effort.seconds
    shape = Shape(clients=0, watchers=0, max_in_flight=IN_FLIGHT, settings={"BATON_MAX_ACTIVE_RUNS": str(ACTIVE_RUNS)})
    capacity = shape.replicas * IN_FLIGHT / WORK_SECONDS
    async with running(NAME, shape, seed, keep) as cluster:
        before = await _probe(cluster)
        log = cluster.directory / "client-flood.log"
        arguments = ["-m", "tests.chaos.flood", str(log), str(seed), str(TIMES * capacity), str(seconds), ""]
        arguments += [WORK, "work"]
        flood = Program([*arguments, *cluster.addresses()], {}, cluster.directory / "flood.err")
        began = time.monotonic()
        await flood.start()
        if await flood.wait(seconds + 60):
            raise NotMeasured(f"the flood failed: {flood.log()[-1000:]}")
        took = time.monotonic() - began
        recovered = await _recovery(cluster, before)
        done = await _done(cluster, seconds)
        outcome = await judge(NAME, cluster, Counter({"flood": 1}), Counter(), took)
        figures = _figures(read_log(log), capacity, seconds)
        figures |= {"goodput_share": round(done / (capacity * seconds), 3), "recovered_after_s": recovered}
        return replace(outcome, more={NAME: figures})


async def _probe(cluster: Cluster) -> float:
    """Median time of a run where nothing else is under way."""
    baton = Baton(cluster.replicas[0].address)
    times = []
    for _ in range(PROBES):
        began = time.monotonic()
        run = await baton.submit(WORK, given(1, ""), wait_seconds=10)  # type: ignore[arg-type]
        times.append(time.monotonic() - began)
        assert run.HasField("end_time")
    await baton.close()
    median = percentile(tuple(times), 0.5)
    assert median is not None
    return median


async def _recovery(cluster: Cluster, before: float) -> float | None:
    """Seconds from the end of the flood until a run takes no more than twice as long as before it, and 50 ms."""
    ended = time.monotonic()
    while (passed := time.monotonic() - ended) < RECOVERY_LIMIT_SECONDS:
        try:
            if await _probe(cluster) <= 2 * before + 0.05:
                return round(passed, 2)
        except grpc.aio.AioRpcError as error:  # Still rejected, and told when to try again.
            await asyncio.sleep(Refusal(error).retry_seconds or 0.1)
    return None


async def _done(cluster: Cluster, seconds: float) -> int:
    """Runs that ended within the first `seconds` from the first event of the flood."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        query = """
        SELECT count(*) FROM runs
        WHERE request_id LIKE 'flood-%' AND end_time
            <= (SELECT min(create_time) FROM runs WHERE request_id LIKE 'flood-%') + make_interval(secs => $1::float8)
        """
        done: int = await connection.fetchval(query, seconds)
        return done
    finally:
        await connection.close()


def _figures(records: list[dict[str, Any]], capacity: float, seconds: float) -> dict[str, Any]:
    rejected = [each for each in records if each["what"] == "rejected"]
    accepted = tuple(each["seconds"] for each in records if each["what"] == "acknowledged")
    if not rejected:
        raise NotMeasured("nothing was rejected: there was no overload")
    times = tuple(each["seconds"] for each in rejected)
    return {
        "capacity_a_second": capacity,
        "offered_a_second": round(len(records) / seconds, 1),
        "accepted": len(accepted),
        "rejected": len(rejected),
        "rejected_by_reason": dict(Counter(f"{each['code']} {each['reason']}" for each in rejected)),
        "rejected_without_wait": sum(not each["wait_seconds"] for each in rejected),
        "rejected_p50_s": percentile(times, 0.5),
        "rejected_p99_s": percentile(times, 0.99),
        "client_late_p99_s": percentile(tuple(each["late"] for each in records), 0.99),
        "accepted_p50_s": percentile(accepted, 0.5),
        "accepted_p99_s": percentile(accepted, 0.99),
    }
