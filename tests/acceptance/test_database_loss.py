"""Postgres goes away and comes back while runs go: nothing acknowledged is lost, and the server recovers by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.acceptance import test_schedules as schedules
from tests.acceptance.contracts import Contract
from tests.acceptance.outages import is_served, kill
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import Submitter, diamond, require_sound
from tests.acceptance.test_replicas import require_results, start_runs
from tests.acceptance.wire import Baton, refused, submission

Connect = Callable[[ServerProcess], Baton]


@pytest.fixture
async def server(own_postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server on that Postgres."""
    process = ServerProcess(own_postgres.dsn, tmp_path / "server.log")
    await process.start()
    yield process
    await process.kill()


async def test_runs_go_on_after_the_database_was_killed(
    own_postgres: EmbeddedPostgres,
    server: ServerProcess,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    baton = connect(server)
    submitter = await start_runs(baton, contract, lab_process, 40, "0.1s")
    kill(own_postgres)

    late = Submitter(baton, contract)
    waiting = [asyncio.ensure_future(late.submit(number, diamond(contract))) for number in range(100, 105)]
    dropped = submission(diamond(contract), contract.pack("Task"), request_id="impatient")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await baton.runs.SubmitRun(dropped, timeout=2)
    assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not any(call.done() for call in waiting)
    own_postgres.start()
    await asyncio.gather(*waiting)
    submitter.acknowledged |= late.acknowledged
    answer = await baton.runs.SubmitRun(dropped, timeout=20)
    submitter.acknowledged["impatient"] = answer.run.run_id
    assert server.process is not None
    assert server.process.returncode is None
    given = submitter.acknowledged.pop("impatient")
    await require_results(baton, contract, submitter)
    submitter.acknowledged["impatient"] = given
    await baton.end(given)
    await require_sound(server.dsn, submitter.acknowledged, lab_process)


async def test_no_firing_is_lost_or_doubled_over_deaths_of_the_database(
    own_postgres: EmbeddedPostgres,
    server: ServerProcess,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    await schedules.apply_workflow(baton, contract)
    names = [f"tick-{number}" for number in range(5)]
    for name in names:
        await schedules.apply(baton, contract, name, overlap_policy="OVERLAP_POLICY_ALLOW")
    for fired in (1, 5, 9):
        for name in names:
            await schedules.has_fired(baton, name, fired)
        kill(own_postgres)
        own_postgres.start()
    await schedules.has_fired(baton, names[0], 13)
    for name in names:
        await schedules.pause(baton, name)
    for name in names:
        times = await schedules.fire_times(baton, name)
        assert times == schedules.every_second(times), name
    assert server.process is not None
    assert server.process.returncode is None


async def test_reads_say_that_the_database_is_away(
    own_postgres: EmbeddedPostgres,
    server: ServerProcess,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    run = await baton.run(diamond(contract), contract.pack("Task"))
    kill(own_postgres)
    refusal = await refused(baton.get(run.run_id))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert refusal.retry_seconds
    for word in ("asyncpg", "Connection", "Errno", "socket"):
        assert word not in refusal.text
    own_postgres.start()
    await is_served(baton, run.run_id)
