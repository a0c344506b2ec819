"""The campaign of a flapping worker: half of its calls fail for a while, with the retry budget and without one.

What it fails with says that it is busy, so that its circuit stays closed and nothing but the budget bounds retries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg

from orchestrator.domain.states import EventKind
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.retry_budget import BURST_SECONDS
from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import Fault, percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.floods import flood
from tests.chaos.logs import now_us
from tests.chaos.works import BRISK, WORK

NAME = "flapping"
RATE = 100.0
"""Runs a second, of one step each."""

UNBOUNDED = {"BATON_RETRY_BUDGET_RATIO": "1000", "BATON_RETRY_BUDGET_PER_SECOND": "1000"}
WINDOW_US = 5_000_000
"""Calls are counted by so much time; of the time in which the worker flaps, what is left over is not counted."""

_ATTEMPTS = """
SELECT (extract(epoch FROM event_time) * 1000000)::bigint AS time, attempt FROM events WHERE kind = $1 ORDER BY 1
"""
_ENDS = """
SELECT max((extract(epoch FROM end_time) * 1000000)::bigint) AS last,
       array_agg(extract(epoch FROM end_time - create_time)::float8) AS seconds FROM runs
WHERE (extract(epoch FROM create_time) * 1000000)::bigint BETWEEN $1 AND $2
"""


async def run_flapping(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Half of the time without a budget, half with that of the defaults. Errors: NotMeasured."""
    unbounded = await _run("unbounded", UNBOUNDED, effort.seconds / 2, seed, keep)
    bounded = await _run("bounded", {}, effort.seconds / 2, seed, keep)
    more = {NAME: dict(unbounded.more) | dict(bounded.more)}
    return replace(bounded, name=NAME, faults=(*unbounded.faults, *bounded.faults), more=more)


async def _run(name: str, settings: dict[str, str], seconds: float, seed: int, keep: Path | None) -> Outcome:
    """The worker flaps in the second third of the time."""
    third = seconds / 3
    async with running(f"{NAME}-{name}", Shape(1, 0, 0, max_in_flight=200, settings=settings), seed, keep) as cluster:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(flood(cluster, name, RATE, seconds, WORK, BRISK))
            flaps = tasks.create_task(_flap(cluster, third))
        began, ended = flaps.result()
        outcome = await judge(name, cluster, Counter({"worker flaps": 1}), Counter(), seconds)
        figures, faults = await _measure(cluster, began, ended, bounded=not settings)
        return replace(outcome, faults=(*outcome.faults, *faults), more={name: figures})


async def _flap(cluster: Cluster, seconds: float) -> tuple[int, int]:
    """Lets half of the calls fail after a while, for as long; returns from when and until when."""
    told = cluster.control / "unary.flap"
    await asyncio.sleep(seconds)
    began = now_us()
    told.write_text("RESOURCE_EXHAUSTED")
    await asyncio.sleep(seconds)
    told.unlink()
    return began, now_us()


async def _measure(cluster: Cluster, began: int, ended: int, bounded: bool) -> tuple[dict[str, Any], list[Fault]]:
    """What the worker was sent while it flapped, and whether that is within the budget."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        attempts = await connection.fetch(_ATTEMPTS, int(EventKind.ATTEMPT_STARTED))
        ends = await connection.fetchrow(_ENDS, began, ended)
    finally:
        await connection.close()
    if ends is None or not ends["seconds"]:
        raise NotMeasured("no run began while the worker flapped")
    windows = [Counter[bool]() for _ in range((ended - began) // WINDOW_US)]
    for each in attempts:
        number = (each["time"] - began) // WINDOW_US
        if 0 <= number < len(windows):
            windows[number][each["attempt"] == 1] += 1
    whole = sum(windows, Counter[bool]())
    if not whole[True]:
        raise NotMeasured("no step began while the worker flapped, or that was shorter than a window")
    seconds = len(windows) * WINDOW_US / 1_000_000
    figures = {
        "calls_over_first": _over(whole),
        "calls_over_first_by_window": [_over(each) for each in windows],
        "first_a_second": round(whole[True] / seconds, 1),
        "runs_p50_s": percentile(tuple(ends["seconds"]), 0.5),
        "runs_p99_s": percentile(tuple(ends["seconds"]), 0.99),
        "all_ended_after_s": round((ends["last"] - ended) / 1_000_000, 2),
    }
    limits = EngineLimits()
    burst = limits.retry_budget_per_second * BURST_SECONDS
    most = burst + limits.retry_budget_ratio * whole[True] + limits.retry_budget_per_second * seconds
    if bounded:
        figures["goal"] = round(
            1 + limits.retry_budget_ratio + limits.retry_budget_per_second * seconds / whole[True], 3
        )
        figures["most"] = round(1 + most / whole[True], 3)
    beyond = whole[False] - round(most) if bounded else 0
    return figures, [Fault("retries.beyond_budget", beyond, (str(figures),))] if beyond > 0 else []


def _over(attempts: Counter[bool]) -> float:
    """Attempts for each that is a first one."""
    return round(attempts.total() / attempts[True], 3) if attempts[True] else 0.0
