"""Runs that only wait are released from memory: they outlive kills, are found by verbs, and go on in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from baton.v1 import run_pb2
from baton.v1.run_service_pb2 import SubmitRunsRequest

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract, new_lab
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess
from tests.acceptance.test_kills import Submitter
from tests.acceptance.test_replicas import Connect
from tests.acceptance.test_watches import follow
from tests.acceptance.wire import Baton, eventually, step_of, submission

ABORTED = 10  # A code that is tried again and counts against no circuit.
CANCELLED, SUCCEEDED = run_pb2.RUN_STATE_CANCELLED, run_pb2.RUN_STATE_SUCCEEDED


def waiting(contract: Contract, backoff: str, then: Sequence[str] = ()) -> dict[str, Any]:
    """A workflow whose first step fails once, and is tried again after `backoff`."""
    do = contract.method("Lab/Do")
    conduct = {"conduct": {"literal": {"failures": 1, "code": ABORTED}}}
    policy = {"max_attempts": 3, "initial_backoff": backoff, "max_backoff": "3600s", "jitter": 0.0}
    steps = [{"id": "a", "method": do, "request": conduct, "retry": policy}]
    for source, name in zip(["a", *then], then, strict=False):
        results = {"list": {"elements": [{"path": f"steps.{source}.output"}]}}
        steps.append({"id": name, "method": do, "request": {"results": results}})
    return {"steps": steps, "run_timeout": "7200s"}


async def submit(baton: Baton, definition: dict[str, Any], count: int) -> list[str]:
    """Submits many runs of one definition, again where the server has no room for them yet."""
    run_ids: list[str] = []
    while len(run_ids) < count:
        requests = [submission(definition) for _ in range(min(count - len(run_ids), 200))]
        answer = await baton.runs.SubmitRuns(SubmitRunsRequest(requests=requests), timeout=30, wait_for_ready=True)
        run_ids += [result.accepted.run.run_id for result in answer.results if result.HasField("accepted")]
    return run_ids


async def wake_times(dsn: str) -> dict[str, float]:
    """The parked runs, and in how many seconds each is to be woken."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT run_id, extract(epoch FROM wake_time - clock_timestamp()) AS seconds FROM runs "
            "WHERE owner_replica IS NULL AND end_time IS NULL"
        )
        return {str(row["run_id"]): float(row["seconds"]) for row in rows}
    finally:
        await connection.close()


async def all_parked(dsn: str, run_ids: Sequence[str]) -> dict[str, float]:
    async def parked() -> dict[str, float]:
        found = await wake_times(dsn)
        return found if set(run_ids) <= found.keys() else {}

    return await eventually(parked, 60)


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_thousands_of_runs_wait_for_an_hour_outside_of_memory(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    count = 2_000
    # What is parked does not count: far more runs are under way than have room in memory.
    # Nor does a run change hands because the machine is busy: the lease is longer than that of the others.
    settings = {"BATON_PARK_SECONDS": "1", "BATON_MAX_ACTIVE_RUNS": "600", "BATON_LEASE_SECONDS": "3"}
    server = await start_server(BATON_DEFAULT_MAX_IN_FLIGHT="200", **settings)
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    run_ids = await submit(baton, waiting(contract, "3600s"), count)
    assert len(set(run_ids)) == count
    parked = await all_parked(server.dsn, run_ids)
    assert all(3_000 < seconds < 3_600 for seconds in parked.values())

    await server.kill()
    await server.start()
    other = connect(await start_server())
    assert (await all_parked(server.dsn, run_ids)).keys() == parked.keys()
    step = step_of(await other.get(run_ids[0]), "a")
    assert (step.state, step.wait_reason.kind) == (run_pb2.STEP_STATE_READY, run_pb2.WAIT_KIND_BACKOFF)
    assert step.wait_reason.until_time == (await other.events(run_ids[0]))[-1].attempt_failed.retry_time
    assert {run.epoch for run in (await invariants.read_runs(server.dsn)).values()} == {1}, "a run was woken early"

    limit = asyncio.Semaphore(20)

    async def cancel(number: int, run_id: str) -> run_pb2.Run:
        async with limit:
            return await (baton, other)[number % 2].cancel(run_id, "enough")

    runs = await asyncio.gather(*(cancel(number, run_id) for number, run_id in enumerate(run_ids)))
    assert {(run.state, run.failure.message) for run in runs} == {(CANCELLED, "enough")}
    stored = await invariants.read_runs(server.dsn)
    assert not invariants.journal_faults(stored)
    assert {run.epoch for run in stored.values()} == {2}
    assert not invariants.call_faults(stored, lab_process.notes())


async def test_a_parked_run_goes_on_in_time_and_is_watched_and_waited_for(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.5")
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    run = await baton.submit(waiting(contract, "5s", ("b", "c")))
    seen: list[Any] = []
    watching = asyncio.ensure_future(follow(baton, run.run_id, seen, []))
    waiting_for = asyncio.ensure_future(baton.end(run.run_id))
    await all_parked(server.dsn, [run.run_id])
    ended = await waiting_for
    await watching
    assert ended.state == SUCCEEDED
    journal = await baton.events(run.run_id)
    assert seen == journal[seen[0].sequence - 1 :]
    first, second = ended.steps[0].attempts
    assert (first.deliveries, second.deliveries) == (1, 1)
    failed = next(event for event in journal if event.HasField("attempt_failed"))
    late_us = second.start_time.ToMicroseconds() - failed.attempt_failed.retry_time.ToMicroseconds()
    assert 0 <= late_us < 10_000_000
    stored = await invariants.read_runs(server.dsn)
    assert stored[run.run_id].epoch == 2
    assert not invariants.journal_faults(stored, [("a", "b"), ("b", "c")])
    assert not invariants.call_faults(stored, lab_process.notes())


async def test_runs_end_though_servers_are_killed_while_they_are_parked_and_woken(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    servers = [await start_server(BATON_PARK_SECONDS="0.2") for _ in range(2)]
    first, second = (connect(server) for server in servers)
    await first.register("lab", lab_process.address)
    submitter = Submitter(first, contract)
    definition = waiting(contract, "6s", ("b", "c"))
    definition["input_type"] = contract.type("Task")
    await asyncio.gather(*(submitter.submit(number, definition) for number in range(60)))

    async def parked_or_all_over() -> bool:
        stored = await invariants.read_runs(servers[0].dsn)
        return bool(await wake_times(servers[0].dsn)) or all(run.ended for run in stored.values())

    for server in (servers[0], servers[1], servers[0]):
        await eventually(parked_or_all_over)
        await server.kill()
        await server.start()
    for run_id in submitter.acknowledged.values():
        assert (await second.end(run_id)).state == SUCCEEDED
    runs = await invariants.read_runs(servers[0].dsn)
    assert not invariants.journal_faults(runs, [("a", "b"), ("b", "c")])
    assert not invariants.submission_faults(runs, submitter.acknowledged)
    assert {run.epoch for run in runs.values()} - {1}, "no run was parked"
    assert not invariants.call_faults(runs, lab_process.notes())


async def test_runs_at_work_and_in_queues_stay_in_memory(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.2")
    baton = connect(server)
    await baton.register("busy", lab_process.address, max_in_flight=1)
    request = {"conduct": {"literal": {"hang": True}}}
    step = {"id": "a", "method": contract.method("Lab/Do"), "request": request}
    busy = [(await baton.submit({"steps": [step], "run_timeout": "7200s"})).run_id for _ in range(2)]
    await baton.waiting(busy[1], "a", run_pb2.WAIT_KIND_LIMIT)
    # One that is parked meanwhile shows that all were looked at.
    other = LabWorker(new_lab())
    await other.start()
    await baton.register("idle", other.address)
    witness = await baton.submit(waiting(other.contract, "3600s"))
    assert (await all_parked(server.dsn, [witness.run_id])).keys() == {witness.run_id}
    await other.stop()


@pytest.mark.parametrize("transport", ["unary"], indirect=True)
async def test_a_parked_child_does_nothing_more_though_its_replica_dies_as_the_parent_is_cancelled(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.5", BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register("lab", lab.address)
    nap = {"id": "nap", "sleep": {"duration": {"literal": "8s"}}}
    await baton.apply(
        {"name": "napping", "steps": [nap, {"id": "do", "method": contract.method("Lab/Do"), "after": ["nap"]}]}
    )
    run = await baton.submit({"steps": [{"id": "sub", "run_workflow": {"workflow": "napping"}}]})

    async def begun() -> str:
        return step_of(await baton.get(run.run_id), "sub").child_run_id

    child_id = await eventually(begun)
    await all_parked(server.dsn, [run.run_id, child_id])
    await baton.cancel(run.run_id)
    await server.kill()
    await server.start()
    child = await baton.end(child_id)
    assert (child.state, step_of(child, "do").attempts) == (CANCELLED, [])
    assert lab.notes == []
