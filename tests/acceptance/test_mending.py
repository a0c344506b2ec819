"""Mending over real sockets: runs that are reopened in another round, whatever replica is asked, and after kill -9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, kinds, refused

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


async def test_a_retry_runs_what_failed_and_keeps_what_succeeded(baton: Baton, registered: LabWorker) -> None:
    run = await failed_order(baton, registered)
    answer = await retry(baton, run.run_id, reason="the bank is back")
    assert list(answer.reset) == ["pay", "ship"]
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.round) == (SUCCEEDED, 2)
    assert registered.contract.unpack("Result", ended.output).text == "bookpaynote"
    assert [len(registered.arrivals(text)) for text in ("book", "pay", "note", "bookpaynote")] == [1, 2, 1, 1]
    first, second = registered.arrivals("pay")
    assert (first.attempt, second.attempt) == (1, 2), "attempts are counted on"
    assert (first.key[-2:], second.key[-2:]) == ("/1", "/2"), "another round has a key of its own"
    assert not ended.HasField("failure")
    assert ended.expire_time.ToMicroseconds() > run.expire_time.ToMicroseconds()


async def test_a_run_that_was_reopened_is_watched_on(baton: Baton, registered: LabWorker) -> None:
    run = await failed_order(baton, registered)
    first = [message async for message in baton.watch(run.run_id)]
    answer = await retry(baton, run.run_id)
    told = [message.event async for message in baton.watch(run.run_id, cursor=first[-1].cursor)]
    events = [event.WhichOneof("kind") for event in told if event.sequence]
    assert (events[0], events[-1]) == ("run_reopened", "run_succeeded")
    anew = [message async for message in baton.watch(run.run_id, cursor=answer.cursor)]
    assert anew[-1].event.WhichOneof("kind") == "run_succeeded"
    everything = kinds(await baton.events(run.run_id))
    assert everything.count("run_failed") == 1
    assert everything[-1] == "run_succeeded"


async def test_only_what_ended_without_success_is_retried(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(order(contract), contract.pack("Task", {}))
    refusal = await refused(retry(baton, run.run_id))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE")
    await baton_steps(baton, run.run_id, "book", "note")
    registered.gates["pay"].set()
    await baton.end(run.run_id)
    checked = await retry(baton, run.run_id, validate_only=True)
    assert (checked.run.state, list(checked.reset)) == (FAILED, ["pay", "ship"])
    await retry(baton, run.run_id, round=1)
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    again = await retry(baton, run.run_id, round=1)
    assert again.run.state == SUCCEEDED, "the call is repeated"
    refusal = await refused(retry(baton, run.run_id))
    assert refusal.reason == "RUN_SUCCEEDED"
    unknown = await refused(retry(baton, "018f0000-0000-7000-8000-000000000000"))
    assert unknown.reason == "RUN_NOT_FOUND"
