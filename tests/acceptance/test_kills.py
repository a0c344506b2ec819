"""kill -9 of the server while runs go: nothing acknowledged is lost, nothing that is done is done again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from baton.v1 import run_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.wire import Baton, eventually, submission

Connect = Callable[[ServerProcess], Baton]

RUNS = 200
EDGES = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e")]


def diamond(contract: Contract, delay: str = "0.02s") -> dict[str, Any]:
    """Five steps: a, then b and c, then d, then e; each adds one to the numbers that it gets."""
    do, task = contract.method("Lab/Do"), {"conduct": {"literal": {"delay": delay}}}

    def step(name: str, *sources: str) -> dict[str, Any]:
        results = {"list": {"elements": [{"path": f"steps.{source}.output"} for source in sources]}}
        return {"id": name, "method": do, "request": task | ({"results": results} if sources else {})}

    return {
        "name": "diamond",
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "a", "method": do, "request": task | {"number": {"path": "input.number"}}},
            step("b", "a"),
            step("c", "a"),
            step("d", "b", "c"),
            step("e", "d"),
        ],
        "whole_output": {"path": "steps.e.output"},
    }


def diamond_output(number: int) -> int:
    return 2 * (number + 2) + 2


class Submitter:
    """Submits runs until every one is acknowledged, over however many deaths of the server."""

    def __init__(self, baton: Baton, contract: Contract) -> None:
        self.baton, self.contract = baton, contract
        self.acknowledged: dict[str, str] = {}

    async def submit(self, number: int, definition: dict[str, Any]) -> None:
        request_id = f"request-{number}"
        given = self.contract.pack("Task", {"number": str(number)})
        while True:
            try:
                answer = await self.baton.runs.SubmitRun(
                    submission(definition, given, request_id=request_id), timeout=15, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(0.05)
                continue
            assert self.acknowledged.setdefault(request_id, answer.run.run_id) == answer.run.run_id
            return


async def all_ended(baton: Baton, acknowledged: dict[str, str]) -> list[run_pb2.Run]:
    async with asyncio.timeout(60):
        return [await baton.end(run_id) for run_id in acknowledged.values()]


async def require_sound(
    dsn: str, acknowledged: dict[str, str], lab: LabProcess, *, paused: bool = False
) -> dict[str, invariants.StoredRun]:
    """Every invariant holds of what is stored and of what the worker noted."""
    runs, notes = await invariants.read_runs(dsn), lab.notes()
    assert not invariants.journal_faults(runs, EDGES)
    assert not invariants.submission_faults(runs, acknowledged)
    assert not invariants.call_faults(runs, notes, paused=paused)
    assert not invariants.answer_faults(runs, notes)
    return runs


async def test_every_run_ends_though_the_server_is_killed_three_times(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    submitter = Submitter(baton, contract)
    definition = diamond(contract)
    draw = random.Random(7)

    async def kill() -> None:
        for death in range(3):
            goal = draw.randint(RUNS * death // 3 + 10, RUNS * (death + 1) // 3)

            async def enough(goal: int = goal) -> bool:
                return len(submitter.acknowledged) >= goal

            await eventually(enough, 30)
            await asyncio.sleep(draw.uniform(0.0, 0.2))  # not a wait for anything: the moment is to be random
            await server.kill()
            await server.start()

    async def submit(first: int) -> None:
        for number in range(first, RUNS, 10):
            await submitter.submit(number, definition)

    await asyncio.gather(kill(), *(submit(first) for first in range(10)))
    assert len(submitter.acknowledged) == RUNS
    for request_id, run in zip(submitter.acknowledged, await all_ended(baton, submitter.acknowledged), strict=True):
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
        number = int(request_id.partition("-")[2])
        assert contract.unpack("Result", run.output).number == diamond_output(number)
    runs = await require_sound(server.dsn, submitter.acknowledged, lab_process)
    assert any(run.epoch > 1 for run in runs.values()), "no run was adopted: the kills came at the wrong time"
    again = [note for note in lab_process.notes() if note.what == "arrived" and note.delivery > 1]
    assert again, "no call was delivered again: the kills came at the wrong time"
    assert {note.attempt for note in again} == {1}


async def test_calls_that_their_worker_did_not_survive_are_made_again_or_not_as_the_step_says(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    retry = {"max_attempts": 100, "initial_backoff": "0.05s", "backoff_multiplier": 1.0}

    def step(**more: Any) -> dict[str, Any]:
        request = {"conduct": {"literal": {"crash": True}}}
        return {"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request, "retry": retry, **more}]}

    run = await baton.submit(step())
    assert await lab_process.wait() == 9
    await lab_process.start()
    run = await baton.end(run.run_id)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    first, *_, last = [note for note in lab_process.notes() if note.what == "arrived"]
    assert (first.attempt, first.key) == (1, last.key)
    assert (last.attempt, last.delivery) > (1, 1)
    once = await baton.submit(step(delivery="DELIVERY_AT_MOST_ONCE"))
    assert await lab_process.wait() == 9
    once = await baton.end(once.run_id)
    assert (once.state, once.failure.reason) == (run_pb2.RUN_STATE_FAILED, "OUTCOME_UNKNOWN")
    assert len([note for note in lab_process.notes() if note.run == once.run_id]) == 1
