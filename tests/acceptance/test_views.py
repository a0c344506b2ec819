"""How much of a run is shown: what came of it alone, where nobody asks for its steps."""

from __future__ import annotations

from typing import Any

from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import one_step
from tests.acceptance.test_many_runs import Ends
from tests.acceptance.wire import FULL, Baton

RESULT = run_service_pb2.RUN_VIEW_RESULT


def result_of(run: run_pb2.Run) -> run_pb2.Run:
    """What the view of results shows of a run."""
    shown = run_pb2.Run()
    shown.CopyFrom(run)
    shown.ClearField("input")
    shown.ClearField("steps")
    shown.ClearField("step_count")
    return shown


async def listed(baton: Baton, run_id: str) -> run_pb2.Run:
    """A run as a list of results has it."""
    request = run_service_pb2.ListRunsRequest(filter='workspace = "views"', view=RESULT)
    answer: run_service_pb2.ListRunsResponse = await baton.runs.ListRuns(request, timeout=20)
    return next(run for run in answer.runs if run.run_id == run_id)


async def test_a_result_is_the_run_without_its_input_and_steps_wherever_it_is_read(
    baton: Baton, registered: LabWorker
) -> None:
    contract = registered.contract
    definition: dict[str, Any] = one_step(registered, {"gate": "open"}) | {"input_type": contract.type("Task")}
    given = contract.pack("Task", {"text": "given"})
    async with Ends(baton, 'workspace = "views"', view=RESULT, steps=True) as ends:
        before = ends.request.cursor
        open_run = await baton.submit(definition, given, workspace="views", view=RESULT)
        assert (open_run.step_count, len(open_run.steps), open_run.HasField("input")) == (0, 0, False)
        registered.gates["open"].set()
        request = run_service_pb2.WaitRunRequest(run_id=open_run.run_id, view=RESULT, wait_timeout={"seconds": 30})  # type: ignore[arg-type]
        waited = (await baton.runs.WaitRun(request, timeout=40)).run
        whole = await baton.get(open_run.run_id, FULL)
        assert (len(whole.steps), whole.HasField("input")) == (1, True)
        assert contract.unpack("Result", waited.output).text == "a"
        assert waited == await baton.get(open_run.run_id, RESULT) == result_of(whole)
        assert await listed(baton, open_run.run_id) == result_of(whole)
        await ends.until({open_run.run_id})
    async with Ends(baton, 'workspace = "views"', before, view=RESULT) as later:
        await later.until({open_run.run_id})
    assert ends.runs[open_run.run_id] == later.runs[open_run.run_id] == result_of(whole)
    (update,) = [each async for each in baton.watch(open_run.run_id, view=RESULT)]
    assert update.snapshot == result_of(whole)


async def test_a_submission_that_waits_is_answered_with_the_output_or_the_failure(
    baton: Baton, registered: LabWorker
) -> None:
    run = await baton.run(one_step(registered), view=RESULT)
    assert (registered.contract.unpack("Result", run.output).text, len(run.steps)) == ("a", 0)
    failed = await baton.run(one_step(registered, {"failures": 9, "code": 9, "reason": "OVEN_COLD"}), view=RESULT)
    assert (failed.state, failed.failure.reason, len(failed.steps)) == (run_pb2.RUN_STATE_FAILED, "OVEN_COLD", 0)


async def test_steps_and_events_by_themselves_come_without_payloads(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered))
    assert await baton.steps(run.run_id, RESULT) == await baton.steps(run.run_id)
    assert await baton.events(run.run_id, RESULT) == await baton.events(run.run_id)
    assert not any(step.HasField("output") for step in await baton.steps(run.run_id, RESULT))


async def test_a_list_tells_why_runs_did_not_succeed(baton: Baton, registered: LabWorker) -> None:
    hanging = one_step(registered, {"hang": True})
    failed = await baton.run(one_step(registered, {"failures": 9, "code": 9, "reason": "OVEN_COLD"}), workspace="why")
    cancelled, going_on = [await baton.submit(hanging, workspace="why") for _ in range(2)]
    await baton.cancel(cancelled.run_id, "no more")
    request = run_service_pb2.ListRunsRequest(filter='workspace = "why"')
    listed = {run.run_id: run for run in (await baton.runs.ListRuns(request, timeout=20)).runs}
    for run_id, reason in ((failed.run_id, "OVEN_COLD"), (cancelled.run_id, "CANCELLED")):
        assert listed[run_id].failure == (await baton.get(run_id, FULL)).failure
        assert listed[run_id].failure.reason == reason
    assert not listed[going_on.run_id].HasField("failure")
