"""What a wrong call is told: a code, a documented reason, the path of the field, and never the text of an exception."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import uuid4

import grpc
import pytest
from baton.v1 import error_reason_pb2, run_service_pb2, worker_service_pb2, workflow_service_pb2
from google.protobuf import descriptor_pb2, json_format

from tests.acceptance.conftest import name_of
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import one_step
from tests.acceptance.wire import Baton, Refusal, refused, submission, workflow
from tests.ports import free_port

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
LEAKS = re.compile(r"Traceback|Error\b|Exception|asyncpg|grpc\.|<class|0x[0-9a-f]{6}|\.py\b|Errno|SELECT|INSERT")


def check(refusal: Refusal, code: grpc.StatusCode, reason: str, *paths: str) -> None:
    """The refusal is as documented, and tells nothing of the inside."""
    assert (refusal.code, refusal.reason) == (code, reason), refusal.text
    assert refusal.domain == "baton"
    assert f"ERROR_REASON_{reason}" in set(error_reason_pb2.ErrorReason.keys())
    assert sorted(refusal.paths) == sorted(paths), refusal.paths
    for text in (refusal.text, *refusal.paths.values()):
        assert text
        assert not LEAKS.search(text), text


REQUESTS: list[tuple[str, str, dict[str, Any], grpc.StatusCode, str, list[str]]] = [
    ("runs", "GetRun", {"run_id": "nonsense"}, INVALID, "INVALID_REQUEST", ["run_id"]),
    ("runs", "GetRun", {"run_id": str(uuid4())}, NOT_FOUND, "RUN_NOT_FOUND", []),
    ("runs", "WaitRun", {"run_id": str(uuid4())}, NOT_FOUND, "RUN_NOT_FOUND", []),
    ("runs", "CancelRun", {"run_id": str(uuid4())}, NOT_FOUND, "RUN_NOT_FOUND", []),
    ("runs", "ListRunEvents", {"run_id": str(uuid4())}, NOT_FOUND, "RUN_NOT_FOUND", []),
    ("runs", "ListRunSteps", {"run_id": str(uuid4())}, NOT_FOUND, "RUN_NOT_FOUND", []),
    ("runs", "ListRuns", {"filter": "colour = red"}, INVALID, "INVALID_FILTER", ["filter"]),
    ("runs", "ListRuns", {"page_token": "made-up"}, INVALID, "INVALID_PAGE_TOKEN", ["page_token"]),
    ("runs", "ListRuns", {"page_size": -1}, INVALID, "INVALID_REQUEST", ["page_size"]),
    ("runs", "SubmitRun", {}, INVALID, "INVALID_REQUEST", [""]),
    ("runs", "SubmitRun", {"workflow": "nobody-made-this"}, NOT_FOUND, "WORKFLOW_NOT_FOUND", []),
    ("runs", "SubmitRun", {"workflow": "x", "wait_timeout": "601s"}, INVALID, "INVALID_REQUEST", ["wait_timeout"]),
    ("runs", "SubmitRun", {"workflow": "x", "labels": ["a", "a"]}, INVALID, "INVALID_REQUEST", ["labels"]),
    ("runs", "SubmitRun", {"workflow": "x", "labels": ["UP"]}, INVALID, "INVALID_REQUEST", ["labels[0]"]),
    ("workflows", "GetWorkflow", {"workflow": "nobody-made-this"}, NOT_FOUND, "WORKFLOW_NOT_FOUND", []),
    ("workflows", "DeleteWorkflow", {"workflow": "nobody-made-this"}, NOT_FOUND, "WORKFLOW_NOT_FOUND", []),
    ("workflows", "ApplyWorkflow", {"workflow": {"name": "no-steps"}}, INVALID, "INVALID_REQUEST", ["workflow.steps"]),
    ("workers", "GetWorker", {"worker": "nobody"}, NOT_FOUND, "WORKER_NOT_FOUND", []),
    ("workers", "DrainWorker", {"worker": "nobody"}, NOT_FOUND, "WORKER_NOT_FOUND", []),
    ("workers", "DeleteWorker", {"worker": "nobody"}, NOT_FOUND, "WORKER_NOT_FOUND", []),
    ("workers", "RegisterWorker", {"worker": "Up", "address": "x:1"}, INVALID, "INVALID_REQUEST", ["worker"]),
    ("workers", "RegisterWorker", {"worker": "x"}, INVALID, "INVALID_REQUEST", ["address"]),
]
SERVICES = {"runs": run_service_pb2, "workflows": workflow_service_pb2, "workers": worker_service_pb2}


@pytest.mark.parametrize(("service", "method", "content", "code", "reason", "paths"), REQUESTS)
async def test_a_wrong_request(
    baton: Baton,
    service: str,
    method: str,
    content: dict[str, Any],
    code: grpc.StatusCode,
    reason: str,
    paths: list[str],
) -> None:
    request = json_format.ParseDict(content, getattr(SERVICES[service], f"{method}Request")())
    check(await refused(getattr(getattr(baton, service), method)(request, timeout=20)), code, reason, *paths)


WRONG_STEPS: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "nobody.v1.Nothing/Do"}, "method", "UNKNOWN_METHOD"),
    ({"request": {"texd": {"literal": "x"}}}, 'request["texd"]', "UNKNOWN_FIELD"),
    ({"request": {"number": {"literal": "many"}}}, 'request["number"]', "INVALID_LITERAL"),
    ({"request": {"number": {"path": "input.text"}}}, 'request["number"].path', "TYPE_MISMATCH"),
    ({"request": {"text": {"path": "steps.b.output.text"}}}, 'request["text"].path', "UNKNOWN_STEP"),
    ({"when": "input.text +"}, "when", "INVALID_EXPRESSION"),
    ({"after": ["a"]}, "after[0]", "CYCLE"),
]


@pytest.mark.parametrize(("step", "path", "reason"), WRONG_STEPS)
async def test_a_wrong_step_is_refused_with_its_path(
    baton: Baton, registered: LabWorker, step: dict[str, Any], path: str, reason: str
) -> None:
    base = {"id": "a", "method": registered.contract.method("Lab/Do")}
    definition = {"input_type": registered.contract.type("Task"), "steps": [base | step]}
    refusal = await refused(baton.runs.SubmitRun(submission(definition)))
    assert (refusal.code, refusal.reason) == (INVALID, "WORKFLOW_INVALID")
    found = [each for each in refusal.paths if each.startswith("inline_workflow.steps[0]")]
    assert f"inline_workflow.steps[0].{path}".removesuffix(".path") in {each.removesuffix(".path") for each in found}
    checked = await baton.workflows.CheckWorkflow(
        workflow_service_pb2.CheckWorkflowRequest(workflow=workflow(definition))
    )
    names = {error_reason_pb2.ErrorReason.Name(violation.reason) for violation in checked.violations}
    assert f"ERROR_REASON_{reason}" in names


async def test_inputs_that_do_not_fit_are_refused(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    definition = one_step(registered) | {"input_type": contract.type("Task")}
    for given in (None, contract.pack("Result", {"text": "not a task"})):
        check(await refused(baton.runs.SubmitRun(submission(definition, given))), INVALID, "INPUT_INVALID", "input")
    broken = contract.pack("Task")
    broken.value = b"\xff\xff\xff"
    check(await refused(baton.runs.SubmitRun(submission(definition, broken))), INVALID, "INPUT_INVALID", "input")


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_workers_that_cannot_be_registered(baton: Baton, registered: LabWorker) -> None:
    nobody = worker_service_pb2.RegisterWorkerRequest(worker="gone", address=f"127.0.0.1:{free_port()}")
    check(await refused(baton.workers.RegisterWorker(nobody, timeout=30)), PRECONDITION, "WORKER_UNREACHABLE")
    open_set = descriptor_pb2.FileDescriptorSet()
    open_set.file.add(name="a.proto", dependency=["b.proto"])
    closed = worker_service_pb2.RegisterWorkerRequest(worker="open", address=registered.address, contract=open_set)
    check(await refused(baton.workers.RegisterWorker(closed)), INVALID, "INVALID_CONTRACT", "contract")


async def test_a_revision_that_a_workflow_does_not_have(baton: Baton, registered: LabWorker) -> None:
    definition = one_step(registered) | {"name": name_of(registered)}
    await baton.workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition)))
    wrong = submission(name_of(registered), revision="0123456789abcdef")
    check(await refused(baton.runs.SubmitRun(wrong)), NOT_FOUND, "REVISION_NOT_FOUND")


async def test_a_run_that_has_ended_cannot_be_cancelled(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered))
    refusal = await refused(baton.cancel(run.run_id))
    check(refusal, PRECONDITION, "RUN_ENDED")
    assert refusal.metadata["state"] == "SUCCEEDED"


@pytest.mark.parametrize("field", ["request_id", "workspace", "attributes"])
async def test_text_that_the_database_cannot_hold_is_refused_with_its_path(
    baton: Baton, registered: LabWorker, field: str
) -> None:
    value: Any = {"team": "a\0b"} if field == "attributes" else "a\0b"
    request = submission(one_step(registered), **{field: value})
    path = 'attributes["team"]' if field == "attributes" else field
    check(await refused(baton.runs.SubmitRun(request, timeout=20)), INVALID, "INVALID_REQUEST", path)


async def test_names_that_the_database_cannot_hold_are_not_found(baton: Baton) -> None:
    get = workflow_service_pb2.GetWorkflowRequest(workflow="a\0b")
    assert (await refused(baton.workflows.GetWorkflow(get))).code in (INVALID, NOT_FOUND)
    assert (await refused(baton.runs.SubmitRun(submission("a\0b")))).code in (INVALID, NOT_FOUND)
    worker = worker_service_pb2.GetWorkerRequest(worker="a\0b")
    assert (await refused(baton.workers.GetWorker(worker))).code in (INVALID, NOT_FOUND)


async def test_one_wrong_run_does_not_harm_those_beside_it(baton: Baton, registered: LabWorker) -> None:
    good = [baton.run(one_step(registered)) for _ in range(10)]
    bad = [refused(baton.runs.SubmitRun(submission(one_step(registered), workspace="\0"))) for _ in range(5)]
    runs, _ = await asyncio.gather(asyncio.gather(*good), asyncio.gather(*bad))
    assert len({run.run_id for run in runs}) == 10
    assert (await baton.worker(name_of(registered))).name == name_of(registered)
