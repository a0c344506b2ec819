"""One request_id makes one run: in parallel, after the end, with another body, and after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from baton.v1 import run_pb2

from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_attempts import one_step
from tests.acceptance.wire import Baton, refused, submission


async def test_fifty_at_once_make_one_run(baton: Baton, registered: LabWorker) -> None:
    request_id = registered.contract.package
    requests = [submission(one_step(registered), request_id=request_id) for _ in range(50)]
    answers = await asyncio.gather(*(baton.runs.SubmitRun(request) for request in requests))
    assert len({answer.run.run_id for answer in answers}) == 1
    assert sum(not answer.existing for answer in answers) == 1
    assert (await baton.end(answers[0].run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    assert len(registered.arrivals()) == 1
    after = await baton.runs.SubmitRun(requests[0])
    assert (after.run.run_id, after.existing) == (answers[0].run.run_id, True)


async def test_of_different_bodies_at_once_one_wins_and_the_others_are_refused(
    baton: Baton, registered: LabWorker
) -> None:
    request_id = registered.contract.package
    requests = [
        submission(one_step(registered), request_id=request_id, attributes={"number": str(number % 5)})
        for number in range(25)
    ]
    calls = (baton.runs.SubmitRun(request) for request in requests)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    runs = [
        (answer.run.run_id, answer.run.attributes["number"]) for answer in answers if not isinstance(answer, Exception)
    ]
    assert len(set(runs)) == 1
    assert len(runs) == 5
    refusal = await refused(
        baton.runs.SubmitRun(next(each for each in requests if each.attributes["number"] != runs[0][1]))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert refusal.text.startswith("request_id:")


async def test_a_duplicate_that_waits_waits_for_the_same_run(baton: Baton, registered: LabWorker) -> None:
    request = submission(one_step(registered, {"gate": "open"}), request_id=registered.contract.package)
    first = await baton.runs.SubmitRun(request)
    request.wait_timeout.FromSeconds(20)
    waiting = [asyncio.ensure_future(baton.runs.SubmitRun(request)) for _ in range(3)]
    await registered.arrived()
    assert not any(call.done() for call in waiting)
    registered.gates["open"].set()
    for answer in await asyncio.gather(*waiting):
        assert (answer.run.run_id, answer.existing) == (first.run.run_id, True)
        assert answer.run.state == run_pb2.RUN_STATE_SUCCEEDED
        assert answer.run.HasField("output")


async def test_a_wait_that_is_over_answers_with_the_run_as_it_is(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(one_step(registered, {"gate": "open"}), wait_seconds=0.3)
    assert run.state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING)
    registered.gates["open"].set()
    assert (await baton.end(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_request_id_is_known_after_a_crash(
    start_server: StartServer,
    connect: Callable[[ServerProcess], Baton],
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    definition = {"steps": [{"id": "a", "method": contract.method("Lab/Do")}]}
    request = submission(definition, request_id="once")
    first = await baton.runs.SubmitRun(request)
    await server.kill()
    await server.start()
    again = await baton.runs.SubmitRun(request, wait_for_ready=True)
    assert (again.run.run_id, again.existing) == (first.run.run_id, True)
    request.workspace = "elsewhere"
    refusal = await refused(baton.runs.SubmitRun(request))
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert (await baton.end(first.run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
