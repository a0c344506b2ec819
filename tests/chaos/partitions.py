"""Partitions: a part of the network lets nothing through, in both directions or in one, and how soon all is well again.

Who is cut off and who goes on is the same in each: a replica and its database, a worker, a replica and its clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc.aio

from tests.acceptance.wire import Baton, submission
from tests.chaos.cluster import Cluster
from tests.chaos.faults import Fault
from tests.chaos.logs import Tail, now_us
from tests.chaos.proxy import FaultyProxy, Way
from tests.chaos.works import ALARM, given

SECONDS = (0.5, 4.0)
"""How long a partition lasts."""

CALL_SECONDS = 2.0
LONGEST_SECONDS = 30.0
"""How long it may take until all is well again."""

Back = Callable[[], Awaitable[None]]
"""Waits until who was cut off is at work again."""

Place = Callable[[Cluster], tuple[FaultyProxy, Back]]
"""Chooses a proxy, and how it is told that it does no harm any more."""


def _partition(name: str, place: Place, *ways: Way) -> Fault:
    async def inject(cluster: Cluster) -> bool:
        proxy, back = place(cluster)
        proxy.swallow(*ways)
        await asyncio.sleep(cluster.draw.uniform(*SECONDS))
        proxy.heal()
        healed = time.monotonic()
        with contextlib.suppress(TimeoutError):  # It shows, by how long that took.
            async with asyncio.timeout(LONGEST_SECONDS):
                await back()
        cluster.recoveries.setdefault(name, []).append(round(time.monotonic() - healed, 3))
        return True

    return inject


def _database(cluster: Cluster) -> tuple[FaultyProxy, Back]:
    """A replica and its database; it is well when it acknowledges a submission."""
    replica = cluster.draw.choice(cluster.replicas)
    return replica.proxy, lambda: _accepts(replica.address)


def _door(cluster: Cluster) -> tuple[FaultyProxy, Back]:
    """A replica and its clients; likewise, to who comes by its door."""
    replica = cluster.draw.choice(cluster.replicas)
    return replica.door, lambda: _accepts(f"127.0.0.1:{replica.door.port}")


def _worker(cluster: Cluster) -> tuple[FaultyProxy, Back]:
    """A worker and all replicas; it is well when a call comes to it."""
    kind = cluster.draw.choice(list(cluster.worker_proxies))
    return cluster.worker_proxies[kind], lambda: _is_called(cluster.directory, kind)


async def _accepts(address: str) -> None:
    baton = Baton(address)
    request = submission(ALARM, given(1, "alarm"), request_id=f"probe-{now_us()}")
    try:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await baton.runs.SubmitRun(request, timeout=CALL_SECONDS)
                return
            await asyncio.sleep(0.02)
    finally:
        await baton.close()


async def _is_called(directory: Path, kind: str) -> None:
    tail, since = Tail(directory, f"worker-{kind}.log"), now_us()
    while not any(each["what"] == "arrived" and each["time"] >= since for each in tail.fresh()):
        await asyncio.sleep(0.02)


PARTITIONS: Mapping[str, Fault] = {
    name: _partition(name, place, *ways)
    for what, place in (("database", _database), ("worker", _worker), ("clients", _door))
    for name, ways in (
        (f"{what} away", ()),
        (f"{what} away, upward only", (Way.UP,)),
        (f"{what} away, downward only", (Way.DOWN,)),
    )
}
