"""Limits over three replicas: what they allow is never exceeded, whoever comes, goes or is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest
from baton.v1 import run_pb2

from orchestrator.engine.homes import home_of
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_limits import fan, given, most_at_once
from tests.acceptance.wire import Baton, eventually

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
MOST = 5


@pytest.fixture
async def servers(start_server: StartServer, connect: Connect, lab_process: LabProcess) -> list[ServerProcess]:
    """Three replicas that know the lab."""
    started = [await start_server() for _ in range(3)]
    await connect(started[0]).register("lab", lab_process.address)
    return started


async def home_first(servers: Sequence[ServerProcess]) -> list[ServerProcess]:
    """The replicas, that first which is the home of the limits."""
    connection = await asyncpg.connect(servers[0].dsn)
    rows = await connection.fetch(
        "SELECT r.replica_id, r.address FROM replicas AS r, replica_sets AS s WHERE r.replica_id = ANY (s.members)"
    )
    await connection.close()
    addresses = {row["replica_id"]: row["address"] for row in rows}
    assert len(addresses) == len(servers)
    home = addresses[home_of(addresses, "default")]
    return sorted(servers, key=lambda server: server.address != home)


async def submit_everywhere(
    batons: Sequence[Baton], definition: dict[str, Any], contract: Contract, count: int
) -> list[str]:
    runs = await asyncio.gather(*(baton.submit(definition, given(contract, "x")) for baton in batons * count))
    return [run.run_id for run in runs]


def calls(lab: LabProcess) -> int:
    return sum(1 for note in lab.notes() if note.what == "arrived")


async def test_a_limit_holds_while_three_replicas_call(
    servers: list[ServerProcess], connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    batons = [connect(server) for server in servers]
    await batons[0].limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=MOST)
    for baton in batons:
        await _knows(baton)
    ids = await submit_everywhere(batons, fan(contract, 20, delay="0.02s"), contract, 3)
    assert {(await batons[0].end(run_id)).state for run_id in ids} == {SUCCEEDED}
    notes = [note for note in lab_process.notes() if note.what != "failed"]
    assert calls(lab_process) == 180
    assert most_at_once(notes) == MOST
    use = await batons[1].limit_use("doing")
    assert (use.in_flight, use.waiting, use.paused) == (0, 0, "")


@pytest.mark.parametrize("killed", ["home", "other"])
async def test_a_limit_holds_when_a_replica_is_killed(
    servers: list[ServerProcess], connect: Connect, contract: Contract, lab_process: LabProcess, killed: str
) -> None:
    batons = [connect(server) for server in servers]
    await batons[0].limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=MOST)
    for baton in batons:
        await _knows(baton)
    ids = await submit_everywhere(batons, fan(contract, 20, delay="0.03s"), contract, 3)

    async def busy() -> bool:
        return calls(lab_process) >= 30

    await eventually(busy)
    ordered = await home_first(servers)
    victim = ordered[0] if killed == "home" else ordered[1]
    await victim.kill()
    heir = connect(ordered[2])
    assert {(await heir.end(run_id)).state for run_id in ids} == {SUCCEEDED}
    assert most_at_once(lab_process.notes()) == MOST


async def test_a_limit_holds_while_replicas_come_and_go(
    servers: list[ServerProcess],
    start_server: StartServer,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    batons = [connect(server) for server in servers]
    await batons[0].limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=MOST)
    for baton in batons:
        await _knows(baton)
    stays = (await home_first(servers))[1]
    ids = await submit_everywhere([connect(stays)], fan(contract, 100, delay="0.03s"), contract, 3)
    leaving = [server for server in servers if server is not stays]
    for server in leaving:
        await start_server()
        server.send(15)
        assert await server.wait() == 0
    baton = connect(stays)
    assert {(await baton.end(run_id)).state for run_id in ids} == {SUCCEEDED}
    assert most_at_once(lab_process.notes()) == MOST


async def test_who_waits_elsewhere_is_told_why(
    servers: list[ServerProcess], connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    ordered = await home_first(servers)
    home, other = connect(ordered[0]), connect(ordered[1])
    await home.limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=1)
    await _knows(other)
    held = await other.submit(fan(contract, 1, gate="never"), given(contract, "x"))

    async def busy() -> bool:
        return calls(lab_process) == 1

    await eventually(busy)
    run = await other.submit(fan(contract, 2), given(contract, "y"))

    async def told() -> bool:
        reasons = [step.wait_reason.message for step in (await other.get(run.run_id)).steps]
        return reasons == [
            f"the limit doing has 1 of 1 calls in flight; the step is number {place} in line" for place in (1, 2)
        ]

    await eventually(told)
    assert (await other.limit_use("doing")).in_flight == 1
    await other.cancel(held.run_id)
    assert (await other.end(run.run_id)).state == SUCCEEDED


async def _knows(baton: Baton) -> None:
    """Waits until a replica has heard of the limit: a change is effective everywhere within one lease."""

    async def ready() -> bool:
        # It stays in force there from its next renewal on, which is what GetLimit reads.
        return (await baton.limit_use("doing")).paused == ""

    await eventually(ready)
