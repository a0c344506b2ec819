"""Nobody can renew a lease for longer than it is: no call is made again, and no run changes hands.

The database is away or stands still, or all replicas do. Where `asyncio.sleep` stands, that is how long.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.acceptance import invariants
from tests.acceptance.contracts import Contract
from tests.acceptance.outages import freeze, is_served, kill, thaw
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import Submitter, all_ended
from tests.acceptance.test_replicas import SUCCEEDED
from tests.acceptance.wire import Baton, eventually

CALLS = 10

Connect = Callable[[ServerProcess], Baton]


class Pair:
    """Two servers with calls under way, and what they were told to do."""

    def __init__(self, postgres: EmbeddedPostgres, servers: list[ServerProcess], contract: Contract) -> None:
        self.postgres, self.servers, self._contract = postgres, servers, contract
        self._submitters: list[Submitter] = []
        self._lab: LabProcess

    async def begin(self, batons: list[Baton], lab: LabProcess, delay: str) -> None:
        """Has a call of so long under way for each run, half of them at each server."""
        self._lab = lab
        await batons[0].register("lab", lab.address)
        task = {"number": {"path": "input.number"}, "conduct": {"literal": {"delay": delay}}}
        step = {"id": "a", "method": self._contract.method("Lab/Do"), "request": task}
        types = {"input_type": self._contract.type("Task"), "output_type": self._contract.type("Result")}
        definition = {"name": "long", "steps": [step], "whole_output": {"path": "steps.a.output"}} | types
        self._submitters = [Submitter(baton, self._contract) for baton in batons]
        await asyncio.gather(*(self._submitters[number % 2].submit(number, definition) for number in range(CALLS)))
        await eventually(self.are_under_way)

    async def are_under_way(self) -> bool:
        """Whether each call has arrived, and none been answered."""
        return [note.what for note in self._lab.notes()] == ["arrived"] * CALLS

    async def serve(self) -> None:
        """Waits until both servers show runs."""
        for submitter in self._submitters:
            await is_served(submitter.baton, next(iter(submitter.acknowledged.values())))

    async def require_undisturbed(self) -> None:
        """Each run succeeds by its one call, at the server that began it."""
        assert await self.are_under_way(), "the calls were to be under way until here"
        for submitter in self._submitters:
            assert {run.state for run in await all_ended(submitter.baton, submitter.acknowledged)} == {SUCCEEDED}
        assert sorted(note.what for note in self._lab.notes()) == ["answered"] * CALLS + ["arrived"] * CALLS
        stored = await invariants.read_runs(self.postgres.dsn)
        assert {epoch for run in stored.values() for epoch in run.epochs} == {1}


@pytest.fixture
async def pair(own_postgres: EmbeddedPostgres, contract: Contract, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two servers with leases of 1 s (QUICK)."""
    servers = [ServerProcess(own_postgres.dsn, tmp_path / f"{number}.log") for number in range(2)]
    for each in servers:
        await each.start()
    yield Pair(own_postgres, servers, contract)
    for each in servers:
        await each.kill()


@pytest.fixture
async def patient_pair(own_postgres: EmbeddedPostgres, contract: Contract, tmp_path: Path) -> AsyncIterator[Pair]:
    """The same with leases of 5 s, of which it takes longer to find out that they are not renewed."""
    settings = {"BATON_LEASE_SECONDS": "5", "BATON_ADOPTION_INTERVAL_SECONDS": "1"}
    servers = [ServerProcess(own_postgres.dsn, tmp_path / f"{number}.log", settings) for number in range(2)]
    for each in servers:
        await each.start()
    yield Pair(own_postgres, servers, contract)
    for each in servers:
        await each.kill()


async def test_the_database_was_away(pair: Pair, connect: Connect, lab_process: LabProcess) -> None:
    """Twice: also so often, the deaths of owners that a call may meet are not used up."""
    await pair.begin([connect(each) for each in pair.servers], lab_process, "8s")
    for _ in range(2):
        kill(pair.postgres)
        await asyncio.sleep(1.5)
        pair.postgres.start()
        await pair.serve()
    await pair.require_undisturbed()


@pytest.mark.parametrize("transport", ["unary"])
async def test_the_database_stood_still(patient_pair: Pair, connect: Connect, lab_process: LabProcess) -> None:
    """Looks for the dead that were sent before it did, or meanwhile, are carried out when it goes on."""
    await patient_pair.begin([connect(each) for each in patient_pair.servers], lab_process, "13s")
    freeze(patient_pair.postgres)
    await asyncio.sleep(8.0)
    thaw(patient_pair.postgres)
    await patient_pair.serve()
    await patient_pair.require_undisturbed()


@pytest.mark.parametrize("transport", ["unary"])
async def test_all_replicas_stood_still(pair: Pair, connect: Connect, lab_process: LabProcess) -> None:
    """As where a machine is paused. One of them goes on before the other."""
    await pair.begin([connect(each) for each in pair.servers], lab_process, "8s")
    for each in pair.servers:
        each.send(signal.SIGSTOP)
    await asyncio.sleep(2.5)
    for each in pair.servers:
        each.send(signal.SIGCONT)
        await asyncio.sleep(0.3)
    await pair.serve()
    await pair.require_undisturbed()
