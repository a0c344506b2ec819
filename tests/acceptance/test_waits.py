"""Why is it waiting? Every step that waits says so, and goes on when the cause is gone. Circuits open, probe, close."""

from __future__ import annotations

import itertools
from typing import Any

from baton.v1 import run_pb2, worker_pb2, worker_service_pb2, workflow_service_pb2

from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import micros, one_step, quick
from tests.acceptance.wire import Baton, eventually, step_of, submission, workflow

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
FAIL_MAX = 3
"""Failures in a row that open a circuit of the shared server."""


def patient(lab: LabWorker, conduct: dict[str, Any] | None = None, **step: Any) -> dict[str, Any]:
    """A step that is tried again for as long as it takes."""
    return one_step(lab, conduct, retry=quick(1000, backoff_multiplier=1.0), **step)


async def submit_without_worker(baton: Baton, lab: LabWorker) -> str:
    """Applies a workflow, deletes its worker and submits; returns the id of the run."""
    definition = one_step(lab) | {"name": name_of(lab)}
    await baton.workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition)))
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker=name_of(lab)))
    answer = await baton.runs.SubmitRun(submission(name_of(lab)))
    return str(answer.run.run_id)


async def open_circuit(baton: Baton, lab: LabWorker, run_id: str) -> run_pb2.WaitReason:
    """Waits until the circuit of a dead worker is open."""
    reason = await baton.waiting(run_id, "a", run_pb2.WAIT_KIND_CIRCUIT_OPEN)
    assert lab.address in reason.message or "half-open" in reason.message
    return reason


async def test_a_step_without_a_worker_waits_and_starts_when_one_registers(baton: Baton, registered: LabWorker) -> None:
    run_id = await submit_without_worker(baton, registered)
    reason = await baton.waiting(run_id, "a", run_pb2.WAIT_KIND_NO_WORKER)
    assert registered.contract.method("Lab/Do") in reason.message
    await baton.register("another", registered.address)
    assert (await baton.end(run_id)).state == SUCCEEDED
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="another"))


async def test_a_worker_that_does_not_serve_is_not_called(baton: Baton, registered: LabWorker) -> None:
    await registered.say_serving(False)

    async def is_heard() -> bool:
        endpoints = (await baton.worker(name_of(registered))).endpoints
        return [one.health for one in endpoints] == [worker_pb2.ENDPOINT_HEALTH_NOT_SERVING]

    await eventually(is_heard)
    run = await baton.submit(one_step(registered))
    reason = await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_WORKER_NOT_SERVING)
    assert name_of(registered) in reason.message
    assert not registered.arrivals()
    await registered.say_serving(True)
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_drained_worker_ends_its_calls_and_gets_no_new_ones(baton: Baton, registered: LabWorker) -> None:
    going = await baton.submit(one_step(registered, {"gate": "open"}))
    await registered.arrived()
    drain = worker_service_pb2.DrainWorkerRequest(worker=name_of(registered))
    drained = (await baton.workers.DrainWorker(drain)).worker
    assert [endpoint.state for endpoint in drained.endpoints] == [worker_pb2.ENDPOINT_STATE_DRAINING]
    waiting = await baton.submit(one_step(registered))
    await baton.waiting(waiting.run_id, "a", run_pb2.WAIT_KIND_WORKER_NOT_SERVING)
    registered.gates["open"].set()
    assert (await baton.end(going.run_id)).state == SUCCEEDED
    assert len(registered.arrivals()) == 1
    await baton.register(name_of(registered), registered.address)
    assert (await baton.end(waiting.run_id)).state == SUCCEEDED


async def test_a_full_worker_gets_no_more_than_it_takes(baton: Baton, registered: LabWorker) -> None:
    await baton.register(name_of(registered), registered.address, max_in_flight=2)
    runs = [await baton.submit(one_step(registered, {"gate": "open"})) for _ in range(5)]
    await registered.arrived(2)
    reason = await baton.waiting(runs[-1].run_id, "a", run_pb2.WAIT_KIND_LIMIT)
    assert "2" in reason.message
    assert (await baton.worker(name_of(registered))).endpoints[0].in_flight == 2
    registered.gates["open"].set()
    for run in runs:
        assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert registered.most_in_flight == 2


async def test_a_blocked_step_names_what_it_waits_for(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    gate = {"conduct": {"literal": {"gate": "open"}}}
    steps = [{"id": "a", "method": do, "request": gate}, {"id": "b", "method": do, "after": ["a"]}]
    run = await baton.submit({"steps": steps})
    reason = await baton.waiting(run.run_id, "b", run_pb2.WAIT_KIND_STEPS)
    assert list(reason.steps) == ["a"]
    registered.gates["open"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_step_between_attempts_says_until_when(baton: Baton, registered: LabWorker) -> None:
    policy = {"initial_backoff": "60s", "max_backoff": "60s", "jitter": 0.0}
    run = await baton.submit(one_step(registered, {"failures": 1}, retry=policy))
    reason = await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_BACKOFF)
    attempt = (await baton.get(run.run_id)).steps[0].attempts[0]
    assert micros(reason.until_time) - micros(attempt.end_time) == 60_000_000
    await baton.cancel(run.run_id)


async def test_a_dead_worker_is_left_alone_until_it_is_back(baton: Baton, registered: LabWorker) -> None:
    await registered.stop()
    runs = [await baton.submit(patient(registered)) for _ in range(20)]
    for run in runs:
        await open_circuit(baton, registered, run.run_id)

    async def look() -> run_pb2.WaitReason | None:
        reason = (await baton.get(runs[0].run_id)).steps[0].wait_reason
        return reason if reason.HasField("until_time") and reason.kind == run_pb2.WAIT_KIND_CIRCUIT_OPEN else None

    reason = await eventually(look)
    assert reason is not None
    endpoint = (await baton.worker(name_of(registered))).endpoints[0]
    assert endpoint.circuit in (worker_pb2.CIRCUIT_STATE_OPEN, worker_pb2.CIRCUIT_STATE_HALF_OPEN)

    async def attempts() -> list[run_pb2.Attempt]:
        return [attempt for run in runs for attempt in (await baton.get(run.run_id)).steps[0].attempts]

    before = len(await attempts())

    async def probed() -> bool:
        return len(await attempts()) >= before + 2

    await eventually(probed, 30)
    # All twenty went at once before the circuit opened; from then on there is one trial at a time, one a second.
    trials = sorted((await attempts()), key=lambda attempt: micros(attempt.start_time))[20 + FAIL_MAX :]
    starts = [micros(attempt.start_time) for attempt in trials]
    assert all(two - one > 900_000 for one, two in itertools.pairwise(starts)), starts
    await registered.start(registered.port)
    for run in runs:
        assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert len(registered.arrivals()) == 20
    assert (await baton.worker(name_of(registered))).endpoints[0].circuit == worker_pb2.CIRCUIT_STATE_CLOSED


async def test_an_open_circuit_leads_to_the_fallback(baton: Baton, registered: LabWorker, spare_lab: LabWorker) -> None:
    await baton.register(f"{name_of(registered)}-spare", spare_lab.address, services=[spare_service(registered)])
    await baton.register(name_of(registered), registered.address, services=[lab_service(registered)])
    await registered.stop()
    dying = [await baton.submit(patient(registered)) for _ in range(5)]
    for run in dying:
        await open_circuit(baton, registered, run.run_id)
    fallback = {"method": registered.contract.method("Spare/Do"), "reasons": ["CIRCUIT_OPEN", "CONNECT_FAILED"]}
    runs = [await baton.run(patient(registered, fallback=[fallback])) for _ in range(5)]
    assert all(run.state == SUCCEEDED and step_of(run, "a").target == 1 for run in runs)
    assert len(spare_lab.arrivals()) == 5
    straight = [run for run in runs if len(run.steps[0].attempts) == 1]
    assert straight, "every run burnt an attempt on the dead worker"
    for run in dying:
        await baton.cancel(run.run_id)


async def test_a_busy_worker_beside_a_dead_one_is_waited_for(
    baton: Baton, registered: LabWorker, spare_lab: LabWorker
) -> None:
    name = name_of(registered)
    dead, alive = registered, spare_lab
    await baton.register(name, alive.address, max_in_flight=1)
    await dead.stop()
    fallback = {"method": registered.contract.method("Spare/Do")}
    held = await baton.submit(patient(alive, {"gate": "open"}))
    await alive.arrived()
    for_dead = await baton.submit(patient(dead))

    async def opened() -> bool:
        worker = await baton.worker(name)
        return any(each.circuit != worker_pb2.CIRCUIT_STATE_CLOSED for each in worker.endpoints)

    await eventually(opened)
    run = await baton.submit(patient(dead, fallback=[fallback]))
    await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_LIMIT)
    alive.gates["open"].set()
    for run_id in (held.run_id, for_dead.run_id, run.run_id):
        assert (await baton.end(run_id)).state == SUCCEEDED
    assert {note.method.rpartition(".")[2] for note in alive.arrivals()} == {"Lab/Do"}


async def test_a_dead_address_costs_nothing_where_another_is_alive(
    baton: Baton, registered: LabWorker, spare_lab: LabWorker
) -> None:
    await baton.register(name_of(registered), spare_lab.address)
    await registered.stop()

    async def noticed() -> bool:
        health = [each.health for each in (await baton.worker(name_of(registered))).endpoints]
        return worker_pb2.ENDPOINT_HEALTH_UNREACHABLE in health

    await eventually(noticed)
    for _ in range(5):
        run = await baton.run(one_step(registered))
        assert (run.state, len(run.steps[0].attempts)) == (SUCCEEDED, 1)


async def test_failed_calls_are_tried_again_as_the_retry_budget_allows(
    lab: LabWorker, start_server: StartServer
) -> None:
    # One retry that fails for each four other calls, and one that is there from the beginning.
    server = await start_server(BATON_RETRY_BUDGET_RATIO="0.25", BATON_RETRY_BUDGET_PER_SECOND="0.001")
    baton = Baton(server.address)
    await baton.register(name_of(lab), lab.address)
    busy = {"failures": 1, "reason": "BUSY"}  # A worker's own reason, which does not count against its circuit.
    hopeless = await baton.run(one_step(lab, busy | {"failures": 9}, retry=quick(2)))
    assert (hopeless.failure.reason, len(hopeless.steps[0].attempts)) == ("BUSY", 2)

    waiting, cancelled = await baton.submit(patient(lab, busy)), await baton.submit(patient(lab, busy))
    for run in (waiting, cancelled):
        reason = await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_RETRY_BUDGET)
        assert f"worker {name_of(lab)} " in reason.message
    impatient = await baton.run(patient(lab, busy, queue_timeout="0.2s"))
    assert (impatient.failure.reason, len(impatient.steps[0].attempts)) == ("QUEUE_TIMEOUT", 1)
    await baton.cancel(cancelled.run_id)
    assert (await baton.end(cancelled.run_id)).state == run_pb2.RUN_STATE_CANCELLED
    assert (await baton.get(waiting.run_id)).steps[0].wait_reason.kind == run_pb2.WAIT_KIND_RETRY_BUDGET

    assert (await baton.run(one_step(lab))).state == SUCCEEDED
    run = await baton.end(waiting.run_id)
    assert run.state == SUCCEEDED
    assert [attempt.waited_for for attempt in run.steps[0].attempts] == [0, run_pb2.QUEUE_REASON_RETRY_BUDGET]
    await baton.close()


def lab_service(lab: LabWorker) -> str:
    return lab.contract.type("Lab")


def spare_service(lab: LabWorker) -> str:
    return lab.contract.type("Spare")
