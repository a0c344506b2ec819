"""Steps of runs that go on are tried now, begin anew or are ended otherwise, over real sockets and over kill -9."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.mending import pause, resume, retry, retry_step, skip
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, kinds, refused, step_of

SUCCEEDED, FAILED, RUNNING = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_RUNNING

Connect = Callable[[ServerProcess], Baton]

ONCE = {"max_attempts": 1}

LATER = {"initial_backoff": "600s", "max_backoff": "600s", "max_attempts": 5, "jitter": 0.0}


def step(contract: Contract, name: str, conduct: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A step that tells its name."""
    request = {"text": {"literal": name}, "conduct": {"literal": conduct or {}}}
    return {"id": name, "method": contract.method("Lab/Do"), "request": request, "retry": ONCE} | settings


def handled(contract: Contract) -> dict[str, Any]:
    """A payment that fails at its first attempt, once its gate is open, a refund where it fails, and what reads it."""
    text = {"expression": "steps.pay.succeeded ? steps.pay.output.text : 'unpaid'"}
    return {
        "output_type": contract.type("Result"),
        "steps": [
            step(contract, "pay", {"failures": 1, "code": 9, "gate": "pay"}, on_failure=[{"step": "refund"}]),
            step(contract, "refund", {"gate": "refund"}),
            step(contract, "ship", after=["refund"]) | {"request": {"text": text}},
        ],
        "whole_output": {"path": "steps.ship.output"},
    }


async def failed_while_paused(baton: Baton, lab: LabWorker) -> run_pb2.Run:
    """Runs that until the payment has failed and nothing follows, as the run is paused."""
    run = await baton.submit(handled(lab.contract))
    await lab.arrived(text="pay")
    await pause(baton, run.run_id)
    lab.gates["pay"].set()
    await until_step(baton, run.run_id, "pay", run_pb2.STEP_STATE_FAILED)
    return run


async def once_taken_over(call: Callable[[], Awaitable[object]]) -> None:
    """Makes a call again until another replica has taken the run over, whose own was killed."""

    async def answered() -> bool:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True

    await eventually(answered)


async def until_step(baton: Baton, run_id: str, name: str, state: int) -> None:
    async def reached() -> bool:
        return any((step.step, step.state) == (name, state) for step in (await baton.get(run_id)).steps)

    await eventually(reached)


async def until_backoff(baton: Baton, run_id: str, attempt: int) -> None:
    """Waits until an attempt of the first step has failed, and the next is due later."""

    async def waits() -> bool:
        first = (await baton.get(run_id)).steps[0]
        return len(first.attempts) == attempt and first.wait_reason.kind == run_pb2.WAIT_KIND_BACKOFF

    await eventually(waits)


async def test_a_step_in_backoff_is_tried_now_whatever_replica_is_asked_and_after_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    first, second = await start_server(BATON_LEASE_SECONDS="1"), await start_server(BATON_LEASE_SECONDS="1")
    owner, other = connect(first), connect(second)
    await owner.register(name_of(lab), lab.address)
    run = await owner.submit({"steps": [step(lab.contract, "a", {"failures": 3}, retry=LATER)]})
    await until_backoff(owner, run.run_id, 1)
    assert (await retry_step(owner, run.run_id, "a", validate_only=True)).run.state == RUNNING
    assert len(lab.arrivals("a")) == 1
    await retry_step(other, run.run_id, "a", reason="the bank is back")
    await until_backoff(owner, run.run_id, 2)
    await retry(owner, run.run_id)
    await until_backoff(other, run.run_id, 3)
    await first.kill()
    await once_taken_over(lambda: retry_step(other, run.run_id, "a"))
    ended = await other.end(run.run_id)
    assert (ended.state, len(ended.steps[0].attempts)) == (SUCCEEDED, 4)
    retried = [event for event in await other.events(run.run_id) if event.WhichOneof("kind") == "step_retried"]
    assert [event.step_retried.reason for event in retried] == ["the bank is back", "", ""]
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_a_run_in_which_nothing_waits_for_an_attempt_is_not_retried(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit({"steps": [step(contract, "a", {"gate": "a"}), step(contract, "b", after=["a"])]})
    await registered.arrived(text="a")
    assert (await refused(retry(baton, run.run_id))).reason == "RUN_ACTIVE"
    assert not (await retry_step(baton, run.run_id, "a")).reset, "it is being tried"
    turn = await refused(retry_step(baton, run.run_id, "b"))
    assert (turn.reason, "turn" in turn.text) == ("STEP_NOT_MENDABLE", True)
    registered.gates["a"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert "step_retried" not in kinds(await baton.events(run.run_id))


async def test_a_failure_that_nothing_has_followed_is_retried_over_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    first, second = await start_server(BATON_LEASE_SECONDS="1"), await start_server(BATON_LEASE_SECONDS="1")
    owner, other = connect(first), connect(second)
    await owner.register(name_of(lab), lab.address)
    run = await failed_while_paused(owner, lab)
    dry = await retry_step(other, run.run_id, "pay", validate_only=True)
    assert list(dry.reset) == ["pay", "refund", "ship"]
    await retry_step(other, run.run_id, "pay")
    await first.kill()
    await once_taken_over(lambda: resume(other, run.run_id))
    ended = await other.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert lab.contract.unpack("Result", ended.output).text == "pay"
    assert step_of(ended, "refund").state == run_pb2.STEP_STATE_SKIPPED
    assert ended.round == 1
    keys = [note.key for note in lab.arrivals() if note.step == "pay"]
    assert len(set(keys)) == len(keys) == 2, "who keeps answers does not give the failure again"
    runs = await invariants.read_runs(database)
    assert not invariants.journal_faults(runs)


async def test_steps_that_followed_a_failure_stand_in_its_way(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(handled(contract))
    registered.gates["pay"].set()
    await registered.arrived(text="refund")
    output = contract.pack("Result", {"text": "cash"})
    for call in (retry_step(baton, run.run_id, "pay"), skip(baton, run.run_id, "pay", output=output)):
        error = await refused(call)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STEPS_IN_THE_WAY")
        assert "has begun: refund." in error.text
    await baton.cancel(run.run_id)
    assert list((await retry_step(baton, run.run_id, "pay")).reset) == ["pay", "refund", "ship"]
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).text) == (SUCCEEDED, "pay")


async def test_an_output_takes_the_place_of_a_failure_while_the_run_goes_on(
    baton: Baton, registered: LabWorker
) -> None:
    contract = registered.contract
    run = await failed_while_paused(baton, registered)
    wrong = await refused(skip(baton, run.run_id, "pay", output=contract.pack("Task", {"text": "cash"})))
    assert wrong.reason == "SUBSTITUTE_INVALID"
    await skip(baton, run.run_id, "pay", output=contract.pack("Result", {"text": "cash"}))
    await resume(baton, run.run_id)
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).text) == (SUCCEEDED, "cash")
    assert (step_of(ended, "pay").substituted_by, step_of(ended, "pay").HasField("failure")) == (ended.principal, False)
    assert not registered.arrivals("refund")


async def test_while_a_run_is_undone_only_its_undo_calls_are_tried(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    undo = {
        "method": contract.method("Lab/Do"),
        "request": {"text": {"literal": "back"}, "conduct": {"literal": {"failures": 1}}},
        "retry": LATER,
    }
    steps = [step(contract, "a", undo=undo), step(contract, "b", {"failures": 9, "code": 9}, after=["a"])]
    run = await baton.submit({"steps": steps})
    await registered.arrived(text="back")
    await baton.waiting(run.run_id, "a/undo", run_pb2.WAIT_KIND_BACKOFF)
    for call in (retry_step(baton, run.run_id, "b"), skip(baton, run.run_id, "b"), retry(baton, run.run_id)):
        error = await refused(call)
        assert error.reason == "RUN_ACTIVE"
    await retry_step(baton, run.run_id, "a/undo")
    assert (await baton.end(run.run_id)).state == FAILED
    assert len(registered.arrivals("back")) == 2


async def test_many_runs_in_backoff_are_tried_now(baton: Baton, registered: LabWorker) -> None:
    workspace = registered.contract.package
    workflow = {"steps": [step(registered.contract, "a", {"failures": 1}, retry=LATER)]}
    runs = [await baton.submit(workflow, workspace=workspace) for _ in range(3)]
    for run in runs:
        await until_backoff(baton, run.run_id, 1)
    mend = run_service_pb2.MendRunsRequest(filter=f'workspace = "{workspace}" AND state = RUNNING')
    mend.retry.SetInParent()
    answer = await baton.runs.MendRuns(mend, timeout=30)
    assert (answer.mended, answer.refused) == (3, 0)
    assert {(await baton.end(run.run_id)).state for run in runs} == {SUCCEEDED}
