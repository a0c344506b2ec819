"""Load of campaigns that bring their own: very many runs at once, or one after the other to see how long they take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from baton.v1 import run_service_pb2

from tests.acceptance.wire import Baton, submission
from tests.chaos.cluster import Cluster
from tests.chaos.logs import Log, now_us
from tests.chaos.works import WORK, given

SUBMITTED_A_SECOND = 500
"""What any machine can be given."""

BATCH = 100
LANES = 4


def within(seconds: float, limit: int) -> int:
    """How many runs can be submitted in so many seconds on any machine: whole batches, `limit` at most."""
    return min(limit, max(BATCH, round(SUBMITTED_A_SECOND * seconds) // BATCH * BATCH))


async def submit_many(cluster: Cluster, count: int, workflow: str, number: int, due: int, conduct: str = "") -> None:
    """Submits runs with that input, in batches, to one replica after the other. `due` is the output that they must
    have; their requests are WORKFLOW-0, WORKFLOW-1 and so on."""
    log = Log(cluster.directory / f"client-{workflow}.log")
    batches = iter(range(0, count, BATCH))

    async def lane(lane_number: int) -> None:
        baton = Baton(cluster.replicas[lane_number % len(cluster.replicas)].address)
        for first in batches:
            names = [f"{workflow}-{each}" for each in range(first, min(first + BATCH, count))]
            requests = [submission(workflow, given(number, conduct), request_id=name) for name in names]
            began = time.monotonic()
            answer = await baton.runs.SubmitRuns(run_service_pb2.SubmitRunsRequest(requests=requests), timeout=60)
            said = {"what": "acknowledged", "time": now_us(), "conduct": conduct, "body": workflow, "due": due}
            said["seconds"] = round(time.monotonic() - began, 4)
            results = zip(names, answer.results, strict=True)
            log.write_all(said | {"request": name, "run": result.accepted.run.run_id} for name, result in results)
        await baton.close()

    async with asyncio.TaskGroup() as tasks:
        for lane_number in range(LANES):
            tasks.create_task(lane(lane_number))


async def probe(cluster: Cluster, over: Callable[[], Awaitable[bool]]) -> tuple[float, ...]:
    """Runs the workflow `work`, one run at a time, at one replica after the other, until `over`; tells how long each
    took, in seconds."""
    batons = [Baton(address) for address in cluster.addresses()]
    seconds = []
    while not await over():
        for baton in batons:
            began = time.monotonic()
            await baton.submit(WORK, given(1, ""), wait_seconds=30)  # type: ignore[arg-type]
            seconds.append(time.monotonic() - began)
    for baton in batons:
        await baton.close()
    return tuple(seconds)
