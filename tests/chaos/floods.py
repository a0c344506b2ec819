"""Floods of submissions into a cluster, and how long their runs took: what campaigns of load have in common."""

from __future__ import annotations

import asyncpg

from tests.acceptance.processes import Program
from tests.acceptance.wire import eventually
from tests.chaos.campaigns import NotMeasured
from tests.chaos.cluster import Cluster
from tests.chaos.flood import DEADLINE_VARIABLE
from tests.chaos.works import WORK

_SECONDS = """
SELECT extract(epoch FROM end_time - create_time)::float8 AS seconds FROM runs
WHERE request_id LIKE 'flood-' || $1 || '-%' AND end_time IS NOT NULL
"""


async def flood(
    cluster: Cluster,
    name: str,
    rate: float,
    seconds: float,
    workflow: str = WORK,
    conduct: str = "work",
    *,
    namespace: str = "",
    deadline_seconds: float = 10.0,
) -> None:
    """Submits `rate` runs a second in a process of its own (`flood.py`), at all replicas, whatever comes back. Its log
    is `client-NAME.log`, its requests are flood-NAME-0 and so on. Errors: NotMeasured."""
    log = cluster.directory / f"client-{name}.log"
    arguments = ["-m", "tests.chaos.flood", str(log), name, str(rate), str(seconds), namespace, workflow, conduct]
    environment = {DEADLINE_VARIABLE: str(deadline_seconds)}
    program = Program([*arguments, *cluster.addresses()], environment, log.with_suffix(".err"))
    await program.start()
    if await program.wait(seconds + 60):
        raise NotMeasured(f"the client {name} failed: {program.log()[-1000:]}")


async def until_done(cluster: Cluster) -> None:
    """Waits until every run has ended. Errors: AssertionError after a minute."""
    connection = await asyncpg.connect(cluster.dsn)
    try:

        async def done() -> bool:
            return not await connection.fetchval("SELECT EXISTS (SELECT FROM runs WHERE end_time IS NULL)")

        await eventually(done, 60)
    finally:
        await connection.close()


async def seconds_of_runs(cluster: Cluster, name: str) -> tuple[float, ...]:
    """How long the runs of a flood took that have ended; of several floods where `name` is a pattern of LIKE."""
    connection = await asyncpg.connect(cluster.dsn)
    try:
        return tuple(row["seconds"] for row in await connection.fetch(_SECONDS, name))
    finally:
        await connection.close()
