"""Verbs on live runs at replicas that do not drive them: two servers as processes, one of them killed."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import STEADY, LabProcess
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import Baton, Refusal, eventually, refused

pytestmark = pytest.mark.parametrize("transport", ["stream"], indirect=True)
"""Who forwards a request does not look at how calls go to workers."""

CANCELLED, RUNNING = run_pb2.RUN_STATE_CANCELLED, run_pb2.RUN_STATE_RUNNING


async def hang(baton: Baton, contract: Contract, lab: LabProcess) -> str:
    """Starts a run whose call never ends; returns its id once the call is under way."""
    await baton.register("lab", lab.address)
    request = {"conduct": {"literal": {"hang": True}}}
    run = await baton.submit({"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request}]})

    async def called() -> bool:
        return any(note.run == run.run_id for note in lab.notes())

    await eventually(called)
    return run.run_id


async def test_a_run_is_cancelled_through_a_server_that_does_not_drive_it(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    first = await start_server(**STEADY)
    owner, other = connect(first), connect(await start_server(**STEADY))
    run_id = await hang(owner, contract, lab_process)
    run = await other.cancel(run_id, "no longer wanted")
    assert (run.state, run.failure.message) == (CANCELLED, "no longer wanted")
    assert run == await owner.get(run_id, run_service_pb2.RUN_VIEW_BASIC)
    again = await other.cancel(run_id)
    assert again == run, "an ended run has no owner to ask"

    async def told() -> bool:
        return any(note.what == "cancelled" and note.run == run_id for note in lab_process.notes())

    await eventually(told)
    runs = await invariants.read_runs(first.dsn)
    assert not invariants.journal_faults(runs)
    assert runs[run_id].epoch == 1, "the run changed hands"


async def test_errors_of_the_owner_come_through(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    owner, other = connect(await start_server(**STEADY)), connect(await start_server(**STEADY))
    await owner.register("lab", lab_process.address)
    run = await owner.run({"steps": [{"id": "a", "method": contract.method("Lab/Do")}]})
    for baton in (owner, other):
        refusal = await refused(baton.cancel(run.run_id))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED")
    unknown = await refused(other.cancel("01890a5d-ac96-774b-bcce-b302099a8057"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


async def test_while_the_owner_is_dead_the_caller_tries_again(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    dying, heir = await start_server(), await start_server()
    run_id = await hang(connect(dying), contract, lab_process)
    other = connect(heir)
    await dying.kill()
    refusals: list[Refusal] = []

    async def cancelled() -> bool:
        try:
            return (await other.cancel(run_id)).state == CANCELLED
        except grpc.aio.AioRpcError as error:
            refusals.append(Refusal(error))
            return False

    await eventually(cancelled)
    assert refusals, "the lease of a killed server goes on for a while"
    for refusal in refusals:
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "OWNER_UNAVAILABLE")
        assert refusal.retry_seconds
    assert not invariants.journal_faults(await invariants.read_runs(heir.dsn))


async def test_many_verbs_go_to_their_owners_at_once(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    servers = [await start_server(**STEADY), await start_server(**STEADY)]
    one, two = (connect(server) for server in servers)
    await one.register("lab", lab_process.address)
    request = {"conduct": {"literal": {"hang": True}}}
    definition = {"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request}]}

    async def known() -> bool:
        return bool((await two.submit(definition)).run_id)

    await eventually(known)
    mine, yours = [[(await baton.submit(definition)).run_id for _ in range(40)] for baton in (one, two)]
    runs = await asyncio.gather(*(one.cancel(run_id) for run_id in mine + yours))
    assert {run.state for run in runs} == {CANCELLED}
    stored = await invariants.read_runs(servers[0].dsn)
    assert {stored[run_id].epoch for run_id in mine + yours} == {1}, "a run changed hands"
    assert not invariants.journal_faults(stored)
