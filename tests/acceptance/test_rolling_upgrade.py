"""Two versions on one database: the older, whose events are of an older format, leaves alone what it could not read,
and the newer goes on with the runs of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from baton.v1 import run_service_pb2

from tests.acceptance import invariants
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import EDGES, Submitter, diamond
from tests.acceptance.test_replicas import require_results
from tests.acceptance.wire import Baton, refused

Connect = Callable[[ServerProcess], Baton]
StartVersion = Callable[[str], Any]

OLD, NEW = "tests.acceptance.old_server", "baton.cli"
RUNS = 6


@pytest.fixture
async def start(database: str, tmp_path: Path) -> AsyncIterator[StartVersion]:
    """Starts servers of a version on this test's database."""
    servers: list[ServerProcess] = []

    async def start(module: str) -> ServerProcess:
        server = ServerProcess(database, tmp_path / f"server{len(servers)}.log", module=module)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.kill()


def napping(contract: Contract) -> dict[str, Any]:
    """The diamond with a sleep before it, which the older version knows nothing of."""
    definition = diamond(contract, "0.1s")
    nap = {"id": "nap", "sleep": {"duration": {"literal": "2s"}}}
    first, *others = definition["steps"]
    return {**definition, "name": "napping", "steps": [nap, {**first, "after": ["nap"]}, *others]}


async def rows(dsn: str, acknowledged: dict[str, str]) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            "SELECT owner_replica, epoch, journal_format, end_time FROM runs WHERE run_id = ANY ($1::uuid[])",
            list(acknowledged.values()),
        )
    finally:
        await connection.close()


@pytest.mark.parametrize("transport", ["stream"])
async def test_an_older_version_leaves_alone_what_it_cannot_read_and_a_newer_reads_both(
    start: StartVersion, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    staying, dying, new = await asyncio.gather(start(OLD), start(OLD), start(NEW))
    for server in (staying, dying, new):
        await connect(server).register("lab", lab_process.address)
    mine, theirs = Submitter(connect(new), contract), Submitter(connect(dying), contract)
    await asyncio.gather(
        *(mine.submit(number, napping(contract)) for number in range(RUNS)),
        *(theirs.submit(100 + number, diamond(contract, "0.4s")) for number in range(RUNS)),
    )
    assert {row["journal_format"] for row in await rows(new.dsn, mine.acknowledged)} == {2}
    assert {row["journal_format"] for row in await rows(new.dsn, theirs.acknowledged)} == {1}
    left = await rows(new.dsn, mine.acknowledged)
    assert not any(row["end_time"] for row in left)
    await asyncio.gather(new.kill(), dying.kill())

    # The older version takes over what it can read. The same statements pass over the rest, which stays as it was.
    await require_results(connect(staying), contract, theirs)
    orphans = [row for row in await rows(new.dsn, mine.acknowledged) if row["end_time"] is None]
    assert orphans
    assert {(row["owner_replica"], row["epoch"]) for row in orphans} == {(left[0]["owner_replica"], 1)}
    run_id = next(iter(mine.acknowledged.values()))
    request = run_service_pb2.CancelRunRequest(run_id=run_id)
    refusal = await refused(connect(staying).runs.CancelRun(request, timeout=20))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")

    # The newer one comes back for its own, and then takes over what the older one began.
    await new.start()
    await require_results(connect(new), contract, mine)
    more = Submitter(connect(staying), contract)
    await asyncio.gather(*(more.submit(200 + number, diamond(contract, "0.3s")) for number in range(RUNS)))
    await staying.kill()
    await require_results(connect(new), contract, more)
    assert {row["journal_format"] for row in await rows(new.dsn, more.acknowledged)} == {2}, (
        "what a newer version took over may hold its events"
    )
    acknowledged = mine.acknowledged | theirs.acknowledged | more.acknowledged
    runs, notes = await invariants.read_runs(new.dsn), lab_process.notes()
    assert not invariants.journal_faults(runs, EDGES)
    assert not invariants.submission_faults(runs, acknowledged)
    assert not invariants.call_faults(runs, notes)
    # Nobody answers a sleep.
    assert not [fault for fault in invariants.answer_faults(runs, notes) if "/nap:" not in fault]
    assert any(invariants.kind(event) == "step_waiting" for run in runs.values() for event in run.events)
    assert len(runs) == 3 * RUNS
