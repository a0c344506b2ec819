"""Large graphs and large payloads: done, or refused with the limit."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from baton import Client
from baton.v1 import run_pb2, run_service_pb2, workflow_pb2, workflow_service_pb2

from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import one_step
from tests.acceptance.test_watches import chain
from tests.acceptance.wire import BASIC, FULL, Baton, refused, submission

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
MEBIBYTE = 1 << 20


def fan(lab: LabWorker, width: int) -> dict[str, Any]:
    """`first`, then `width` steps that need it, then `last`, which needs them all."""
    do = lab.contract.method("Lab/Do")
    element = {"list": {"elements": [{"path": "steps.first.output"}]}}
    steps: list[dict[str, Any]] = [{"id": "first", "method": do}]
    steps += [{"id": f"s{number}", "method": do, "request": {"results": element}} for number in range(width)]
    last = {"list": {"elements": [{"path": f"steps.s{number}.output"} for number in range(width)]}}
    steps.append({"id": "last", "method": do, "request": {"results": last}})
    output = {"output_type": lab.contract.type("Result"), "whole_output": {"path": "steps.last.output"}}
    return {"steps": steps, **output}


async def test_a_thousand_steps_side_by_side(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(fan(registered, 1_000))
    assert run.state == SUCCEEDED
    assert registered.contract.unpack("Result", run.output).number == 2_001
    assert len(registered.arrivals()) == 1_002
    assert registered.most_in_flight <= 100


async def test_a_run_of_many_steps_is_shown_by_the_first_and_listed_whole(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(fan(registered, 1_500))
    assert (run.step_count, len(run.steps)) == (1_502, 1_000)
    steps = await baton.steps(run.run_id, page_size=1_000)
    assert [step.step for step in steps] == ["first", *(f"s{number}" for number in range(1_500)), "last"]
    assert list(steps[:1_000]) == list((await baton.get(run.run_id, BASIC)).steps)
    result = await baton.get(run.run_id, run_service_pb2.RUN_VIEW_RESULT)
    assert (result.output, len(result.steps)) == (run.output, 0)
    async with Client(baton.address) as client:
        assert list((await client.get_run(run.run_id, full=False)).steps) == steps


async def test_a_run_of_large_outputs_fits_what_clients_take(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    large = {"conduct": {"literal": {"size": MEBIBYTE * 9 // 10}}}
    steps = [{"id": f"s{number}", "method": do, "request": large} for number in range(4)]
    run = await baton.run({"steps": steps})
    assert run.state == SUCCEEDED
    assert (run.step_count, len(run.steps), run.ByteSize() < 4 * MEBIBYTE) == (4, 3, True)
    listed = await baton.steps(run.run_id, FULL)
    assert list(listed[: len(run.steps)]) == list(run.steps)
    assert len(listed) == 4


async def test_two_hundred_steps_in_a_row(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(chain(registered.contract, 200))
    assert run.state == SUCCEEDED
    assert [note.step for note in registered.arrivals()] == [f"s{number}" for number in range(200)]


@pytest.mark.alone
async def test_ten_thousand_steps_are_accepted_and_one_more_is_refused(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    steps = [workflow_pb2.Step(id=f"s{number}", method=do) for number in range(10_001)]
    definition = workflow_pb2.Workflow(name="wide", steps=steps)
    apply = workflow_service_pb2.ApplyWorkflowRequest(workflow=definition)
    refusal = await refused(baton.workflows.ApplyWorkflow(apply, timeout=30))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.paths) == ["workflow.steps"]
    assert "10000" in refusal.paths["workflow.steps"].replace(",", "")
    del apply.workflow.steps[-1]
    started = time.monotonic()
    await baton.workflows.ApplyWorkflow(apply, timeout=30)
    assert time.monotonic() - started < 15


async def test_an_input_over_the_limit_is_refused(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    definition = one_step(registered) | {"input_type": contract.type("Task")}
    too_large = contract.pack("Task", {"text": "x" * (MEBIBYTE + 1)})
    refusal = await refused(baton.runs.SubmitRun(submission(definition, too_large)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
    assert "1048576" in refusal.text.replace(",", "")
    largest = contract.pack("Task", {"text": "x" * (MEBIBYTE - 100)})
    assert (await baton.run(definition, largest)).state == SUCCEEDED


async def test_an_answer_over_the_limit_fails_its_step(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered, {"size": MEBIBYTE + 1}))
    assert (run.state, run.failure.reason) == (run_pb2.RUN_STATE_FAILED, "PAYLOAD_TOO_LARGE")
    assert len(registered.arrivals()) == 1
    assert "1048576" in run.failure.message.replace(",", "")
    assert (await baton.run(one_step(registered, {"size": MEBIBYTE - 100}))).state == SUCCEEDED


async def test_a_request_over_the_limit_fails_its_step(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    half = {"conduct": {"literal": {"size": MEBIBYTE * 6 // 10}}}
    results = {"list": {"elements": [{"path": "steps.a.output"}, {"path": "steps.b.output"}]}}
    steps = [
        {"id": "a", "method": do, "request": half},
        {"id": "b", "method": do, "request": half},
        {"id": "c", "method": do, "request": {"results": results}},
    ]
    run = await baton.run({"steps": steps})
    assert (run.state, run.failure.reason, run.failure.step) == (run_pb2.RUN_STATE_FAILED, "PAYLOAD_TOO_LARGE", "c")


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_a_map_of_ten_thousand_items(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    do = contract.method("Lab/Do")
    each, items = {"number": {"path": "item.number"}}, {"items": {"path": "input.results"}, "max_parallel": 100}
    definition = {
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "each", "method": do, "request": each, "map": items},
            {"id": "last", "method": do, "request": {"number": {"expression": "steps.each.output.items.size()"}}},
        ],
        "whole_output": {"path": "steps.last.output"},
    }
    given = contract.pack("Task", {"results": [{"number": number} for number in range(10_000)]})
    run = await baton.submit(definition, given, wait_seconds=120)
    assert run.state == SUCCEEDED
    assert contract.unpack("Result", run.output).number == 10_001
    assert registered.most_in_flight <= 100
    assert run.step_count == 10_002
    assert sum(step.state == run_pb2.STEP_STATE_SUCCEEDED for step in await baton.steps(run.run_id)) == 10_002
