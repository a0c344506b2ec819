"""Workers that register with another contract: what it breaks is told and refused; what it does not break goes on."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from baton.v1 import contract_report_pb2, error_reason_pb2, run_pb2, worker_service_pb2, workflow_service_pb2
from google.protobuf import descriptor_pb2
from grpc_status import rpc_status

from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, submission, workflow

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
GATE = {"gate": "hold"}

pytestmark = pytest.mark.parametrize("transport", ["stream"], indirect=True)


def changed(contract: Contract, change: Callable[[dict[str, Any], Any], None]) -> Contract:
    """The contract as `change` leaves it, which is given its messages by name and its services."""
    files = descriptor_pb2.FileDescriptorSet()
    files.CopyFrom(contract.files)
    file = next(each for each in files.file if each.package == contract.package)
    change({message.name: message for message in file.message_type}, file.service)
    return Contract(contract.package, files)


def field(message: Any, name: str) -> Any:
    return next(each for each in message.field if each.name == name)


def number_is_text(messages: dict[str, Any], _: Any) -> None:
    """`Result.number` is a text."""
    field(messages["Result"], "number").type = STRING


def unused_fields_differ(messages: dict[str, Any], _: Any) -> None:
    """Fields that no workflow here uses have another number and another type, so that no merge is possible."""
    field(messages["Result"], "padding").number = 30
    field(messages["Conduct"], "reason").type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def spare_is_gone(_: dict[str, Any], services: Any) -> None:
    del services[1]


def held(lab: LabWorker, name: str = "", output: str = "number", text: str = "held") -> dict[str, Any]:
    """A workflow whose first step waits for a gate, and whose second is given a field of its output."""
    method = lab.contract.method("Lab/Do")
    request = {"text": {"literal": text}, "conduct": {"literal": GATE}}
    given = {"text": {"path": "steps.first.output.text"}, "number": {"path": "steps.first.output.number"}}
    return {
        "name": name,
        "output_type": lab.contract.type("Result"),
        "steps": [
            {"id": "first", "method": method, "request": request},
            {"id": "second", "method": method, "request": {output: given[output]}},
        ],
        "output": {"text": {"path": "steps.second.output.text"}},
    }


async def apply(baton: Baton, definition: dict[str, Any]) -> str:
    request = workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition))
    return str((await baton.workflows.ApplyWorkflow(request)).revision.revision)


async def register(baton: Baton, name: str, address: str, **fields: Any) -> worker_service_pb2.RegisterWorkerResponse:
    request = worker_service_pb2.RegisterWorkerRequest(worker=name, address=address, **fields)
    answer: worker_service_pb2.RegisterWorkerResponse = await baton.workers.RegisterWorker(request, timeout=20)
    return answer


def report_of(error: grpc.aio.AioRpcError) -> contract_report_pb2.ContractReport:
    """The report in the details of a refusal."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    report = contract_report_pb2.ContractReport()
    assert any(detail.Unpack(report) for detail in status.details)
    return report


@pytest.fixture
async def another(lab: LabWorker) -> AsyncIterator[Callable[..., Any]]:
    """Starts labs with a changed contract, each at an address of its own unless at a given port."""
    labs: list[LabWorker] = []

    async def start(change: Callable[[dict[str, Any], Any], None], port: int = 0) -> LabWorker:
        labs.append(LabWorker(changed(lab.contract, change), stream=True))
        await labs[-1].start(port)
        return labs[-1]

    yield start
    for each in labs:
        await each.stop()


async def test_a_contract_that_breaks_is_refused_with_what_it_breaks(
    baton: Baton, registered: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    revision = await apply(baton, held(registered, name))
    unharmed = await apply(baton, held(registered, f"{name}-text", output="text"))
    run = (await baton.runs.SubmitRun(submission(name))).run
    await registered.arrived()
    renewed = await another(number_is_text)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await register(baton, name, renewed.address)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"the contract of {name} breaks {name} ({revision}, 1 in flight)" in (refused.value.details() or "")
    assert "force" in (refused.value.details() or "")
    report = report_of(refused.value)
    assert (report.broken_count, report.runs_in_flight, report.unchecked_count) == (1, 1, 0)
    (broken,) = report.broken
    assert (broken.workflow, broken.revision, broken.newest, broken.runs_in_flight) == (name, revision, True, 1)
    (violation,) = broken.violations
    assert violation.path == 'steps[1].request["number"]'
    assert violation.reason == error_reason_pb2.ERROR_REASON_TYPE_MISMATCH
    assert unharmed not in {each.revision for each in report.broken}

    told = await register(baton, name, renewed.address, validate_only=True)
    assert told.report == report
    assert [each.address for each in told.worker.endpoints] == [registered.address]

    forced = await register(baton, name, renewed.address, force=True)
    assert forced.report == report
    assert {each.address for each in forced.worker.endpoints} == {registered.address, renewed.address}
    # The worker has it now: nothing is asked a second time.
    assert not (await register(baton, name, renewed.address)).report.broken

    registered.gates["hold"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert not renewed.arrivals()


async def test_a_run_in_flight_is_served_by_a_contract_that_changed_elsewhere(
    baton: Baton, registered: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    definition = held(registered, name, output="text")
    before = await apply(baton, definition)
    run = (await baton.runs.SubmitRun(submission(name))).run
    await registered.arrived()
    renewed = await another(unused_fields_differ)
    answer = await register(baton, name, renewed.address)
    assert not answer.report.broken
    await baton.workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker=name, address=registered.address))
    registered.gates["hold"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.revision) == (SUCCEEDED, before)
    assert [note.text for note in renewed.arrivals()] == ["held"]
    renewed.gates["hold"].set()
    again = await baton.runs.SubmitRun(submission(name, wait_seconds=20))
    assert (again.run.state, again.run.revision) == (SUCCEEDED, before)
    assert await apply(baton, definition) != before


async def test_what_breaks_only_an_older_revision_is_told_for_its_runs(
    baton: Baton, registered: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    old = await apply(baton, held(registered, name))
    run = (await baton.runs.SubmitRun(submission(name))).run
    inline = await baton.submit(held(registered))
    await registered.arrived(2)
    await apply(baton, held(registered, name, output="text"))
    renewed = await another(number_is_text)
    report = (await register(baton, name, renewed.address, validate_only=True)).report
    assert [(each.workflow, each.revision, each.newest, each.runs_in_flight) for each in report.broken] == [
        ("", inline.revision, False, 1),
        (name, old, False, 1),
    ]
    registered.gates["hold"].set()
    for each in (run, inline):
        assert (await baton.end(each.run_id)).state == SUCCEEDED
    # Nothing of the old revision is in flight any more.
    assert not (await register(baton, name, renewed.address)).report.broken


async def test_what_another_worker_serves_does_not_break(
    baton: Baton, registered: LabWorker, spare_lab: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    await apply(baton, held(registered, name))
    renewed = await another(number_is_text)
    assert (await register(baton, name, renewed.address, validate_only=True)).report.broken
    await register(baton, f"{name}-other", spare_lab.address)
    assert not (await register(baton, name, renewed.address)).report.broken
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker=name, address=registered.address))
    spare_lab.gates["hold"].set()
    answer = await baton.runs.SubmitRun(submission(name, wait_seconds=20))
    assert answer.run.state == SUCCEEDED
    assert not renewed.arrivals()


async def test_a_service_that_is_gone_breaks_who_calls_it(
    baton: Baton, registered: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    definition = held(registered, name)
    definition["steps"][1]["fallback"] = [{"method": registered.contract.method("Spare/Do")}]
    await apply(baton, definition)
    await registered.stop()
    renewed = await another(spare_is_gone, registered.port)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await register(baton, name, renewed.address)
    (broken,) = report_of(refused.value).broken
    (violation,) = broken.violations
    assert violation.path == "steps[1].fallback[0].method"
    assert violation.reason == error_reason_pb2.ERROR_REASON_UNKNOWN_METHOD


async def test_a_run_keeps_its_revision_while_a_new_one_is_applied(baton: Baton, registered: LabWorker) -> None:
    name = name_of(registered)
    old = await apply(baton, held(registered, name, output="text", text="old"))
    run = (await baton.runs.SubmitRun(submission(name))).run
    await registered.arrived()
    new = await apply(baton, held(registered, name, output="text", text="new"))
    registered.gates["hold"].set()
    answer = await baton.runs.SubmitRun(submission(name, wait_seconds=20))
    results = {each.revision: each for each in (await baton.end(run.run_id), answer.run)}
    assert results.keys() == {old, new}
    for revision, text in ((old, "old"), (new, "new")):
        assert results[revision].state == SUCCEEDED
        assert registered.contract.unpack("Result", results[revision].output).text == text


async def test_a_worker_that_attaches_is_refused_too(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], contract: Contract, transport: str
) -> None:
    server = await start_server()
    baton, first = connect(server), LabWorker(contract)
    await first.attach(server.address)
    await apply(baton, held(first, "order"))
    await first.detach()

    async def detached() -> bool:
        return not (await baton.workers.ListWorkers(worker_service_pb2.ListWorkersRequest())).workers

    await eventually(detached)
    second = LabWorker(changed(contract, number_is_text))
    await second.attach(server.address)
    assert second.attached is not None
    refused = second.attached.task.exception()
    assert refused is not None
    assert "CONTRACT_BREAKS_WORKFLOWS" in str(refused)
    assert 'steps[1].request["number"]' in str(refused)
    assert await detached()
    await second.stop()
    await second.attach(server.address, force=True)
    assert second.attached.registered.done()
    await second.stop()


async def test_the_command_line_tells_what_breaks(
    baton: Baton, registered: LabWorker, another: Callable[..., Any]
) -> None:
    name = name_of(registered)
    await apply(baton, held(registered, name))
    renewed = await another(number_is_text)

    async def add(*options: str) -> tuple[int | None, str, str]:
        arguments = ["-m", "baton.cli", "worker", "add", name, renewed.address, "-s", baton.address, *options]
        program = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await program.communicate()
        return program.returncode, out.decode(), error.decode()

    code, out, _ = await add("--check")
    assert code == 1
    assert f"the contract of {name} breaks 1 revision with 0 runs in flight" in out
    assert 'steps[1].request["number"]: ' in out
    code, out, error = await add()
    assert (code, out) == (1, "")
    assert "CONTRACT_BREAKS_WORKFLOWS" in error
    assert 'steps[1].request["number"]: ' in error
    assert "--force" in error
    code, _, error = await add("-o", "json")
    (told,) = json.loads(error)["error"]["report"]["broken"]
    assert (code, told["workflow"], told["newest"]) == (1, name, True)
    code, out, error = await add("--force")
    assert code == 0
    assert "warning: " in error
    assert renewed.address in out
    code, out, _ = await add("--check", "-o", "json")
    assert (code, out.strip()) == (0, "{}")
