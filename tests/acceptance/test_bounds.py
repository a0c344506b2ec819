"""What a replica holds in memory is bounded in bytes: it refuses, lets runs wait in their journal, and loses none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from baton.v1 import run_pb2

from tests.acceptance.conftest import StartServer
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, refused

Connect = Callable[[ServerProcess], Baton]
INPUT_BYTES = 600_000
pytestmark = pytest.mark.parametrize("transport", ["stream"], indirect=True)


async def submit_held(baton: Baton, lab: LabWorker) -> str:
    """Submits a run that holds INPUT_BYTES until the gate `bounds` is opened."""
    step = {"id": "a", "method": lab.contract.method("Lab/Do"), "request": {"conduct": {"literal": {"gate": "bounds"}}}}
    definition = {"input_type": lab.contract.type("Task"), "steps": [step]}
    given = lab.contract.pack("Task", {"text": "x" * INPUT_BYTES})
    return (await baton.submit(definition, given)).run_id


async def test_runs_that_are_too_much_for_memory_are_refused_and_those_of_the_dead_wait_for_room(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    server = await start_server(BATON_MAX_ACTIVE_BYTES="2000000", BATON_LEASE_SECONDS="2")
    baton = connect(server)
    await baton.register("lab", lab.address)
    run_ids = [await submit_held(baton, lab) for _ in range(4)]
    refusal = await refused(submit_held(baton, lab))
    assert refusal.reason == "TOO_MANY_RUNS"
    assert refusal.retry_seconds is not None
    assert "bytes; the replica lets them hold 2000000" in refusal.text

    # One of its own and one that it takes over are as much as the other holds: the rest waits for their ends.
    other = connect(await start_server(BATON_MAX_ACTIVE_BYTES="1000000", BATON_LEASE_SECONDS="2"))
    run_ids.append(await submit_held(other, lab))
    await server.kill()
    run_ids += await fill(other, lab)
    lab.gates["bounds"].set()
    ended = await asyncio.gather(*(other.end(run_id) for run_id in run_ids))
    assert {run.state for run in ended} == {run_pb2.RUN_STATE_SUCCEEDED}


async def fill(baton: Baton, lab: LabWorker) -> list[str]:
    """Submits until there is no room; returns what was accepted."""
    accepted: list[str] = []
    while True:
        try:
            accepted.append(await submit_held(baton, lab))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return accepted


async def test_one_namespace_leaves_memory_to_others(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    baton = connect(await start_server(BATON_NAMESPACE_MAX_ACTIVE_BYTES="1000000"))
    await baton.register("lab", lab.address)
    run_ids = [await submit_held(baton, lab) for _ in range(2)]
    refusal = await refused(submit_held(baton, lab))
    assert refusal.reason == "NAMESPACE_QUEUE_FULL"
    assert "the active runs of the namespace hold" in refusal.text
    await baton.cancel(run_ids[0])
    run_ids.append(await submit_held(baton, lab))  # There is room again.


async def test_a_run_that_is_too_much_for_memory_fails_and_takes_no_more_signals(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    baton = connect(await start_server(BATON_MAX_RUN_BYTES="2000000"))
    await baton.register("lab", lab.address)
    conduct = {"conduct": {"literal": {"size": 600_000}}}
    steps = [
        {"id": name, "method": lab.contract.method("Lab/Do"), "request": conduct, "after": after}
        for name, after in (("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"]), ("e", ["d"]))
    ]
    run = await baton.end((await baton.submit({"steps": steps})).run_id)
    assert (run.state, run.failure.reason) == (run_pb2.RUN_STATE_FAILED, "RUN_BYTES_LIMIT")
    assert "more than 2000000 bytes" in run.failure.message
    assert [step.step for step in run.steps if step.state == run_pb2.STEP_STATE_SUCCEEDED] == ["a", "b", "c", "d"]

    kept = {"id": "a", "after": ["b"], "wait_signal": {"signal": "go", "type": lab.contract.type("Task")}}
    held = (await baton.submit({"steps": [{"id": "b", "wait_signal": {"signal": "stop"}}, kept]})).run_id
    large = lab.contract.pack("Task", {"text": "x" * 600_000})
    for _ in range(3):
        await baton.signal(held, "go", large)
    refusal = await refused(baton.signal(held, "go", large))
    assert refusal.reason == "SIGNAL_LIMIT"
    assert "more than 2000000 bytes" in refusal.text
    await baton.signal(held, "stop")
    assert (await baton.end(held)).state == run_pb2.RUN_STATE_SUCCEEDED
