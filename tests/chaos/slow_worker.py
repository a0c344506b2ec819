"""The campaign of a slow worker: how quick calls of one are beside another that is ten times slower than usual.

Both are called by one replica, in one namespace, at the same rate all the time. In every other phase one of them takes
ten times as long, which is more than it can do, so that its steps queue up; calls of the other must hardly notice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.chaos.campaigns import Effort, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Shape
from tests.chaos.floods import flood, seconds_of_runs, until_done
from tests.chaos.works import BRISK, STREAMED_WORK, WORK, WORK_SECONDS

NAME = "slow_worker"
RATE = 40.0
"""Runs a second at each of the two workers."""

IN_FLIGHT = 5
"""Calls that the slow one takes at a time: 25 a second while it is slow, 250 while it is not."""

PHASES = 10
WARM_SECONDS = 2.0

CALM, SLOW = "calm", "slow"


async def run_slow_worker(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Phases with a slow worker and without in turn, each as long. Errors: NotMeasured."""
    assert IN_FLIGHT / WORK_SECONDS < RATE
    seconds = max(effort.seconds / PHASES, 1.0)
    async with running(NAME, Shape(1, 0, 0, max_in_flight=IN_FLIGHT), seed, keep) as cluster:
        await flood(cluster, "first", RATE, WARM_SECONDS, STREAMED_WORK, BRISK)
        for number in range(PHASES):
            phase = (CALM, SLOW)[number % 2]
            conduct = BRISK if phase == CALM else "work"
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(flood(cluster, f"beside-{phase}-{number}", RATE, seconds, WORK, conduct))
                tasks.create_task(flood(cluster, f"{phase}-{number}", RATE, seconds, STREAMED_WORK, BRISK))
            await until_done(cluster)  # What has queued up at the slow one would make the next phase another.
        outcome = await judge(NAME, cluster, Counter({"slow worker": PHASES // 2}), Counter(), effort.seconds)
        figures: dict[str, float | int | None] = {"phases": PHASES}
        for phase in (CALM, SLOW):
            for name, requests in (("others", f"{phase}-%"), ("its_own", f"beside-{phase}-%")):
                times = await seconds_of_runs(cluster, requests)
                figures |= {f"{name}_{phase}_runs": len(times)}
                figures |= {f"{name}_{phase}_p{part}_s": percentile(times, part / 100) for part in (50, 99)}
        before, beside = figures["others_calm_p99_s"], figures["others_slow_p99_s"]
        figures["others_p99_ratio"] = round(beside / before, 3) if before and beside else None
        return replace(outcome, more={NAME: figures})
