"""People decide on requests: approve, deny, expire; who may; once; at any replica; with the owner killed."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any

import grpc
import pytest
from baton.v1 import approval_pb2, run_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import STEADY, LabProcess
from tests.acceptance.test_parking import all_parked
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import Baton, Refusal, eventually, kinds, refused, step_of

SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED
NOT_FOUND, DENIED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED
CHANGED = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def transport() -> str:
    """What is decided does not depend on how the call then goes out."""
    return "unary"


def asking(contract: Contract, rule: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A workflow with a step that a person approves."""
    conduct = fields.pop("conduct", {})
    request = {"text": {"literal": "pay 40"}, "number": {"literal": "40"}, "conduct": {"literal": conduct}}
    step = {"id": "pay", "method": contract.method("Lab/Do"), "request": request, "approval": rule or {}, **fields}
    return {
        "output_type": contract.type("Result"),
        "steps": [step],
        "whole_output": {"path": "steps.pay.output"},
        "run_timeout": "600s",
    }


def told(refusal: Refusal) -> tuple[grpc.StatusCode, str]:
    return refusal.code, refusal.reason


async def test_an_approved_request_is_called_with(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    rule = {"description": "more than a day's wage", "timeout": "60s", "approvers": ["ada", "grace"]}
    run = await baton.submit(asking(contract, rule))
    approval = await baton.asks(run.run_id, "pay")
    assert (approval.run_id, approval.step, approval.workflow) == (run.run_id, "pay", "")
    assert (approval.method, approval.description) == (contract.method("Lab/Do"), "more than a day's wage")
    assert (approval.principal, list(approval.approvers)) == ("anonymous", ["ada", "grace"])
    assert contract.unpack("Task", approval.request).number == 40
    hashed = hashlib.sha256(approval.method.encode() + b"\0" + approval.request.value).hexdigest()
    assert approval.request_hash == hashed
    assert 59 < approval.expire_time.ToSeconds() - approval.create_time.ToSeconds() <= 60
    step = step_of(await baton.get(run.run_id), "pay")
    assert (step.state, step.request_hash) == (run_pb2.STEP_STATE_WAITING, hashed)
    assert step.wait_reason.kind == run_pb2.WAIT_KIND_APPROVAL
    assert step.wait_reason.until_time == approval.expire_time
    assert registered.arrivals() == [], "nobody approved it yet"

    decided = await baton.decide(approval, by="ada", reason="it is due")
    assert decided.step == "pay"
    assert decided.state != run_pb2.STEP_STATE_WAITING
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).number) == (SUCCEEDED, 41)
    assert [note.text for note in registered.arrivals()] == ["pay 40"]
    events = await baton.events(run.run_id)
    assert kinds(events)[1:4] == ["approval_requested pay", "approval_decided pay", "attempt_started pay"]
    entry = events[2].approval_decided
    assert (entry.approved, entry.principal, entry.reason, entry.request_hash) == (True, "ada", "it is due", hashed)
    assert await baton.asked(run.run_id) == []


async def test_a_denied_request_is_never_called_with(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract))
    step = await baton.decide(await baton.asks(run.run_id, "pay"), False, by="ada", reason="too much")
    assert (step.state, step.failure.reason) == (run_pb2.STEP_STATE_FAILED, "APPROVAL_DENIED")
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.failure.reason, ended.failure.step) == (FAILED, "APPROVAL_DENIED", "pay")
    assert ended.failure.message == "step pay failed: ada denied the request: too much"
    assert registered.arrivals() == []


async def test_a_run_goes_on_by_a_branch_for_what_is_denied(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    definition = asking(contract, on_failure=[{"reasons": ["APPROVAL_DENIED"], "step": "tell"}])
    request = {"text": {"literal": "told"}}
    definition["steps"].append({"id": "tell", "method": contract.method("Lab/Do"), "request": request})
    del definition["whole_output"], definition["output_type"]
    run = await baton.submit(definition)
    await baton.decide(await baton.asks(run.run_id, "pay"), False, by="ada")
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert [note.text for note in registered.arrivals()] == ["told"]


async def test_nobody_decides_in_time(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract, {"timeout": "0.3s"}))
    waited = (await baton.events(run.run_id))[1]
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.failure.reason) == (FAILED, "APPROVAL_EXPIRED")
    failed = (await baton.events(run.run_id))[2]
    assert failed.time.ToMicroseconds() >= waited.approval_requested.expire_time.ToMicroseconds()
    late = approval_pb2.Approval(run_id=run.run_id, step="pay", request_hash=waited.approval_requested.request_hash)
    assert told(await refused(baton.decide(late, by="ada"))) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
    assert registered.arrivals() == []


async def test_a_decision_on_another_request_changes_nothing(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract))
    approval = await baton.asks(run.run_id, "pay")
    refusal = await refused(baton.decide(approval, by="ada", request_hash="0" * 64))
    assert told(refusal) == (CHANGED, "APPROVAL_CHANGED")
    assert refusal.metadata["request_hash"] == approval.request_hash
    for malformed in ("", "0" * 63, "g" * 64, approval.request_hash.upper()):
        refusal = await refused(baton.decide(approval, by="ada", request_hash=malformed))
        assert (refusal.reason, list(refusal.paths)) == ("INVALID_REQUEST", ["request_hash"])
    assert len(await baton.events(run.run_id)) == 2
    await baton.decide(approval, by="ada")
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_who_submitted_does_not_decide_nor_who_is_not_asked(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract, {"approvers": ["anonymous", "grace"]}))
    approval = await baton.asks(run.run_id, "pay")
    refusal = await refused(baton.decide(approval))
    assert told(refusal) == (DENIED, "APPROVER_NOT_ALLOWED")
    assert "submitted" in refusal.text
    refusal = await refused(baton.decide(approval, by="ada"))
    assert told(refusal) == (DENIED, "APPROVER_NOT_ALLOWED")
    assert "grace" in refusal.text
    assert len(await baton.events(run.run_id)) == 2
    await baton.decide(approval, by="grace")
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_request_is_decided_on_once(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract, conduct={"gate": "open"}))
    approval = await baton.asks(run.run_id, "pay")
    answers = await asyncio.gather(
        *(baton.decide(approval, number % 2 == 0, by=f"p{number}") for number in range(20)), return_exceptions=True
    )
    taken = [number for number, answer in enumerate(answers) if isinstance(answer, run_pb2.RunStep)]
    assert len(taken) == 1
    for answer in answers:
        if isinstance(answer, grpc.aio.AioRpcError):
            assert told(Refusal(answer)) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
    by, approved = f"p{taken[0]}", taken[0] % 2 == 0
    for gate in (False, True):
        if gate:
            registered.gates["open"].set()
            await baton.end(run.run_id)
        again = await baton.decide(approval, approved, by=by)
        assert again == step_of(await baton.get(run.run_id, 1), "pay"), "the same decision is answered again"
        for other in (baton.decide(approval, not approved, by=by), baton.decide(approval, approved, by="eve")):
            assert told(await refused(other)) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
    assert [kind for kind in kinds(await baton.events(run.run_id)) if "decided" in kind] == ["approval_decided pay"]


async def test_what_waits_for_no_decision_is_not_decided(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    definition = asking(contract)
    hang = {"conduct": {"literal": {"hang": True}}}
    definition["steps"].append({"id": "plain", "method": contract.method("Lab/Do"), "request": hang})
    run = await baton.submit(definition)
    approval = await baton.asks(run.run_id, "pay")
    for step in ("plain", "nothing", "pay/0"):
        refusal = await refused(baton.decide(approval, by="ada", step=step))
        assert told(refusal) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
        assert refusal.metadata["step"] == step
    unknown = await refused(baton.decide(approval, by="ada", run_id="01890a5d-ac96-774b-bcce-b302099a8057"))
    assert told(unknown) == (NOT_FOUND, "RUN_NOT_FOUND")
    await baton.cancel(run.run_id)
    assert told(await refused(baton.decide(approval, by="ada"))) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
    assert await baton.asked(run.run_id) == []


async def test_every_attempt_is_made_with_what_was_approved(baton: Baton, registered: LabWorker) -> None:
    policy = {"max_attempts": 3, "initial_backoff": "0.01s"}
    run = await baton.submit(asking(registered.contract, conduct={"failures": 2, "code": 10}, retry=policy))
    await baton.decide(await baton.asks(run.run_id, "pay"), by="ada")
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert [note.text for note in registered.arrivals()] == ["pay 40"] * 3
    assert len([kind for kind in kinds(await baton.events(run.run_id)) if kind.startswith("approval")]) == 2


async def test_who_submitted_the_parent_does_not_decide_in_the_child(baton: Baton, registered: LabWorker) -> None:
    name = f"approved-{name_of(registered)}"
    await baton.apply({"name": name, **asking(registered.contract)})
    run = await baton.submit({"steps": [{"id": "sub", "run_workflow": {"workflow": name}}]})

    async def child() -> str:
        return step_of(await baton.get(run.run_id), "sub").child_run_id

    approval = await baton.asks(await eventually(child), "pay")
    assert (approval.workflow, approval.principal) == (name, "anonymous")
    assert told(await refused(baton.decide(approval))) == (DENIED, "APPROVER_NOT_ALLOWED")
    await baton.decide(approval, by="ada")
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_principals_are_names(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(asking(registered.contract))
    approval = await baton.asks(run.run_id, "pay")
    for wrong in ("x" * 129, " "):
        refusal = await refused(baton.decide(approval, by=wrong))
        assert (refusal.reason, list(refusal.paths)) == ("INVALID_REQUEST", ['metadata["baton-principal"]'])
    await baton.decide(approval, by="Ada Lovelace <ada@example.org>")
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_decisions_are_taken_at_every_replica_and_lists_are_whole(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    servers = [await start_server(**STEADY), await start_server(**STEADY)]
    one, two = (connect(server) for server in servers)
    await one.register(name_of(lab), lab.address)
    definition = asking(lab.contract)

    async def known() -> str:
        return (await two.submit(definition)).run_id

    mine = [(await one.submit(definition)).run_id for _ in range(5)]
    yours = [await eventually(known) for _ in range(5)]
    for run_id in mine + yours:
        await one.asks(run_id, "pay")
    for baton in (one, two):
        for page_size in (0, 3, 10):
            assert [each.run_id for each in await baton.asked(page_size=page_size)] == mine + yours
    approvals = await one.asked()
    await asyncio.gather(*(two.decide(each, by="ada") for each in approvals[:5]))
    await asyncio.gather(*(one.decide(each, False, by="ada") for each in approvals[5:]))
    assert {(await one.end(run_id)).state for run_id in mine} == {SUCCEEDED}
    assert {(await one.end(run_id)).failure.reason for run_id in yours} == {"APPROVAL_DENIED"}
    refusal = await refused(two.decide(approvals[0], False, by="ada"))
    assert told(refusal) == (NOT_FOUND, "APPROVAL_NOT_FOUND")
    assert await two.asked() == []
    stored = await invariants.read_runs(servers[0].dsn)
    assert {run.epoch for run in stored.values()} == {1}, "a run changed hands"
    assert not invariants.journal_faults(stored)
    assert not invariants.call_faults(stored, lab.notes)


async def test_a_request_waits_on_after_kill_9_of_its_owner(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    dying, heir = await start_server(), await start_server()
    owner, other = connect(dying), connect(heir)
    await owner.register(name_of(lab), lab.address)
    run = await owner.submit(asking(lab.contract))
    approval = await owner.asks(run.run_id, "pay")
    await dying.kill()
    assert await other.asked() == [approval]
    refusals: list[str] = []

    async def decided() -> bool:
        try:
            await other.decide(approval, by="ada")
        except grpc.aio.AioRpcError as error:
            refusals.append(Refusal(error).reason)
            return False
        return True

    await eventually(decided)
    assert set(refusals) <= {"OWNER_UNAVAILABLE"}
    assert (await other.end(run.run_id)).state == SUCCEEDED
    assert [note.text for note in lab.arrivals()] == ["pay 40"]
    stored = await invariants.read_runs(heir.dsn)
    assert not invariants.journal_faults(stored)
    assert not invariants.call_faults(stored, lab.notes)


async def test_an_approved_request_is_called_with_after_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    await lab.say_serving(False)
    run = await baton.submit(asking(lab.contract))
    approval = await baton.asks(run.run_id, "pay")
    await baton.waiting(run.run_id, "pay", run_pb2.WAIT_KIND_APPROVAL)
    step = await baton.decide(approval, by="ada")
    await server.kill()
    await server.start()
    again = connect(server)
    assert step_of(await again.get(run.run_id), "pay").state in (step.state, run_pb2.STEP_STATE_READY)
    assert await again.asked() == []
    await lab.say_serving(True)
    ended = await again.end(run.run_id)
    assert (ended.state, lab.contract.unpack("Result", ended.output).number) == (SUCCEEDED, 41)
    stored = await invariants.read_runs(server.dsn)
    assert [invariants.kind(event) for event in stored[run.run_id].of_step("pay")].count("approval_decided") == 1
    assert not invariants.journal_faults(stored)
    assert not invariants.call_faults(stored, lab.notes)


async def test_time_goes_on_while_no_server_runs(start_server: StartServer, connect: Connect, lab: LabWorker) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(asking(lab.contract, {"timeout": "1s"}))
    approval = await baton.asks(run.run_id, "pay")
    await server.kill()
    await invariants.passed(server.dsn, approval.expire_time)
    await server.start()
    again = connect(server)
    assert await again.asked() == []
    ended = await again.end(run.run_id)
    assert (ended.state, ended.failure.reason) == (FAILED, "APPROVAL_EXPIRED")
    assert not lab.arrivals()


async def test_parked_runs_are_listed_and_decided_on(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.5")
    one, two = connect(server), connect(await start_server(BATON_PARK_SECONDS="0.5"))
    await one.register(name_of(lab), lab.address)
    run_ids = [(await one.submit(asking(lab.contract))).run_id for _ in range(3)]
    await all_parked(server.dsn, run_ids)
    approvals = await two.asked()
    assert [each.run_id for each in approvals] == run_ids
    await two.decide(approvals[0], by="ada")
    await one.decide(approvals[1], False, by="ada")
    assert (await one.end(run_ids[0])).state == SUCCEEDED
    assert (await two.end(run_ids[1])).failure.reason == "APPROVAL_DENIED"
    assert [each.run_id for each in await one.asked()] == run_ids[2:]
    assert not invariants.journal_faults(await invariants.read_runs(server.dsn))


async def test_decisions_outlive_kills_and_nothing_denied_is_called(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    servers = [await start_server(BATON_PARK_SECONDS="0.2") for _ in range(2)]
    batons = [connect(server) for server in servers]
    await batons[0].register("lab", lab_process.address)
    definition = asking(contract, {"approvers": ["ada", "grace"]})
    run_ids = [(await batons[0].submit(definition, request_id=f"request-{number}")).run_id for number in range(40)]
    asked: dict[str, approval_pb2.Approval] = {}
    verdicts: dict[str, bool] = {}
    refusals: set[grpc.StatusCode] = set()
    queue = list(enumerate(run_ids))

    async def decide(baton: Baton, run_id: str, approved: bool) -> bool:
        try:
            if run_id not in asked:
                asked[run_id] = await baton.asks(run_id, "pay")
            await baton.decide(asked[run_id], approved, by="ada")
        except grpc.aio.AioRpcError as error:
            refusals.add(error.code())
            return False
        return True

    async def decide_some() -> None:
        while queue:
            number, run_id = queue.pop(0)
            approved = number % 3 > 0
            # What was lost on its way is sent again, and is the same decision.
            await eventually(partial(decide, batons[number % 2], run_id, approved), 60)
            verdicts[run_id] = approved

    async def enough(count: int) -> bool:
        return len(verdicts) >= count

    async def kill_some() -> None:
        for number, server in enumerate((servers[0], servers[1], servers[0]), 1):
            await eventually(partial(enough, 10 * number), 60)
            await server.kill()
            await server.start()

    await asyncio.gather(kill_some(), *(decide_some() for _ in range(4)))
    assert len(verdicts) == 40
    assert refusals <= {grpc.StatusCode.UNAVAILABLE}
    for run_id, approved in verdicts.items():
        run = await batons[1].end(run_id)
        assert (run.state, run.failure.reason) == ((SUCCEEDED, "") if approved else (FAILED, "APPROVAL_DENIED"))
    stored = await invariants.read_runs(servers[0].dsn)
    assert not invariants.journal_faults(stored)
    assert not invariants.call_faults(stored, lab_process.notes())
    for run_id, approved in verdicts.items():
        events = [invariants.kind(event) for event in stored[run_id].of_step("pay")]
        assert events[:2] == ["approval_requested", "approval_decided"]
        assert events.count("approval_decided") == 1
        assert ("attempt_started" in events) is approved
    called = {note.run for note in lab_process.notes()}
    assert called == {run_id for run_id, approved in verdicts.items() if approved}
