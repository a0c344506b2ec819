"""Servers of an older build, whose events are of an older format, are replaced by this one while clients are at work.

See `builds/README.md` for the older build.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import grpc
import pytest

from orchestrator.postgres.migrate import migrate
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import QUICK, LabProcess, ServerProcess
from tests.acceptance.test_kills import require_sound
from tests.acceptance.test_rolling import Cluster, at_least, knows_lab
from tests.acceptance.wire import Baton, eventually

Connect = Callable[[ServerProcess], Baton]
MakeServer = Callable[..., ServerProcess]

OLD = Path(__file__).parent / "builds/baton_format_1.whl"
OLD_SETTINGS = {name: QUICK[name] for name in ("BATON_LEASE_SECONDS", "BATON_ADOPTION_INTERVAL_SECONDS")}


@pytest.fixture
async def old_database(empty_database: str) -> str:
    """A database with the schema of the older build."""
    environment = os.environ | {"PYTHONPATH": str(OLD), "BATON_DATABASE_URL": empty_database}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "baton.cli", "migrate", env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    return empty_database


@pytest.fixture
async def make(old_database: str, tmp_path: Path) -> AsyncIterator[MakeServer]:
    """Makes servers of a build (None: this one) on this test's database; they are not started."""
    servers: list[ServerProcess] = []

    def make(build: Path | None, address: str = "") -> ServerProcess:
        log, settings = tmp_path / f"server{len(servers)}.log", OLD_SETTINGS if build else {}
        servers.append(ServerProcess(old_database, log, settings, build=build, address=address))
        return servers[-1]

    yield make
    for server in servers:
        await server.kill()


async def formats(dsn: str) -> set[int]:
    """The formats of the journals of all runs."""
    connection = await asyncpg.connect(dsn)
    try:
        return {row["journal_format"] for row in await connection.fetch("SELECT DISTINCT journal_format FROM runs")}
    finally:
        await connection.close()


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_servers_are_replaced_by_those_of_a_newer_build_while_clients_work(
    make: MakeServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    old = [make(OLD) for _ in range(3)]
    await asyncio.gather(*(server.start() for server in old))
    cluster, stopping, dsn = Cluster(old, connect), asyncio.Event(), old[0].dsn
    cluster.away.add(grpc.StatusCode.CANCELLED)  # The older build ends calls so as it stops, now and then.
    await cluster.batons[0].register("lab", lab_process.address)
    for baton in cluster.batons[1:]:
        await eventually(lambda baton=baton: knows_lab(baton))  # type: ignore[misc]

    async def some_more() -> None:
        before = len(cluster.acknowledged)
        await eventually(lambda: at_least(cluster.acknowledged, before + 10))

    async def roll() -> None:
        await some_more()
        assert await formats(dsn) == {1}
        await migrate(dsn)
        await some_more()
        for server in old:
            server.send(signal.SIGTERM)
            await server.wait()  # How the older build ends is its own affair.
            await make(None, server.address).start()
            await some_more()
        stopping.set()

    async with asyncio.TaskGroup() as group:
        for client in range(6):
            group.create_task(cluster.work(contract, client, stopping))
        group.create_task(roll())
    runs = await require_sound(dsn, cluster.acknowledged, lab_process)
    assert await formats(dsn) == {1, 2}
    assert any(run.epoch > 1 for run in runs.values()), "no run went from one build to the other"
