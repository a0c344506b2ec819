"""The campaign of neighbours: a calm namespace by itself, and then beside one that submits a hundred times as much.

What both share is the calls that a replica has under way at a time. The loud one gets what is left over; the calm one
must hardly notice, and none of its submissions may be rejected.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.acceptance.wire import Baton
from tests.chaos.campaigns import Effort, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.floods import flood, seconds_of_runs
from tests.chaos.logs import read_log
from tests.chaos.works import WORK, workflows

NAME = "neighbours"
CALM, LOUD = "calm", "loud"
CALM_A_SECOND = 2.0
TIMES = 100
SETTINGS = {
    "BATON_NAMESPACES": f"{CALM},{LOUD}",
    "BATON_MAX_CALLS_IN_FLIGHT": "5",
    "BATON_MAX_ACTIVE_RUNS": "80",
    "BATON_NAMESPACE_MAX_ACTIVE_RUNS": "60",
}


async def run_neighbours(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """A third of the time for the calm one alone, the rest for both. Errors: NotMeasured."""
    alone_seconds, beside_seconds = effort.seconds / 3, effort.seconds * 2 / 3
    async with running(NAME, Shape(clients=0, watchers=0, settings=SETTINGS), seed, keep) as cluster:
        for namespace in (CALM, LOUD):
            await _furnish(cluster, namespace)
        await flood(cluster, "alone", CALM_A_SECOND, alone_seconds, namespace=CALM)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(flood(cluster, "beside", CALM_A_SECOND, beside_seconds, namespace=CALM))
            tasks.create_task(flood(cluster, "flood", TIMES * CALM_A_SECOND, beside_seconds, namespace=LOUD))
        outcome = await judge(NAME, cluster, Counter({"loud neighbour": 1}), Counter(), effort.seconds)
        figures: dict[str, float | int | None] = {}
        for name in ("alone", "beside"):
            seconds = await seconds_of_runs(cluster, name)
            figures |= {f"calm_{name}_p50_s": percentile(seconds, 0.5), f"calm_{name}_p99_s": percentile(seconds, 0.99)}
        for name, of in (("alone", CALM), ("beside", CALM), ("flood", LOUD)):
            records = read_log(cluster.directory / f"client-{name}.log")
            figures[f"{of}_{name}_rejected"] = sum(each["what"] == "rejected" for each in records)
        return replace(outcome, more={NAME: figures})


async def _furnish(cluster: Cluster, namespace: str) -> None:
    """Gives a namespace the worker and the workflow."""
    baton = Baton(cluster.replicas[0].address, namespace)
    try:
        await baton.register("unary", f"127.0.0.1:{cluster.worker_proxies['unary'].port}")
        await baton.apply(next(each for each in workflows() if each["name"] == WORK))
    finally:
        await baton.close()
