"""Delegation: a running step adds steps to its own run. Here the tests speak for the worker that is held at a gate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2, step_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, kinds, refused, step_of

SUCCEEDED, FAILED, CANCELLED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED
STEP_SUCCEEDED, STEP_FAILED = run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_FAILED


def planner(contract: Contract, conduct: dict[str, Any] | None = None, **step: Any) -> dict[str, Any]:
    """A step `plan`, whose worker waits at the gate of that name, and `after` it one that depends on it."""
    do = contract.method("Lab/Do")
    request = {"text": {"literal": "plan"}, "conduct": {"literal": {"gate": "plan", **(conduct or {})}}}
    return {
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "plan", "method": do, "request": request, **step},
            {
                "id": "last",
                "method": do,
                "request": {"results": {"list": {"elements": [{"path": "steps.plan.output"}]}}},
            },
        ],
        "whole_output": {"path": "steps.last.output"},
    }


def task(contract: Contract, text: str = "child", **conduct: Any) -> Any:
    made = contract.of("Task")(text=text)
    for name, value in conduct.items():
        setattr(made.conduct, name, value)
    return made


async def test_a_running_step_delegates_and_gets_the_output(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    method = contract.method("Lab/Do")
    answer = await baton.delegate(token, "search", method, task(contract), wait_seconds=10)
    assert (answer.step.step, answer.step.state, answer.existing) == ("plan/search", STEP_SUCCEEDED, False)
    assert contract.unpack("Result", answer.step.output).text == "child"
    again = await baton.delegate(token, "search", method, task(contract), wait_seconds=10)
    assert (again.existing, again.step.output) == (True, answer.step.output)
    assert len(registered.arrivals("child")) == 1
    registered.gates["plan"].set()
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    child = step_of(ended, "plan/search")
    assert (child.parent, child.role) == ("plan", run_pb2.STEP_ROLE_DELEGATED)
    assert "step_delegated plan/search" in kinds(await baton.events(run.run_id))


async def test_a_key_stands_for_one_request(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    method = contract.method("Lab/Do")
    await baton.delegate(token, "search", method, task(contract), wait_seconds=10)
    other = await refused(baton.delegate(token, "search", method, task(contract, "other")))
    assert (other.code, other.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DELEGATION_CONFLICT")
    assert "search" in other.text
    reserved = await refused(baton.delegate(token, "undo", method, task(contract)))
    assert (reserved.code, reserved.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    registered.gates["plan"].set()


async def test_a_request_is_the_same_in_whatever_order_its_fields_come(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    asked = step_service_pb2.DelegateRequest(step_token=token, key="search", method=contract.method("Lab/Do"))
    asked.request.Pack(contract.of("Task")(text="child", number=7))
    first = await baton.steps_of_workers.Delegate(asked, timeout=20)
    text, number = contract.of("Task")(text="child"), contract.of("Task")(number=7)
    asked.request.value = number.SerializeToString() + text.SerializeToString()
    again = await baton.steps_of_workers.Delegate(asked, timeout=20)
    assert (first.existing, again.existing) == (False, True)
    registered.gates["plan"].set()


async def test_what_is_delegated_is_checked(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    unknown = await refused(baton.delegate(token, "a", "nobody.v1.Service/Do", task(contract)))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "METHOD_NOT_SERVED")
    wrong = await refused(baton.delegate(token, "a", contract.method("Lab/Do"), contract.of("Result")(text="x")))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert contract.type("Task") in wrong.text
    forged = await refused(baton.delegate(token[:-3] + "AAA", "a", contract.method("Lab/Do"), task(contract)))
    assert (forged.code, forged.reason) == (grpc.StatusCode.UNAUTHENTICATED, "STEP_TOKEN_INVALID")
    registered.gates["plan"].set()


async def test_the_token_of_an_ended_attempt_is_worth_nothing(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    registered.gates["plan"].set()
    await baton.end(run.run_id)
    late = await refused(baton.delegate(token, "late", contract.method("Lab/Do"), task(contract)))
    assert (late.code, late.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STEP_NOT_RUNNING")


async def test_a_failure_is_the_parents_to_handle(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    answer = await baton.delegate(
        token, "bad", contract.method("Lab/Do"), task(contract, failures=9, code=9, reason="NOPE"), wait_seconds=10
    )
    assert (answer.step.state, answer.step.failure.reason) == (STEP_FAILED, "NOPE")
    registered.gates["plan"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_what_depends_on_the_parent_waits_for_what_it_handed_over(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    await baton.delegate(token, "later", contract.method("Lab/Do"), task(contract, gate="later"), detached=True)
    await registered.arrived(text="child")
    registered.gates["plan"].set()

    async def plan_ended() -> run_pb2.Run | None:
        seen = await baton.get(run.run_id)
        return seen if step_of(seen, "plan").state == STEP_SUCCEEDED else None

    seen = await eventually(plan_ended)
    assert seen is not None
    assert step_of(seen, "last").state == run_pb2.STEP_STATE_BLOCKED
    registered.gates["later"].set()
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    told = kinds(await baton.events(run.run_id))
    assert told.index("step_succeeded plan/later") < told.index("attempt_started last")


async def test_the_failure_of_what_was_handed_over_is_the_runs(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    bad = task(contract, failures=9, code=9, reason="NOPE")
    await baton.delegate(token, "bad", contract.method("Lab/Do"), bad, detached=True)
    registered.gates["plan"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.failure.reason, ended.failure.step) == (FAILED, "NOPE", "plan/bad")


async def test_what_was_not_handed_over_ends_with_the_parent(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract))
    token = (await registered.arrived(text="plan")).token
    await baton.delegate(token, "slow", contract.method("Lab/Do"), task(contract, hang=True))
    await registered.arrived(text="child")
    registered.gates["plan"].set()
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert step_of(ended, "plan/slow").state == run_pb2.STEP_STATE_CANCELLED
    await registered.noted(lambda notes: [note for note in notes if (note.what, note.text) == ("cancelled", "child")])


async def test_a_suspended_attempt_goes_on_when_its_step_has_ended(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(planner(contract, {"awaited": "slow"}, retry={"max_attempts": 1}))
    first = await registered.arrived(text="plan")
    method = contract.method("Lab/Do")
    await baton.delegate(first.token, "slow", method, task(contract, gate="slow"))
    await registered.arrived(text="child")
    registered.gates["plan"].set()
    reason = await baton.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_CHILD_STEPS)
    assert list(reason.steps) == ["plan/slow"]
    registered.gates["slow"].set()
    second = await registered.arrived(2, "plan")
    assert (first.attempt, second.attempt, first.key) == (1, 2, second.key)
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED, "a suspension uses up no retry"
    assert not step_of(ended, "plan").attempts[0].HasField("failure")


async def test_an_attempt_that_is_suspended_for_nothing_has_failed(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(planner(contract, {"gate": "", "awaited": "unknown"}, retry={"max_attempts": 1}))
    assert (run.state, run.failure.reason, run.failure.step) == (FAILED, "SUSPENDED", "plan")
    assert len(registered.arrivals("plan")) == 1


async def test_a_step_that_waits_for_its_own_gives_its_permit_back(baton: Baton, lab: LabWorker) -> None:
    contract = lab.contract
    await baton.register(name_of(lab), lab.address, max_in_flight=1)
    run = await baton.submit(planner(contract))
    token = (await lab.arrived(text="plan")).token
    answer = await baton.delegate(token, "one", contract.method("Lab/Do"), task(contract), wait_seconds=15)
    assert answer.step.state == STEP_SUCCEEDED
    lab.gates["plan"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_delegated_steps_survive_kill_9_of_the_server(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton, contract = connect(server), lab.contract
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(planner(contract))
    token = (await lab.arrived(text="plan")).token
    method = contract.method("Lab/Do")
    done = await baton.delegate(token, "done", method, task(contract), wait_seconds=10)
    waiting = asyncio.ensure_future(
        baton.delegate(token, "open", method, task(contract, "open", gate="open"), wait_seconds=30)
    )
    await lab.arrived(text="open")
    await server.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await waiting
    await server.start()
    # The attempt is delivered again, with a token of the new owner.
    token = (await lab.arrived(2, "plan")).token
    again = await baton.delegate(token, "done", method, task(contract), wait_seconds=10)
    assert (again.existing, again.step.output) == (True, done.step.output)
    assert len(lab.arrivals("child")) == 1
    lab.gates["open"].set()
    opened = await baton.delegate(token, "open", method, task(contract, "open", gate="open"), wait_seconds=15)
    assert (opened.existing, opened.step.state) == (True, STEP_SUCCEEDED)
    lab.gates["plan"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_the_output_of_a_delegated_step_is_told_once_it_is_durable(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="30")
    baton, contract = connect(server), lab.contract
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(planner(contract))
    token = (await lab.arrived(text="plan")).token
    method = contract.method("Lab/Do")
    await baton.delegate(token, "slow", method, task(contract, gate="slow"))
    await lab.arrived(text="child")
    asked = step_service_pb2.DelegateRequest(step_token=token, key="slow", method=method)
    asked.request.Pack(task(contract, gate="slow"))
    asked.wait_timeout.FromMilliseconds(1_500)
    connection = await asyncpg.connect(database)
    async with connection.transaction():
        await connection.execute("LOCK TABLE events IN SHARE MODE")  # Nothing can be journaled.
        asking = baton.steps_of_workers.Delegate(asked, timeout=3)
        lab.gates["slow"].set()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await asking
    await connection.close()
    assert refusal.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    answer = await baton.delegate(token, "slow", method, task(contract, gate="slow"), wait_seconds=15)
    assert answer.step.state == STEP_SUCCEEDED
    lab.gates["plan"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED
