"""The campaign of the open transaction: runs are parked and woken all the time while one transaction stays open, so
that Postgres can clean nothing away that they leave.

Statements by which replicas take runs over must not become slower with what is left. One replica dies meanwhile: what
it left is passed over too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
from baton.v1 import run_service_pb2

from tests.acceptance.wire import Baton, submission
from tests.chaos.campaigns import Effort, NotMeasured, Outcome, judge, running
from tests.chaos.checker import percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.load import probe
from tests.chaos.logs import Log, now_us
from tests.chaos.statements import CLAIMS, JOURNAL, Durations, measured
from tests.chaos.works import DOZE, given

NAME = "snapshot"
RUNS_A_SECOND = 100
SETTINGS = {
    "BATON_LEASE_SECONDS": "5",
    "BATON_ADOPTION_INTERVAL_SECONDS": "1",
    "BATON_PARK_SECONDS": "0.5",
}
"""The lease and the looks as by default. Each run is parked once."""

WARM_SHARE, LOOK_SHARE = 0.1, 0.2
"""How much of the time passes before anything is measured, and how long each of the two looks takes."""

_DEAD_ROWS = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'"


@dataclass(frozen=True, slots=True)
class _Look:
    """What was measured for a while: statements, and runs from submission to end, in seconds."""

    durations: Durations
    runs: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        return {
            "claims": self.durations.figures(CLAIMS),
            "journal": self.durations.figures(JOURNAL),
            "by_statement": {name: self.durations.figures((name,)) for name in sorted(self.durations.by_statement)},
            "submit_and_wait_p50_s": percentile(self.runs, 0.5),
            "submit_and_wait_p99_s": percentile(self.runs, 0.99),
        }


async def run_snapshot(effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Measures under load, opens a transaction, and measures again at the end of the time. Errors: NotMeasured."""
    look_seconds = LOOK_SHARE * effort.seconds
    held_seconds = effort.seconds * (1 - WARM_SHARE) - look_seconds
    async with running(NAME, Shape(clients=0, watchers=0, settings=SETTINGS), seed, keep) as cluster:
        began = time.monotonic()
        async with _load(cluster):
            await asyncio.sleep(WARM_SHARE * effort.seconds)
            before = await _look(cluster, look_seconds)
            async with _open_transaction(cluster) as watching:
                await asyncio.sleep((held_seconds - look_seconds) / 2)
                cluster.replicas[0].send(signal.SIGKILL)
                await asyncio.sleep((held_seconds - look_seconds) / 2)
                held = await _look(cluster, look_seconds)
                dead_rows = await watching.fetchval(_DEAD_ROWS)
        injected = Counter({"transaction left open": 1, "replica killed": 1})
        outcome = await judge(NAME, cluster, injected, Counter(), time.monotonic() - began)
    figures = {
        "runs_a_second": RUNS_A_SECOND,
        "held_s": round(held_seconds, 1),
        "dead_rows": dead_rows,
        "before": before.as_json(),
        "held": held.as_json(),
    }
    return replace(outcome, more={NAME: figures})


@asynccontextmanager
async def _open_transaction(cluster: Cluster) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Leaves a transaction open that has seen the database; gives another connection."""
    idle, watching = await asyncpg.connect(cluster.dsn), await asyncpg.connect(cluster.dsn)
    try:
        await idle.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM runs")
        yield watching
        if not await watching.fetchval(
            "SELECT bool_or(backend_xmin IS NOT NULL) FROM pg_stat_activity WHERE pid = $1", idle.get_server_pid()
        ):
            raise NotMeasured("the transaction did not stay open")
    finally:
        await idle.close()
        await watching.close()


async def _look(cluster: Cluster, seconds: float) -> _Look:
    end = time.monotonic() + seconds

    async def over() -> bool:
        return time.monotonic() >= end

    async with measured(cluster.database) as durations:
        runs = await probe(cluster, over)
    return _Look(durations, runs)


@asynccontextmanager
async def _load(cluster: Cluster) -> AsyncIterator[None]:
    """Submits so many dozing runs a second meanwhile."""
    task = asyncio.create_task(_submit(cluster, Log(cluster.directory / "client-doze.log")))
    try:
        yield
        if task.done():
            raise NotMeasured(f"the load ended by itself: {task.exception()!r}")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _submit(cluster: Cluster, log: Log) -> None:
    batons = [Baton(address) for address in cluster.addresses()]
    due = time.monotonic()
    for number in itertools.count():
        names = [f"{DOZE}-{number}-{each}" for each in range(RUNS_A_SECOND)]
        request = run_service_pb2.SubmitRunsRequest(
            requests=[submission(DOZE, given(1, ""), request_id=name) for name in names]
        )
        answer = None
        while answer is None:  # One of them is killed; what is submitted again is the same runs.
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await cluster.draw.choice(batons).runs.SubmitRuns(request, timeout=10)
        said = {"what": "acknowledged", "time": now_us(), "conduct": "", "body": DOZE, "due": 1, "seconds": 0.0}
        results = zip(names, answer.results, strict=True)
        log.write_all(said | {"request": name, "run": result.accepted.run.run_id} for name, result in results)
        due += 1.0
        await asyncio.sleep(max(0.0, due - time.monotonic()))
