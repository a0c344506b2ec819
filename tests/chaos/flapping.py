"""The campaign of a flapping worker: half of its calls fail for a while, with the retry budget and without one.

What it fails with says that it is busy, so that its circuit stays closed and nothing but the budget bounds retries.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
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

_EVENTS = """
SELECT kind, (extract(epoch FROM event_time) * 1000000)::bigint AS time, attempt FROM events
WHERE kind IN ($1, $2) ORDER BY 2
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
        events = await connection.fetch(_EVENTS, int(EventKind.ATTEMPT_STARTED), int(EventKind.ATTEMPT_FAILED))
        ends = await connection.fetchrow(_ENDS, began, ended)
    finally:
        await connection.close()
    windows = [_Window() for _ in range((ended - began) // WINDOW_US)]
    for each in events:
        number = (each["time"] - began) // WINDOW_US
        if 0 <= number < len(windows):
            windows[number].take(each["kind"], each["attempt"])
    first = sum(each.first for each in windows)
    if not first or ends is None or not ends["seconds"]:
        raise NotMeasured("no step began while the worker flapped, or that was shorter than a window")
    seconds = len(windows) * WINDOW_US / 1_000_000
    failed = sum(each.failed for each in windows)
    figures = {
        "calls_over_first": round(1 + sum(each.again for each in windows) / first, 3),
        "calls_over_first_by_window": [round(1 + each.again / each.first, 3) for each in windows if each.first],
        "failed_retries_over_first": round(failed / first, 3),
        "failed_retries_over_first_by_window": [round(each.failed / each.first, 3) for each in windows if each.first],
        "first_a_second": round(first / seconds, 1),
        "runs_p50_s": percentile(tuple(ends["seconds"]), 0.5),
        "runs_p99_s": percentile(tuple(ends["seconds"]), 0.99),
        "all_ended_after_s": round((ends["last"] - ended) / 1_000_000, 2),
    }
    if not bounded:
        return figures, []
    limits = EngineLimits()
    flow = limits.retry_budget_ratio * first + limits.retry_budget_per_second * seconds
    most = flow + limits.retry_budget_per_second * BURST_SECONDS
    figures["failed_retries_goal"] = round(flow / first, 3)
    figures["failed_retries_most"] = round(most / first, 3)
    beyond = round(failed - most)
    return figures, [Fault("retries.beyond_budget", beyond, (str(figures),))] if beyond > 0 else []


@dataclass(slots=True)
class _Window:
    """The calls of some time: first ones, those made again, and those of the latter that failed."""

    first: int = 0
    again: int = 0
    failed: int = 0

    def take(self, kind: int, attempt: int) -> None:
        """Counts an event of an attempt."""
        if kind == EventKind.ATTEMPT_FAILED:
            self.failed += attempt > 1
        elif attempt > 1:
            self.again += 1
        else:
            self.first += 1
