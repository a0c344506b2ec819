"""Postgres goes away and comes back while runs go: nothing acknowledged is lost, and the server recovers by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.migrate import migrate
from tests.acceptance import invariants
from tests.acceptance import test_schedules as schedules
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import Submitter, all_ended, diamond, require_sound
from tests.acceptance.test_replicas import SUCCEEDED, require_results, start_runs
from tests.acceptance.wire import Baton, eventually, refused, submission

Connect = Callable[[ServerProcess], Baton]

AWAY_SECONDS = 1.5
"""How long Postgres is away: longer than the lease of the servers (QUICK)."""


@pytest.fixture
async def own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres of this test alone, which keeps what it committed when it is killed."""
    directory = Path(tempfile.mkdtemp(prefix="baton-lost-"))
    postgres = EmbeddedPostgres(directory)
    await migrate(postgres.start())
    yield postgres
    postgres.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def server(own_postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server on that Postgres."""
    process = ServerProcess(own_postgres.dsn, tmp_path / "server.log")
    await process.start()
    yield process
    await process.kill()


@pytest.fixture
async def other(own_postgres: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """Another server on it."""
    process = ServerProcess(own_postgres.dsn, tmp_path / "other.log")
    await process.start()
    yield process
    await process.kill()


def kill(postgres: EmbeddedPostgres) -> None:
    """Ends Postgres as a crash would: every backend is gone, nothing is written in good order."""
    assert postgres.process_id is not None
    os.kill(postgres.process_id, signal.SIGQUIT)
    postgres.stop()


async def is_served(baton: Baton, run_id: str) -> None:
    """Returns once a run is shown again."""
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await baton.get(run_id)).run_id == run_id
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


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


async def test_calls_under_way_are_not_made_again_where_the_database_was_away_for_longer_than_a_lease(
    own_postgres: EmbeddedPostgres,
    server: ServerProcess,
    other: ServerProcess,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    batons = [connect(server), connect(other)]
    submitters = [Submitter(baton, contract) for baton in batons]
    await batons[0].register("lab", lab_process.address)
    task = {"number": {"path": "input.number"}, "conduct": {"literal": {"delay": "8s"}}}
    step = {"id": "a", "method": contract.method("Lab/Do"), "request": task}
    types = {"input_type": contract.type("Task"), "output_type": contract.type("Result")}
    definition = {"name": "long", "steps": [step], "whole_output": {"path": "steps.a.output"}} | types
    await asyncio.gather(
        *(submitters[number % 2].submit(number, definition) for number in range(10)),
    )

    async def all_arrived() -> bool:
        return len(lab_process.notes()) == 10

    await eventually(all_arrived)
    for _ in range(2):
        kill(own_postgres)
        await asyncio.sleep(AWAY_SECONDS)
        own_postgres.start()
        for baton, submitter in zip(batons, submitters, strict=True):
            await is_served(baton, next(iter(submitter.acknowledged.values())))
    assert await all_arrived(), "the calls were to be under way until here"
    for baton, submitter in zip(batons, submitters, strict=True):
        assert {run.state for run in await all_ended(baton, submitter.acknowledged)} == {SUCCEEDED}
    assert sorted(note.what for note in lab_process.notes()) == ["answered"] * 10 + ["arrived"] * 10
    stored = await invariants.read_runs(own_postgres.dsn)
    assert {epoch for run in stored.values() for epoch in run.epochs} == {1}, "no run changed hands"


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
