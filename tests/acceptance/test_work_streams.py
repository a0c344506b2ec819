"""Work on streams: taken up again where a stream is lost, given anew where its worker is; and workers that dial in."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2, worker_pb2, worker_service_pb2
from baton.worker.v1 import work_pb2, work_pb2_grpc

from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.proxies import CutProxy
from tests.acceptance.test_kills import Submitter, all_ended, diamond, diamond_output, require_sound
from tests.acceptance.wire import Baton, eventually, submission

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED

pytestmark = pytest.mark.parametrize("transport", ["stream"], indirect=True)


def one_step(contract: Contract, conduct: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    request = {"text": {"literal": "x"}} | ({"conduct": {"literal": conduct}} if conduct else {})
    return {"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request, **more}]}


@pytest.fixture
async def proxy(lab: LabWorker) -> AsyncIterator[tuple[CutProxy, str]]:
    """A proxy before the lab, and its address."""
    made = CutProxy(lab.address)
    yield made, await made.start()
    await made.stop()


@pytest.fixture
async def dialling(contract: Contract, transport: str) -> AsyncIterator[LabWorker]:
    """A lab that listens nowhere; the test attaches it."""
    worker = LabWorker(contract)
    yield worker
    await worker.stop()


async def endpoint(baton: Baton, worker: str, health: int = worker_pb2.ENDPOINT_HEALTH_SERVING) -> worker_pb2.Endpoint:
    """Waits until the one endpoint of a worker has a health."""

    async def found() -> worker_pb2.Endpoint | None:
        endpoints = (await baton.worker(worker)).endpoints
        return next((one for one in endpoints if one.health == health), None)

    one = await eventually(found)
    assert one is not None
    return one


async def test_a_worker_with_a_stream_is_called_by_it(baton: Baton, registered: LabWorker) -> None:
    name = name_of(registered)
    assert (await endpoint(baton, name)).transport == worker_pb2.ENDPOINT_TRANSPORT_STREAM
    run = await baton.run(one_step(registered.contract))
    assert run.state == SUCCEEDED
    assert registered.work is not None
    assert len(registered.work.sessions) == 1
    assert [method.method for service in (await baton.worker(name)).services for method in service.methods] == [
        "Do",
        "Read",
        "Do",
    ]


async def test_an_address_with_two_names_is_given_no_more_than_its_credit(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    baton = connect(await start_server())
    assert lab.work is not None
    lab.work.sessions.resize(5)
    await baton.register("one", lab.address)
    await baton.register("two", lab.address)

    async def shared() -> bool:
        return sorted([(await endpoint(baton, name)).credit for name in ("one", "two")]) == [2, 3]

    await eventually(shared)
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="two"))

    async def whole() -> bool:
        return (await endpoint(baton, "one")).credit == 5

    await eventually(whole)


async def test_what_a_lost_stream_carried_is_taken_up_again(
    baton: Baton, lab: LabWorker, proxy: tuple[CutProxy, str]
) -> None:
    network, address = proxy
    await baton.register("cut", address)
    await endpoint(baton, "cut")
    run = await baton.submit(one_step(lab.contract, {"gate": "open"}))
    await lab.arrived()
    before = network.connections
    network.cut()

    async def connected_again() -> bool:
        return network.connections > before and lab.work is not None and bool(lab.work.sessions.streams)

    await eventually(connected_again)
    lab.gates["open"].set()
    run = await baton.end(run.run_id)
    assert run.state == SUCCEEDED
    assert [(attempt.attempt, attempt.deliveries) for attempt in run.steps[0].attempts] == [(1, 1)]
    assert len(lab.arrivals()) == 1


async def test_an_outcome_that_the_lost_stream_did_not_bring_comes_with_the_next(
    baton: Baton, lab: LabWorker, proxy: tuple[CutProxy, str]
) -> None:
    network, address = proxy
    await baton.register("cut", address)
    await endpoint(baton, "cut")
    run = await baton.submit(one_step(lab.contract, {"gate": "open"}))
    await lab.arrived()
    network.down = True
    network.cut()
    lab.gates["open"].set()
    await lab.noted(lambda notes: any(note.what == "answered" for note in notes))
    network.down = False
    run = await baton.end(run.run_id)
    assert (run.state, run.steps[0].attempts[0].deliveries) == (SUCCEEDED, 1)
    assert len(lab.arrivals()) == 1


async def test_what_a_dead_worker_held_is_given_to_another_with_the_same_key(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess, spare_lab: LabWorker
) -> None:
    baton = connect(await start_server())
    await baton.register("lab", lab_process.address)
    run = await baton.submit(one_step(contract, {"hang": True}))

    async def arrived() -> bool:
        return any(note.what == "arrived" for note in lab_process.notes())

    await eventually(arrived)
    await baton.register("lab", spare_lab.address)
    await lab_process.kill()
    again = await spare_lab.arrived()
    (first,) = [note for note in lab_process.notes() if note.what == "arrived"]
    assert (again.attempt, again.delivery, again.key) == (1, 2, first.key)
    run = await baton.cancel(run.run_id)
    await spare_lab.noted(lambda notes: any(note.what == "cancelled" for note in notes))


async def test_a_run_goes_on_though_its_worker_is_killed_again_and_again(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    submitter = Submitter(baton, contract)
    retry = {"max_attempts": 50, "initial_backoff": "0.05s", "backoff_multiplier": 1.0}
    definition = diamond(contract, "0.05s")
    for step in definition["steps"]:
        step["retry"] = retry
    await asyncio.gather(*(submitter.submit(number, definition) for number in range(40)))
    for _ in range(2):
        notes = len(lab_process.notes())

        async def works_again(before: int = notes) -> bool:
            return len(lab_process.notes()) > before + 20

        await eventually(works_again)
        await lab_process.kill()
        await lab_process.start()
    runs = await all_ended(baton, submitter.acknowledged)
    for request_id, run in zip(submitter.acknowledged, runs, strict=True):
        assert run.state == SUCCEEDED, run.failure
        assert contract.unpack("Result", run.output).number == diamond_output(int(request_id.partition("-")[2]))
    await require_sound(server.dsn, submitter.acknowledged, lab_process)


async def test_the_largest_answer_that_a_worker_sends_fails_its_step_and_leaves_the_stream(
    baton: Baton, registered: LabWorker
) -> None:
    # Beside its padding the answer has a text, a number, an attempt, and the padding's own head.
    largest = {"size": 4 * 1024 * 1024 - len(b"\n\x01x\x10\x01\x1a\xf0\xff\xff\x01\x20\x01")}
    run = await baton.run(one_step(registered.contract, largest, retry={"max_attempts": 1}))
    assert run.failure.reason == "PAYLOAD_TOO_LARGE"
    assert run.steps[0].failure.message.startswith("the output has 4194304 bytes")


async def test_progress_is_seen_while_a_step_runs(baton: Baton, registered: LabWorker) -> None:
    await endpoint(baton, name_of(registered))  # Before its stream is open the worker is called without it.
    run = await baton.submit(one_step(registered.contract, {"gate": "open"}))
    await registered.arrived()
    registered.tell_progress(42.0, "reading page 3")

    async def told() -> run_pb2.StepProgress | None:
        step = (await baton.get(run.run_id)).steps[0]
        return step.progress if step.HasField("progress") else None

    progress = await eventually(told)
    assert progress is not None
    assert (progress.percent, progress.message) == (42.0, "reading page 3")
    assert (await baton.steps(run.run_id))[0].progress == progress
    registered.gates["open"].set()
    assert not (await baton.end(run.run_id)).steps[0].HasField("progress")


# --- workers that dial in


async def test_a_worker_that_listens_nowhere_is_called_and_takes_its_leave(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    server = await start_server()
    baton = connect(server)
    await dialling.attach(server.address)
    attached = await endpoint(baton, "lab")
    assert (attached.transport, attached.address) == (worker_pb2.ENDPOINT_TRANSPORT_ATTACHED, dialling.address)
    run = await baton.run(one_step(contract))
    assert run.state == SUCCEEDED
    assert run.steps[0].attempts[0].address == dialling.address
    # A workflow that is applied knows its contract, whether or not a worker is there.
    await baton.apply({"name": "one", **one_step(contract)})
    await dialling.detach()
    run = (await baton.runs.SubmitRun(submission("one"), timeout=20)).run
    await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_NO_WORKER)
    await dialling.attach(server.address)
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_an_attached_worker_serves_every_replica_within_its_credit(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    near, far = await start_server(), await start_server()
    await dialling.attach(near.address, slots=4)
    replicas = [connect(near), connect(far)]
    for baton in replicas:
        await endpoint(baton, "lab")

    async def shared() -> bool:
        credits = [(await endpoint(baton, "lab")).credit for baton in replicas]
        return credits == [2, 2]

    await eventually(shared)
    runs = await asyncio.gather(
        *(baton.run(one_step(contract, {"delay": "0.02s"})) for baton in replicas for _ in range(20))
    )
    assert {run.state for run in runs} == {SUCCEEDED}
    assert {attempt.deliveries for run in runs for attempt in run.steps[0].attempts} == {1}
    assert len(dialling.arrivals()) == 40
    assert dialling.most_in_flight <= 4


async def test_what_other_replicas_give_an_attached_worker_waits_while_its_connection_is_lost(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    near, far = await start_server(), await start_server()
    network = CutProxy(near.address)
    await dialling.attach(await network.start())
    replicas = [connect(near), connect(far)]
    for baton in replicas:
        await endpoint(baton, "lab")
    network.down = True
    network.cut()
    await endpoint(replicas[0], "lab", worker_pb2.ENDPOINT_HEALTH_NOT_SERVING)
    runs = [await replicas[1].submit(one_step(contract)) for _ in range(10)]
    network.down = False
    ended = [await replicas[1].end(run.run_id) for run in runs]
    assert {run.state for run in ended} == {SUCCEEDED}
    assert {(one.attempt, one.deliveries) for run in ended for one in run.steps[0].attempts} == {(1, 1)}
    await network.stop()


async def test_workers_of_two_names_whose_processes_have_the_same_are_two(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    server = await start_server()
    baton = connect(server)
    await dialling.attach(server.address)
    assert dialling.work is not None
    (stream,) = dialling.work.sessions.streams
    taken = work_pb2.WorkerOpening(
        worker="other", instance_id=dialling.work.sessions.instance_id, contract=contract.files
    )
    stranger: Any = work_pb2_grpc.AttachServiceStub(baton.channel).Attach()
    await stranger.read()
    await stranger.write(work_pb2.WorkerFrame(opening=taken))
    await stranger.read()
    run = await baton.run(one_step(contract))
    assert run.state == SUCCEEDED
    assert run.steps[0].attempts[0].address == dialling.address
    assert len(dialling.arrivals()) == 1
    assert dialling.work.sessions.streams == [stream]
    stranger.cancel()


async def test_an_attached_worker_moves_to_another_replica_when_its_own_is_killed(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    dying, heir = await start_server(), await start_server()
    await dialling.attach(f"ipv4:{dying.address},{heir.address}")
    baton = connect(heir)
    await endpoint(baton, "lab")
    run = await baton.submit(one_step(contract, {"gate": "open"}))
    first = await dialling.arrived()
    await dying.kill()
    again = await dialling.arrived(2)
    assert (again.delivery, again.attempt, again.key) == (2, 1, first.key)
    dialling.gates["open"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert (await endpoint(baton, "lab")).transport == worker_pb2.ENDPOINT_TRANSPORT_ATTACHED


async def test_an_attached_worker_that_went_with_its_replica_is_forgotten(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    settings = {"BATON_ATTACHED_STALE_SECONDS": "1"}
    dying, heir = await start_server(**settings), await start_server(**settings)
    await dialling.attach(dying.address)
    baton = connect(heir)
    await endpoint(baton, "lab")
    await dying.kill()
    await dialling.stop()
    run = await baton.submit(one_step(contract))

    async def forgotten() -> bool:
        try:
            await baton.worker("lab")
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND
        return False

    await eventually(forgotten)
    await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_NO_WORKER)


async def test_an_attached_worker_follows_a_replica_that_drains(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    leaving, staying = await start_server(), await start_server()
    await dialling.attach(f"ipv4:{leaving.address},{staying.address}")
    baton = connect(staying)
    await endpoint(baton, "lab")
    leaving.send(signal.SIGTERM)
    assert await leaving.wait() == 0
    run = await baton.run(one_step(contract))
    assert run.state == SUCCEEDED


async def test_what_is_submitted_between_two_replicas_of_an_attached_worker_waits_for_it(
    start_server: StartServer, connect: Connect, contract: Contract, dialling: LabWorker
) -> None:
    leaving = await start_server()
    await dialling.attach(leaving.address)
    leaving.send(signal.SIGTERM)
    assert await leaving.wait() == 0
    baton = connect(await start_server())
    run = await baton.submit(one_step(contract))
    await leaving.start()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
