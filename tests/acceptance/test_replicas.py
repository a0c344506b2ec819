"""Two servers on one database, servers that are paused beyond their lease, and servers that stop in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from baton.v1 import run_pb2, worker_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import Submitter, all_ended, diamond, diamond_output, require_sound
from tests.acceptance.test_watches import chain, follow
from tests.acceptance.wire import Baton, eventually

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


async def start_runs(baton: Baton, contract: Contract, lab: LabProcess, count: int, delay: str) -> Submitter:
    """Submits diamonds whose calls take a while, and waits until some calls are under way."""
    await baton.register("lab", lab.address)
    submitter = Submitter(baton, contract)
    await asyncio.gather(*(submitter.submit(number, diamond(contract, delay)) for number in range(count)))

    async def calling() -> bool:
        return any(note.step == "b" for note in lab.notes())

    await eventually(calling)
    return submitter


async def require_results(baton: Baton, contract: Contract, submitter: Submitter) -> None:
    runs = await all_ended(baton, submitter.acknowledged)
    for request_id, run in zip(submitter.acknowledged, runs, strict=True):
        assert run.state == SUCCEEDED, run.failure
        number = int(request_id.partition("-")[2])
        assert contract.unpack("Result", run.output).number == diamond_output(number)


async def test_the_runs_of_a_killed_server_are_adopted_by_the_other(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    dying, heir = await start_server(), await start_server()
    submitter = await start_runs(connect(dying), contract, lab_process, 30, "0.15s")
    await dying.kill()
    await require_results(connect(heir), contract, submitter)
    runs = await require_sound(heir.dsn, submitter.acknowledged, lab_process)
    assert {run.epoch for run in runs.values()} == {2}


async def test_a_run_is_read_watched_and_waited_for_at_a_server_that_does_not_drive_it(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    owner, other = connect(await start_server()), connect(await start_server())
    await owner.register("lab", lab_process.address)

    async def known() -> bool:
        listed = await other.workers.ListWorkers(worker_service_pb2.ListWorkersRequest())
        return [worker.name for worker in listed.workers] == ["lab"]

    await eventually(known)
    run = await owner.submit(chain(contract, 10, {"delay": "0.05s"}), request_id="elsewhere")
    seen: list[object] = []
    watching = asyncio.ensure_future(follow(other, run.run_id, seen, []))
    assert (await other.get(run.run_id)).state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING)
    ended = await other.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert ended == await owner.get(run.run_id)
    await watching
    journal = await owner.events(run.run_id)
    assert seen == journal[seen[0].sequence - 1 :]  # type: ignore[attr-defined]
    assert await other.events(run.run_id) == journal
    again = await other.submit(chain(contract, 10, {"delay": "0.05s"}), request_id="elsewhere")
    assert again.run_id == run.run_id


async def test_a_server_that_was_paused_beyond_its_lease_writes_nothing_stale(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    paused, heir = await start_server(), await start_server()
    submitter = await start_runs(connect(paused), contract, lab_process, 30, "0.3s")
    paused.send(signal.SIGSTOP)
    try:
        await require_results(connect(heir), contract, submitter)
    finally:
        paused.send(signal.SIGCONT)
    # What it held is gone to the other; it takes work again under a new lease.
    back = connect(paused)
    number = await _submit_more(back, contract, submitter)
    await require_sound(heir.dsn, submitter.acknowledged, lab_process, paused=True)
    runs = await invariants.read_runs(heir.dsn)
    assert runs[submitter.acknowledged[f"request-{number}"]].epoch == 1


async def _submit_more(baton: Baton, contract: Contract, submitter: Submitter) -> int:
    number = 1_000
    mine = Submitter(baton, contract)
    await mine.submit(number, diamond(contract))
    submitter.acknowledged |= mine.acknowledged
    assert (await baton.end(mine.acknowledged[f"request-{number}"])).state == SUCCEEDED
    return number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_stops_in_good_order_loses_nothing(
    start_server: StartServer,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
    number: signal.Signals,
) -> None:
    server = await start_server()
    baton = connect(server)
    submitter = await start_runs(baton, contract, lab_process, 30, "0.15s")
    server.send(number)
    assert await server.wait() == 0, server.log()[-2000:]
    arrived = {(note.run, note.step) for note in lab_process.notes() if note.what == "arrived"}
    answered = {(note.run, note.step) for note in lab_process.notes() if note.what == "answered"}
    assert arrived == answered, "calls were cut off although they would have ended soon"
    runs = await invariants.read_runs(server.dsn)
    recorded = {
        (run.run_id, event.step)
        for run in runs.values()
        for event in run.events
        if invariants.kind(event) == "step_succeeded"
    }
    assert recorded == answered, "answers were not recorded"
    await server.start()
    await require_results(baton, contract, submitter)
    await require_sound(server.dsn, submitter.acknowledged, lab_process)
    assert {note.delivery for note in lab_process.notes()} == {1}


async def test_calls_under_way_when_a_server_dies_are_made_again_or_not_as_the_step_says(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)

    def step(name: str, method: str, **more: object) -> dict[str, object]:
        request = {"text": {"literal": name}, "conduct": {"literal": {"delay": "0.8s"}}}
        return {"id": name, "method": contract.method(method), "request": request, "on_failure": [{}], **more}

    once = {"delivery": "DELIVERY_AT_MOST_ONCE"}
    steps = [step("once", "Lab/Do", **once), step("often", "Lab/Do"), step("reading", "Lab/Read", **once)]
    run = await baton.submit({"steps": steps})

    async def called() -> bool:
        return len(lab_process.notes()) == 3

    await eventually(called)
    await server.kill()
    await server.start()
    run = await baton.end(run.run_id)
    states = {each.step: each.state for each in run.steps}
    failed, succeeded = run_pb2.STEP_STATE_FAILED, run_pb2.STEP_STATE_SUCCEEDED
    assert states == {"once": failed, "often": succeeded, "reading": succeeded}
    assert run.steps[0].failure.reason == "OUTCOME_UNKNOWN"
    deliveries = sorted((note.text, note.delivery) for note in lab_process.notes() if note.what == "arrived")
    assert deliveries == [("often", 1), ("often", 2), ("once", 1), ("reading", 1), ("reading", 2)]
    assert not invariants.call_faults(await invariants.read_runs(server.dsn), lab_process.notes())


async def test_a_call_that_kills_every_server_is_not_sent_for_ever(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    request = {"conduct": {"literal": {"hang": True}}}
    run = await baton.submit({"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request}]})
    for delivery in (1, 2, 3):

        async def called(delivery: int = delivery) -> bool:
            return len([note for note in lab_process.notes() if note.what == "arrived"]) == delivery

        await eventually(called)
        await server.kill()
        await server.start()
    run = await baton.end(run.run_id)
    assert (run.state, run.failure.reason) == (run_pb2.RUN_STATE_FAILED, "DELIVERY_LIMIT")
    assert run.steps[0].attempts[0].deliveries == 3
