"""What the services hand to the engine: defaults, limits, validation, and who calls."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import pytest
from baton.v1 import error_reason_pb2, run_service_pb2, worker_service_pb2, workflow_pb2, workflow_service_pb2
from baton.v1.run_service_pb2 import RUN_VIEW_BASIC, RUN_VIEW_FULL
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from orchestrator.domain.caller import Caller
from orchestrator.engine.ports import Comparison, FilterTerm
from tests.rpc.fakes import FakeEngine, Told, told

if TYPE_CHECKING:
    from baton.v1.run_service_pb2_grpc import RunServiceAsyncStub as Runs
    from baton.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub as Workers
    from baton.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub as Workflows

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
STEP = workflow_pb2.Step(id="a", method="shop.v1.Stock/Reserve")


async def refusal(call: object) -> Told:
    """Awaits a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return told(caught.value)


async def test_views_default_to_full_for_one_run(engine: FakeEngine, runs: Runs) -> None:
    await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
    assert engine.last("get") == (UUID(RUN_ID), RUN_VIEW_FULL)
    await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID, view=RUN_VIEW_BASIC))
    assert engine.last("get") == (UUID(RUN_ID), RUN_VIEW_BASIC)
    await runs.SubmitRun(run_service_pb2.SubmitRunRequest(workflow="w"))
    assert engine.last("submit")[0].view == RUN_VIEW_FULL
    await runs.WaitRun(run_service_pb2.WaitRunRequest(run_id=RUN_ID))
    assert engine.last("wait") == (UUID(RUN_ID), 60.0, RUN_VIEW_FULL)


async def test_views_default_to_basic_for_lists_and_streams(engine: FakeEngine, runs: Runs) -> None:
    await runs.ListRuns(run_service_pb2.ListRunsRequest(filter="labels:pii"))
    assert engine.last("list") == ([FilterTerm("labels", Comparison.HAS, "pii")], None, 51, RUN_VIEW_BASIC)
    await runs.ListRuns(run_service_pb2.ListRunsRequest(view=RUN_VIEW_FULL, page_size=5000))
    assert engine.last("list") == ([], None, 1001, RUN_VIEW_FULL)
    await runs.ListRunEvents(run_service_pb2.ListRunEventsRequest(run_id=RUN_ID))
    assert engine.last("list_events") == (UUID(RUN_ID), 0, 201, RUN_VIEW_BASIC)
    for batch in (False, True):
        async for _ in runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=RUN_ID, cursor="c", batch=batch)):
            pass
        assert engine.last("watch") == (UUID(RUN_ID), "c", RUN_VIEW_BASIC, batch)


async def test_a_wait_of_nothing_is_not_the_default(engine: FakeEngine, runs: Runs) -> None:
    await runs.WaitRun(run_service_pb2.WaitRunRequest(run_id=RUN_ID, wait_timeout=duration_pb2.Duration()))
    assert engine.last("wait")[1] == 0.0
    await runs.WaitRun(run_service_pb2.WaitRunRequest(run_id=RUN_ID, wait_timeout={"seconds": 1, "nanos": 500_000_000}))  # type: ignore[arg-type]
    assert engine.last("wait")[1] == 1.5


async def test_answers_carry_what_the_engine_gave(
    engine: FakeEngine, runs: Runs, workflows: Workflows, workers: Workers
) -> None:
    got = await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID.upper()))
    assert (got.run.run_id, got.cursor) == (RUN_ID, "cursor")
    cancelled = await runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=RUN_ID, reason="enough"))
    assert cancelled.run.run_id == RUN_ID
    assert engine.last("cancel") == (UUID(RUN_ID), "enough")
    applied = await workflows.ApplyWorkflow(
        workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow_pb2.Workflow(name="w", steps=[STEP]))
    )
    assert applied.existing
    assert applied.revision.workflow == "w"
    deleted = await workflows.DeleteWorkflow(workflow_service_pb2.DeleteWorkflowRequest(workflow="w"))
    assert deleted.revision.workflow == "w"
    drained = await workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker="p", address="a:1"))
    assert drained.worker.name == "p"
    assert engine.last("drain") == ("p", "a:1")
    removed = await workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="p"))
    assert removed.worker.name == "p"
    assert engine.last("delete_worker") == ("p", "")


@pytest.mark.parametrize(
    ("method", "request_message", "paths"),
    [
        ("GetRun", run_service_pb2.GetRunRequest(run_id="x"), ["run_id"]),
        ("GetRun", run_service_pb2.GetRunRequest(run_id=RUN_ID, view=7), ["view"]),  # type: ignore[arg-type]
        ("ListRuns", run_service_pb2.ListRunsRequest(page_size=-1), ["page_size"]),
        ("ListRuns", run_service_pb2.ListRunsRequest(filter="x" * 2049), ["filter"]),
        ("SubmitRun", run_service_pb2.SubmitRunRequest(), [""]),
        (
            "SubmitRun",
            run_service_pb2.SubmitRunRequest(workflow="w", labels=["ok", "No"], attributes={'A"b': "x"}),
            ['attributes["A\\"b"]', "labels[1]"],
        ),
        (
            "SubmitRun",
            run_service_pb2.SubmitRunRequest(inline_workflow={"steps": [STEP, {"id": "X", "method": "m"}]}),  # type: ignore[arg-type]
            ["inline_workflow.steps[1].id", "inline_workflow.steps[1].method"],
        ),
        ("WaitRun", run_service_pb2.WaitRunRequest(run_id=RUN_ID, wait_timeout={"seconds": 601}), ["wait_timeout"]),  # type: ignore[arg-type]
    ],
)
async def test_invalid_requests_name_their_fields(
    method: str, request_message: Message, paths: list[str], engine: FakeEngine, runs: Runs
) -> None:
    answer = await refusal(getattr(runs, method)(request_message))
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert answer.paths == paths
    assert answer.bad_request is not None
    assert all(each.reason == "INVALID_REQUEST" and each.description for each in answer.bad_request.field_violations)
    assert answer.text.startswith(paths[0])
    assert engine.calls == []


async def test_a_filter_is_refused_over_the_wire(engine: FakeEngine, runs: Runs) -> None:
    answer = await refusal(runs.ListRuns(run_service_pb2.ListRunsRequest(filter="stat = FAILED")))
    assert (answer.reason, answer.paths) == ("INVALID_FILTER", ["filter"])
    assert "did you mean `state`?" in answer.text
    assert engine.calls == []


async def test_an_applied_workflow_needs_a_name(engine: FakeEngine, workflows: Workflows) -> None:
    answer = await refusal(
        workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow_pb2.Workflow(steps=[STEP])))
    )
    assert (answer.reason, answer.paths, engine.calls) == ("INVALID_REQUEST", ["workflow.name"], [])


async def test_a_checked_workflow_is_answered_with_its_faults(engine: FakeEngine, workflows: Workflows) -> None:
    invalid = workflow_pb2.Workflow(name="w", steps=[STEP, workflow_pb2.Step(id="B", method="x.Y/Z")])
    answer = await workflows.CheckWorkflow(workflow_service_pb2.CheckWorkflowRequest(workflow=invalid))
    assert [(each.path, each.reason) for each in answer.violations] == [
        ("steps[1].id", error_reason_pb2.ERROR_REASON_INVALID_REQUEST)
    ]
    assert engine.calls == []
    valid = workflow_pb2.Workflow(steps=[STEP])
    checked = await workflows.CheckWorkflow(workflow_service_pb2.CheckWorkflowRequest(workflow=valid))
    assert checked.revision == "rev"
    assert engine.last("check") == (valid,)
    assert (await refusal(workflows.CheckWorkflow(workflow_service_pb2.CheckWorkflowRequest()))).paths == ["workflow"]


async def test_payloads_have_limits(engine: FakeEngine, runs: Runs, workers: Workers) -> None:
    submission = run_service_pb2.SubmitRunRequest(workflow="w")
    submission.input.value = b"\0" * (1 << 20)
    await runs.SubmitRun(submission)
    submission.input.value += b"\0"
    answer = await refusal(runs.SubmitRun(submission))
    assert (answer.code, answer.reason, answer.paths) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PAYLOAD_TOO_LARGE",
        ["input"],
    )
    registration = worker_service_pb2.RegisterWorkerRequest(worker="p", address="a:1")
    registration.contract.file.add(name="x" * ((4 << 20) + 10))
    assert (await refusal(workers.RegisterWorker(registration))).paths == ["contract"]


async def test_metadata_says_who_calls(engine: FakeEngine, runs: Runs) -> None:
    request = run_service_pb2.GetRunRequest(run_id=RUN_ID)
    await runs.GetRun(request)
    assert engine.calls[-1][1] == Caller("default", "anonymous", "grpc")
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await runs.GetRun(request, metadata=(("baton-channel", "cli"), ("traceparent", traceparent)))
    assert engine.calls[-1][1] == Caller("default", "anonymous", "cli", traceparent)
    answer = await refusal(runs.GetRun(request, metadata=(("baton-channel", "Not This"),)))
    assert (answer.reason, answer.paths) == ("INVALID_REQUEST", ['metadata["baton-channel"]'])
