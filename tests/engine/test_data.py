"""The data of a run: what a person approved is what a call is made with, however bindings would read by then."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from baton.v1 import workflow_pb2
from google.protobuf import wrappers_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.domain.events import ApprovalRequested
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Decided, StepAdmitted, Submission
from orchestrator.domain.plan import decide
from orchestrator.domain.waits import request_hash
from orchestrator.engine.codec import encode
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import JournalRow
from orchestrator.engine.rebuild import refold
from tests.contracts.corpus import workers

METHOD = "shop.v1.Payments/Charge"


@pytest.fixture(scope="module")
def compiled() -> CompiledWorkflow:
    workflow = workflow_pb2.Workflow(input_type="google.protobuf.StringValue")
    step = workflow.steps.add(id="pay", method=METHOD)
    step.request["order_id"].path = "input.value"
    step.approval.SetInParent()
    checked = check_workflow(workflow, workers())
    assert checked.compiled is not None, checked.violations
    return checked.compiled


def live_run(compiled: CompiledWorkflow, text: str) -> LiveRun:
    scope = Scope(1, wrappers_pb2.StringValue(value=text))
    return LiveRun(RunKey("default", uuid4()), 1, compiled, scope, None)


async def test_an_approved_request_is_sent_as_it_was_journaled(compiled: CompiledWorkflow) -> None:
    live, rows = live_run(compiled, "asked"), list[JournalRow]()

    def happen(given: Any, now: int) -> Any:
        events = decide(live.run, given, now, live.data).events
        rows.extend(encode(event, live.run) for event in events)
        return events[-1]

    happen(Submission("w", "r", 1 << 50, "ada", "grpc", "", (), {}, "", "", None), 10)
    asked = rows[-1]
    shown = live.run.steps[0].request
    assert shown is not None
    assert asked.payload == shown.data
    assert shown.data == live.data.target(0).build_request(live.data.scope).SerializeToString()
    hashed = request_hash(METHOD, shown.data)

    live.data.scope.input = wrappers_pb2.StringValue(value="something else")
    assert live.data.target(0).build_request(live.data.scope).SerializeToString() != shown.data
    happen(Decided(0, hashed, True, "grace", ""), 20)
    assert live.data.build_request(0) == shown.data
    happen(StepAdmitted(0, "shop", "h:1"), 30)
    assert live.data.build_request(0) == shown.data

    again = live_run(compiled, "yet another")
    catalogue: Any = None  # asked for delegated steps alone
    await refold(again, rows, catalogue)
    assert again.data.build_request(0) == shown.data
    assert again.run.steps[0].decided == live.run.steps[0].decided


def test_what_is_asked_says_of_whom_and_what_for(compiled: CompiledWorkflow) -> None:
    live = live_run(compiled, "asked")
    submitted = Submission("w", "r", 1 << 50, "ada", "grpc", "", (), {}, "", "", None)
    event = decide(live.run, submitted, 10, live.data).events[-1]
    assert isinstance(event, ApprovalRequested)
    assert (event.method, event.request_hash) == (METHOD, request_hash(METHOD, event.payload.data))
    assert event.payload.type_name == "shop.v1.ChargeRequest"
