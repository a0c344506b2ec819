"""What a replica holds in memory is bounded in bytes: it refuses, lets runs wait in their journal, and loses none."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2

from orchestrator.engine.updates import encode_cursor
from tests.acceptance.conftest import StartServer
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import FULL, Baton, refused

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


async def fan_out(baton: Baton, lab: LabWorker, width: int, result_bytes: int) -> str:
    """Has a run end that leaves `width` results of `result_bytes` in the database; returns its id."""
    contract = lab.contract
    request = {"conduct": {"literal": {"size": result_bytes}}}
    each = {"id": "each", "method": contract.method("Lab/Do"), "request": request}
    each["map"] = {"items": {"path": "input.results"}, "max_parallel": 20}
    given = contract.pack("Task", {"results": [{"number": number} for number in range(width)]})
    run = await baton.submit({"input_type": contract.type("Task"), "steps": [each]}, given, wait_seconds=60)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    return run.run_id


def memory_bytes(server: ServerProcess, name: str) -> int:
    """Reads what the kernel counts of a server: VmRSS, or VmHWM, its peak."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def forget_peak(server: ServerProcess) -> int:
    """Has the peak counted from now on; returns what is in use now."""
    assert server.process is not None
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return memory_bytes(server, "VmRSS")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_reads_of_large_runs_cost_what_they_show(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab.address)
    run_id = await fan_out(baton, lab, 60, 1_000_000)
    others = [connect(server) for _ in range(10)]
    before = forget_peak(server)
    runs = await asyncio.gather(*(other.get(run_id, FULL) for other in others))
    assert {(run.step_count, len(run.steps), run.ByteSize() > 2_000_000) for run in runs} == {(61, 4, True)}
    events = run_service_pb2.ListRunEventsRequest(run_id=run_id, view=FULL, page_size=1_000)
    pages = await asyncio.gather(*(other.runs.ListRunEvents(events, timeout=30) for other in others))
    steps = run_service_pb2.ListRunStepsRequest(run_id=run_id, view=FULL, page_size=1_000)
    listed = await asyncio.gather(*(other.runs.ListRunSteps(steps, timeout=30) for other in others))
    assert all(page.next_page_token and page.ByteSize() > 2_000_000 for page in (*pages, *listed))
    # As much as two whole runs, of thirty that were looked at.
    assert memory_bytes(server, "VmHWM") - before < 120_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_watchers_that_read_nothing_hold_little_and_miss_nothing(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab.address)
    run_id = await fan_out(baton, lab, 200, 100_000)
    before = forget_peak(server)
    request = run_service_pb2.WatchRunRequest(run_id=run_id, view=FULL, cursor=encode_cursor(UUID(run_id), 1))
    watches = [aiter(connect(server).runs.WatchRun(request, timeout=60)) for _ in range(60)]
    firsts = await asyncio.gather(*(anext(watch) for watch in watches))
    assert {first.event.sequence for first in firsts} == {2}
    # Others are served meanwhile.
    assert (await baton.get(run_id, FULL)).step_count == 201
    # The run has 20 MB, and each of them is behind by all of it.
    assert memory_bytes(server, "VmHWM") - before < 200_000_000
    last = (await baton.get(run_id)).last_sequence
    sequences = [update.event.sequence async for update in watches[0]]
    assert sequences == list(range(3, last + 1))
