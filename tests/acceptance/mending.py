"""How tests mend runs: the calls, and workflows whose steps fail as they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton

SUCCEEDED, FAILED, RUNNING = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_RUNNING

Connect = Callable[[ServerProcess], Baton]


async def retry(baton: Baton, run_id: str, **fields: Any) -> run_service_pb2.RetryRunResponse:
    """Retries a run."""
    request = run_service_pb2.RetryRunRequest(run_id=run_id, **fields)
    answer = await baton.runs.RetryRun(request, timeout=20, wait_for_ready=True)
    assert isinstance(answer, run_service_pb2.RetryRunResponse)
    return answer


def order(contract: Contract, **pay: Any) -> dict[str, Any]:
    """Three steps side by side, of which `pay` fails at its first attempt, and one that needs all of them."""
    do = contract.method("Lab/Do")

    def step(name: str, **conduct: Any) -> dict[str, Any]:
        request = {"text": {"literal": name}, "conduct": {"literal": conduct}}
        return {"id": name, "method": do, "request": request, "retry": {"max_attempts": 1}}

    ship = {"text": {"expression": "steps.book.output.text + steps.pay.output.text + steps.note.output.text"}}
    return {
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [
            step("book"),
            step("pay", **{"failures": 1, "code": 9, "gate": "pay", **pay}),
            step("note"),
            {"id": "ship", "method": do, "request": ship},
        ],
        "whole_output": {"path": "steps.ship.output"},
    }


async def failed_order(baton: Baton, lab: LabWorker) -> run_pb2.Run:
    """Runs an order whose payment fails once the other two steps have succeeded."""
    run = await baton.submit(order(lab.contract), lab.contract.pack("Task", {}))
    await baton_steps(baton, run.run_id, "book", "note")
    lab.gates["pay"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.failure.step) == (FAILED, "pay")
    return ended


async def baton_steps(baton: Baton, run_id: str, *steps: str) -> None:
    """Waits until steps have succeeded."""
    left = set(steps)
    async for message in baton.watch(run_id):
        for step in message.snapshot.steps:
            if step.state == run_pb2.STEP_STATE_SUCCEEDED:
                left.discard(step.step)
        if message.event.WhichOneof("kind") == "step_succeeded":
            left.discard(message.event.step)
        if not left:
            return


async def retry_step(baton: Baton, run_id: str, step: str, **fields: Any) -> run_service_pb2.RetryStepResponse:
    request = run_service_pb2.RetryStepRequest(run_id=run_id, step=step, **fields)
    answer = await baton.runs.RetryStep(request, timeout=20, wait_for_ready=True)
    assert isinstance(answer, run_service_pb2.RetryStepResponse)
    return answer


def greeting(contract: Contract, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Two steps, of which the second fails at its first attempt."""
    do = contract.method("Lab/Do")
    request = {"text": text, "conduct": {"literal": {"failures": 1, "code": 9}}}
    greet = {"id": "greet", "method": do, "request": request, "after": ["look"], "retry": {"max_attempts": 1}}
    return {
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [{"id": "look", "method": do, "request": {"text": {"path": "input.text"}}}, greet],
        "whole_output": {"path": "steps.greet.output"},
        **more,
    }


async def skip(baton: Baton, run_id: str, step: str, **fields: Any) -> run_service_pb2.SkipStepResponse:
    request = run_service_pb2.SkipStepRequest(run_id=run_id, step=step, **fields)
    answer = await baton.runs.SkipStep(request, timeout=20, wait_for_ready=True)
    assert isinstance(answer, run_service_pb2.SkipStepResponse)
    return answer


async def pause(baton: Baton, run_id: str, **fields: Any) -> run_pb2.Run:
    request = run_service_pb2.PauseRunRequest(run_id=run_id, **fields)
    return (await baton.runs.PauseRun(request, timeout=20, wait_for_ready=True)).run


async def resume(baton: Baton, run_id: str) -> run_pb2.Run:
    request = run_service_pb2.ResumeRunRequest(run_id=run_id)
    return (await baton.runs.ResumeRun(request, timeout=20, wait_for_ready=True)).run


def chain(contract: Contract) -> dict[str, Any]:
    """A step that waits for the gate `go`, and one after it."""
    do = contract.method("Lab/Do")
    first = {"text": {"literal": "first"}, "conduct": {"literal": {"gate": "go"}}}
    second = {"text": {"literal": "second"}}
    return {
        "steps": [
            {"id": "first", "method": do, "request": first},
            {"id": "second", "method": do, "after": ["first"], "request": second},
        ]
    }
