"""Several processes on one address: they share the work, one that is killed is replaced, and all stop in good order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from baton.v1.run_service_pb2 import ListRunsRequest

from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, Program, ServerProcess
from tests.acceptance.test_kills import Submitter, diamond, require_sound
from tests.acceptance.test_replicas import require_results
from tests.acceptance.wire import Baton, eventually
from tests.ports import free_port

PROCESSES = 3
RUNS = 120


@pytest.fixture
async def server(database: str, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    started = ServerProcess(database, tmp_path / "server.log", processes=PROCESSES)
    await started.start()
    yield started
    await started.kill()


def processes_of(server: ServerProcess) -> list[int]:
    assert server.process is not None
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def owners(dsn: str) -> set[str]:
    """Replicas that hold a lease."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT replica_id FROM replicas WHERE end_time IS NULL AND lease_expire_time > clock_timestamp()"
        )
        return {str(row["replica_id"]) for row in rows}
    finally:
        await connection.close()


@pytest.mark.parametrize("transport", ["stream"])
async def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(
    server: ServerProcess, contract: Contract, lab_process: LabProcess
) -> None:
    # The kernel deals connections out by chance: of so many, all go to one process once in 3^15 times.
    connections = [Baton(server.address) for _ in range(16)]
    first = connections[0]
    await first.register("lab", lab_process.address)
    submitters = [Submitter(baton, contract) for baton in connections]
    before = processes_of(server)
    assert len(before) == PROCESSES

    async def kill() -> None:
        async def many() -> bool:
            return sum(len(submitter.acknowledged) for submitter in submitters) >= RUNS // 3

        await eventually(many)
        os.kill(before[0], signal.SIGKILL)

    async def submit(place: int) -> None:
        for number in range(place, RUNS, len(submitters)):
            await submitters[place].submit(number, diamond(contract, "0.05s"))

    try:
        await asyncio.gather(kill(), *(submit(place) for place in range(len(submitters))))
        for submitter in submitters[1:]:
            submitters[0].acknowledged |= submitter.acknowledged
        assert len(submitters[0].acknowledged) == RUNS
        await require_results(first, contract, submitters[0])
        await require_sound(server.dsn, submitters[0].acknowledged, lab_process)
        connection = await asyncpg.connect(server.dsn)
        shared = await connection.fetchval("SELECT count(DISTINCT end_replica) FROM runs")
        await connection.close()
        assert shared > 1, "one process did all the work"

        async def replaced() -> bool:
            return server.log().count("a server process serves") == PROCESSES + 1

        await eventually(replaced)
        assert set(before[1:]) < set(processes_of(server)), "more than the one that was killed is new"
    finally:
        for baton in connections:
            await baton.close()
    server.send(signal.SIGTERM)
    assert await server.wait() == 0, server.log()[-3000:]
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    drained = {line["process_number"] for line in lines if line["event"] == "draining"}
    assert drained == {str(number) for number in range(PROCESSES)}, "lines do not tell whose they are"

    async def released() -> bool:  # The lease of the one that was killed is over by itself.
        return not await owners(server.dsn)

    await eventually(released)


@pytest.mark.parametrize(("told", "warned"), [({}, True), ({"BATON_REPLICA_ADDRESS": "127.0.0.1:7330"}, False)])
async def test_who_listens_everywhere_is_to_say_where_it_is_reached(
    database: str, tmp_path: Path, told: dict[str, str], warned: bool
) -> None:
    words = ["-m", "baton.cli", "serve", "--listen", f"0.0.0.0:{free_port()}", "--output", "json"]
    server = Program(words, {"BATON_DATABASE_URL": database} | told, tmp_path / "server.log")
    try:
        await server.start()
        assert ("replicas on other machines do not reach this one" in server.log()) == warned
    finally:
        await server.kill()


async def test_a_process_that_stands_still_is_replaced(database: str, tmp_path: Path) -> None:
    server = ServerProcess(database, tmp_path / "server.log", {"BATON_STALL_SECONDS": "2"}, processes=2)
    await server.start()
    try:
        frozen, sound = processes_of(server)
        os.kill(frozen, signal.SIGSTOP)

        async def replaced() -> bool:
            return server.log().count("a server process serves") == 3

        await eventually(replaced)
        assert "the event loop of a server process stands still: it is killed" in server.log()
        after = processes_of(server)
        assert sound in after
        assert frozen not in after
        # Of so many connections some would be dealt out to the one that is frozen, and be answered by nobody.
        connections = [Baton(server.address) for _ in range(16)]
        try:
            async with asyncio.timeout(10):
                await asyncio.gather(*(baton.runs.ListRuns(ListRunsRequest()) for baton in connections))
        finally:
            for baton in connections:
                await baton.close()
        server.send(signal.SIGTERM)
        assert await server.wait() == 0, server.log()[-3000:]
    finally:
        await server.kill()
