"""Mending over real sockets: runs that are reopened in another round, whatever replica is asked, and after kill -9."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.test_step_kinds import given, mapped, undone
from tests.acceptance.wire import Baton, eventually, kinds, refused, step_of

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


async def test_a_map_runs_only_the_items_that_failed(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    bad = "item.number % 20 == 3"
    workflow = mapped(contract, max_parallel=50, max_failed=2)
    workflow["steps"][0]["request"]["conduct"] = {
        "message": {
            "fields": {
                "failures": {"expression": f"{bad} ? 1 : 0"},
                "code": {"literal": 9},
                "gate": {"expression": f"{bad} ? 'bad' : ''"},
            }
        }
    }
    run = await baton.submit(workflow, given(contract, 50))
    good = [number for number in range(50) if number % 20 != 3]
    await baton_steps(baton, run.run_id, *(f"each/{number}" for number in good))
    registered.gates["bad"].set()
    assert (await baton.end(run.run_id)).failure.reason == "ITEMS_FAILED"
    assert list((await retry(baton, run.run_id)).reset) == ["each", "sum"]
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert contract.unpack("Result", ended.output).text == "".join(str(number) for number in range(50))
    assert all(len(registered.arrivals(str(number))) == 1 for number in good)
    assert [len(registered.arrivals(str(number))) for number in (3, 23, 43)] == [2, 2, 2]


async def test_what_was_taken_back_is_done_again(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(undone(registered.contract, {"failures": 1, "code": 9}))
    assert run.state == FAILED
    assert list((await retry(baton, run.run_id)).reset) == ["book", "pay", "ship"]
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    texts = [note.text for note in registered.arrivals()]
    assert texts == ["book", "pay", "ship", "undo pay", "undo book", "book", "pay", "ship"]
    assert [step.step for step in ended.steps] == ["book", "pay", "ship"], "no undo call of this round"


async def retry_step(baton: Baton, run_id: str, step: str, **fields: Any) -> run_service_pb2.RetryStepResponse:
    request = run_service_pb2.RetryStepRequest(run_id=run_id, step=step, **fields)
    answer = await baton.runs.RetryStep(request, timeout=20, wait_for_ready=True)
    assert isinstance(answer, run_service_pb2.RetryStepResponse)
    return answer


async def test_an_undo_call_that_failed_is_made_once_more(baton: Baton, registered: LabWorker) -> None:
    workflow = undone(registered.contract, {"failures": 1, "code": 9, "reason": "NO_SHIP"})
    workflow["steps"][1]["undo"]["request"]["conduct"] = {"literal": {"failures": 1, "code": 9}}
    workflow["steps"][1]["undo"]["retry"] = {"max_attempts": 1}
    run = await baton.run(workflow)
    assert step_of(run, "pay/undo").state == run_pb2.STEP_STATE_FAILED
    assert not (await retry_step(baton, run.run_id, "pay/undo")).reset
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.failure.reason, ended.round) == (FAILED, "NO_SHIP", 2)
    assert step_of(ended, "pay/undo").state == run_pb2.STEP_STATE_SUCCEEDED
    assert [note.text for note in registered.arrivals()][-2:] == ["undo book", "undo pay"]
    refusal = await refused(retry_step(baton, run.run_id, "pay/undo"))
    assert refusal.reason == "STEP_NOT_MENDABLE"
    assert list((await retry(baton, run.run_id)).reset) == ["book", "pay", "ship"]
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_step_that_succeeded_is_run_again_with_what_depends_on_it(baton: Baton, registered: LabWorker) -> None:
    run = await failed_order(baton, registered)
    assert list((await retry_step(baton, run.run_id, "book")).reset) == ["book", "pay", "ship"]
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert [len(registered.arrivals(text)) for text in ("book", "pay", "note")] == [2, 2, 1]
    assert (await refused(retry_step(baton, run.run_id, "nobody"))).reason == "RUN_SUCCEEDED"


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


async def test_a_run_goes_on_with_another_input(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(greeting(contract, {"path": "input.text"}), contract.pack("Task", {"text": "ann"}))
    wrong = await refused(retry(baton, run.run_id, input=contract.pack("Result", {"text": "bob"})))
    assert (wrong.reason, list(wrong.paths)) == ("INPUT_INVALID", ["input"])
    await retry(baton, run.run_id, input=contract.pack("Task", {"text": "bob"}))
    ended = await baton.end(run.run_id)
    assert contract.unpack("Result", ended.output).text == "bob"
    assert contract.unpack("Task", ended.input).text == "bob"
    assert [note.text for note in registered.arrivals()] == ["ann", "ann", "bob"], "what succeeded is kept"


async def test_a_run_goes_on_with_another_revision(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, f"greeting-{registered.contract.package[-8:].replace('.', '-')}"
    await baton.apply(greeting(contract, {"path": "input.text"}, name=name))
    run = await baton.run(name, contract.pack("Task", {"text": "ann"}))  # type: ignore[arg-type]
    other = greeting(contract, {"expression": "'hello ' + steps.look.output.text"}, name=name)
    revision = (await baton.apply(other)).revision
    unfit = greeting(contract, {"path": "input.text"}, name=name)
    unfit["steps"][0] = {"id": "look", "sleep": {"duration": {"literal": "1s"}}}
    worse = (await baton.apply(unfit)).revision
    refusal = await refused(retry(baton, run.run_id, revision=worse))
    assert (refusal.reason, list(refusal.paths)) == ("REVISION_INCOMPATIBLE", ["steps.look.output"])
    assert (await refused(retry(baton, run.run_id, revision="0" * 16))).reason == "REVISION_NOT_FOUND"
    inputless = greeting(contract, {"literal": "hello"}, name=name)
    inputless["steps"][0]["request"] = {"text": {"literal": "look"}}
    del inputless["input_type"]
    refusal = await refused(retry(baton, run.run_id, revision=(await baton.apply(inputless)).revision))
    assert (refusal.reason, list(refusal.paths)) == ("REVISION_INCOMPATIBLE", ["input"])
    assert "go on with a revision that takes a" in refusal.text
    answer = await retry(baton, run.run_id, revision=revision)
    assert (answer.run.revision, list(answer.reset)) == (revision, ["greet"])
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.revision) == (SUCCEEDED, revision)
    assert contract.unpack("Result", ended.output).text == "hello ann"
    assert len(registered.arrivals("ann")) == 2


async def skip(baton: Baton, run_id: str, step: str, **fields: Any) -> run_service_pb2.SkipStepResponse:
    request = run_service_pb2.SkipStepRequest(run_id=run_id, step=step, **fields)
    answer = await baton.runs.SkipStep(request, timeout=20, wait_for_ready=True)
    assert isinstance(answer, run_service_pb2.SkipStepResponse)
    return answer


async def test_an_output_is_given_in_the_place_of_a_failed_step(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await failed_order(baton, registered)
    wrong = await refused(skip(baton, run.run_id, "pay", output=contract.pack("Task", {"text": "cash"})))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SUBSTITUTE_INVALID")
    needed = await refused(skip(baton, run.run_id, "pay"))
    assert (needed.reason, list(needed.paths)) == ("OUTPUT_NEEDED", ['steps[3].request["text"]'])
    kept = await refused(skip(baton, run.run_id, "book", output=contract.pack("Result", {"text": "cash"})))
    assert kept.reason == "STEP_NOT_MENDABLE"
    await skip(baton, run.run_id, "pay", output=contract.pack("Result", {"text": "cash"}))
    ended = await baton.end(run.run_id)
    assert (ended.state, step_of(ended, "pay").substituted_by) == (SUCCEEDED, ended.principal)
    assert contract.unpack("Result", ended.output).text == "bookcashnote"
    assert len(registered.arrivals("pay")) == 1


async def test_a_step_of_a_run_that_goes_on_is_ended_in_its_place(baton: Baton, registered: LabWorker) -> None:
    contract, do = registered.contract, registered.contract.method("Lab/Do")
    hang = {"text": {"literal": "hang"}, "conduct": {"literal": {"hang": True}}}
    run = await baton.submit(
        {
            "steps": [
                {"id": "hang", "method": do, "request": hang},
                {"id": "wait", "wait_signal": {"signal": "go", "type": contract.type("Result")}},
                {"id": "last", "method": do, "after": ["hang", "wait"]},
            ]
        }
    )
    await registered.arrived(text="hang")
    await skip(baton, run.run_id, "hang", reason="takes too long")
    await skip(baton, run.run_id, "wait", output=contract.pack("Result", {"text": "gone"}))
    ended = await baton.end(run.run_id)
    states = [step.state for step in ended.steps]
    assert states == [run_pb2.STEP_STATE_SKIPPED, run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_SUCCEEDED]
    await registered.noted(lambda notes: any(note.what == "cancelled" and note.text == "hang" for note in notes))


async def test_a_fork_takes_over_what_its_step_does_not_touch(baton: Baton, registered: LabWorker) -> None:
    run = await failed_order(baton, registered)
    request = run_service_pb2.ForkRunRequest(run_id=run.run_id, step="pay", request_id=f"fork-{run.run_id}")
    answer = await baton.runs.ForkRun(request, timeout=20)
    assert list(answer.kept) == ["book", "note"]
    ended = await baton.end(answer.run.run_id)
    assert (ended.forked_run_id, ended.forked_step) == (run.run_id, "pay")
    assert (ended.state, ended.failure.step) == (FAILED, "pay"), "its attempts are its own"
    assert step_of(ended, "book").substituted_by == f"run {run.run_id}"
    assert [len(registered.arrivals(text)) for text in ("book", "pay", "note")] == [1, 2, 1]
    again = await baton.runs.ForkRun(request, timeout=20)
    assert (again.existing, again.run.run_id) == (True, ended.run_id)
    await retry(baton, ended.run_id)
    assert (await baton.end(ended.run_id)).state == SUCCEEDED
    assert (await baton.get(run.run_id)).state == FAILED, "the run that it comes from stays as it is"


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


async def test_no_attempt_of_a_paused_run_starts(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(chain(registered.contract))
    await registered.arrived(text="first")
    assert (await pause(baton, run.run_id, reason="night")).paused
    assert (await pause(baton, run.run_id)).paused, "it may be repeated"
    registered.gates["go"].set()
    reason = await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)
    assert "ResumeRun" in reason.message
    assert step_of(await baton.get(run.run_id), "first").state == run_pb2.STEP_STATE_SUCCEEDED
    assert not registered.arrivals("second")
    assert not (await resume(baton, run.run_id)).paused
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    told = kinds(await baton.events(run.run_id))
    assert [kind for kind in told if kind in ("run_paused", "run_resumed")] == ["run_paused", "run_resumed"]
    assert (await refused(pause(baton, run.run_id))).reason == "RUN_ENDED"


async def test_a_paused_run_stays_so_over_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(chain(lab.contract))
    await lab.arrived(text="first")
    await pause(baton, run.run_id)
    lab.gates["go"].set()
    await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)
    await server.kill()
    await server.start()
    await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)
    assert not lab.arrivals("second")
    other = connect(await start_server(BATON_LEASE_SECONDS="1"))

    async def resumed() -> bool:
        try:
            await resume(other, run.run_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # The lease of the one that was killed may go on.
                raise
            return False
        return True

    await eventually(resumed)
    assert (await other.end(run.run_id)).state == SUCCEEDED
    assert len(lab.arrivals("second")) == 1
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_a_run_is_reopened_at_any_replica_and_after_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    first, second = await start_server(BATON_LEASE_SECONDS="1"), await start_server(BATON_LEASE_SECONDS="1")
    owner, other = connect(first), connect(second)
    await owner.register(name_of(lab), lab.address)
    run = await failed_order(owner, lab)
    lab.gates["pay"].clear()
    await retry(other, run.run_id)
    await lab.arrived(2, text="pay")
    assert (await refused(retry(owner, run.run_id))).reason == "RUN_ACTIVE"
    await second.kill()
    lab.gates["pay"].set()
    ended = await owner.end(run.run_id)
    assert (ended.state, ended.round) == (SUCCEEDED, 2)
    assert len(lab.arrivals("book")) == 1
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_of_many_who_reopen_a_run_one_does(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    batons = [connect(await start_server()) for _ in range(2)]
    await batons[0].register(name_of(lab), lab.address)
    run = await failed_order(batons[0], lab)
    calls = [retry(batons[number % 2], run.run_id, round=1) for number in range(8)]
    answers = await asyncio.gather(*calls)
    assert {answer.run.round for answer in answers} == {2}
    ended = await batons[1].end(run.run_id)
    assert ended.state == SUCCEEDED
    assert kinds(await batons[0].events(run.run_id)).count("run_reopened") == 1
    assert len(lab.arrivals("pay")) == 2
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_many_runs_are_mended_by_a_filter(baton: Baton, registered: LabWorker) -> None:
    contract, do = registered.contract, registered.contract.method("Lab/Do")
    request = {"conduct": {"literal": {"failures": 1, "code": 9}}}
    workflow = {"steps": [{"id": "a", "method": do, "request": request}]}
    workspace = contract.package
    runs = [await baton.run(workflow, workspace=workspace) for _ in range(5)]
    fine = await baton.run({"steps": [{"id": "a", "method": do}]}, workspace=workspace)
    assert {run.state for run in runs} == {FAILED}
    mend = run_service_pb2.MendRunsRequest(filter=f'workspace = "{workspace}"', page_size=4, validate_only=True)
    mend.retry.SetInParent()
    dry = await baton.runs.MendRuns(mend, timeout=30)
    assert (dry.matched, dry.mended, dry.refused) == (4, 3, 1)
    assert [refusal.run_id for refusal in dry.refusals] == [fine.run_id]
    assert dry.refusals[0].status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert {(await baton.get(run.run_id)).round for run in runs} == {1}, "nothing was changed"
    mend.validate_only = False
    first = await baton.runs.MendRuns(mend, timeout=30)
    other = run_service_pb2.MendRunsRequest()
    other.CopyFrom(mend)
    other.page_token, other.reason = first.next_page_token, "other"
    assert (await refused(baton.runs.MendRuns(other, timeout=30))).reason == "INVALID_PAGE_TOKEN"
    mend.page_token = first.next_page_token
    second = await baton.runs.MendRuns(mend, timeout=30)
    assert (first.mended + second.mended, second.next_page_token) == (5, "")
    assert {(await baton.end(run.run_id)).state for run in runs} == {SUCCEEDED}


async def test_a_step_of_many_runs_is_retried_and_many_are_forked(baton: Baton, registered: LabWorker) -> None:
    me, do = registered.contract.package, registered.contract.method("Lab/Do")
    request = {"conduct": {"literal": {"failures": 1, "code": 9}}}
    steps = [{"id": "first", "method": do}, {"id": "a", "method": do, "after": ["first"], "request": request}]
    runs = [await baton.run({"steps": steps}, workspace=me, client_id=me) for _ in range(2)]
    mend = run_service_pb2.MendRunsRequest(filter=f'client_id = "{me}"')
    mend.retry_step.step = "a"
    answer = await baton.runs.MendRuns(mend, timeout=30)
    assert (answer.mended, answer.refused) == (2, 0)
    assert {(await baton.end(run.run_id)).state for run in runs} == {SUCCEEDED}

    async def forks() -> list[run_pb2.Run]:
        found = await baton.runs.ListRuns(run_service_pb2.ListRunsRequest(filter=f'workspace = "{me}"'))
        shown = [await baton.get(run.run_id) for run in found.runs]
        return [run for run in shown if run.forked_step == "a"]

    mend.fork.step, mend.fork.request_id, mend.validate_only = "a", "again", True
    assert (await baton.runs.MendRuns(mend, timeout=30)).mended == 2
    assert await forks() == []
    mend.validate_only = False
    for _ in range(2):  # The second time each fork is there already.
        assert (await baton.runs.MendRuns(mend, timeout=30)).mended == 2
        assert sorted(run.forked_run_id for run in await forks()) == sorted(run.run_id for run in runs)
    mend.fork.step = "nothing"
    refusals = (await baton.runs.MendRuns(mend, timeout=30)).refusals
    assert [refusal.status.code for refusal in refusals] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2


async def test_many_runs_are_paused_where_they_are_driven(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    owner, other = connect(await start_server()), connect(await start_server())
    await owner.register(name_of(lab), lab.address)
    runs = [await baton.submit(chain(lab.contract)) for baton in (owner, other, owner)]
    await lab.arrived(3, text="first")
    request = run_service_pb2.MendRunsRequest(filter="state = RUNNING")
    request.pause.SetInParent()
    answer = await other.runs.MendRuns(request, timeout=30)
    assert (answer.mended, list(answer.refusals)) == (3, [])
    assert sorted(answer.mended_run_ids) == sorted(run.run_id for run in runs)
    assert all([(await owner.get(run.run_id)).paused for run in runs])


async def test_the_end_of_each_round_is_told_to_those_who_watch_many(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    owner, other = connect(await start_server()), connect(await start_server())
    await owner.register(name_of(lab), lab.address)
    watch = other.runs.WatchRuns(run_service_pb2.WatchRunsRequest(), timeout=60)
    await watch.read()
    run = await failed_order(owner, lab)
    told = []
    while not told or told[-1].state == FAILED:
        told += (await watch.read()).runs
        if told and told[-1].round == 1:
            await retry(owner, run.run_id, round=1)
    assert [(each.run_id, each.state, each.round) for each in told[-1:]] == [(run.run_id, SUCCEEDED, 2)]


async def test_a_paused_run_is_parked(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.2")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(chain(lab.contract))
    await lab.arrived(text="first")
    await pause(baton, run.run_id)
    lab.gates["go"].set()

    async def parked() -> bool:
        return not (await invariants.read_runs(database))[run.run_id].owned

    await eventually(parked)
    assert (await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)).message
    await resume(baton, run.run_id)
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_another_revision_and_input_stay_over_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    contract, name = lab.contract, "greeting"
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    await baton.apply(greeting(contract, {"path": "input.text"}, name=name))
    run = await baton.run(name, contract.pack("Task", {"text": "ann"}))  # type: ignore[arg-type]
    other = greeting(contract, {"expression": "input.text + steps.look.output.text"}, name=name)
    other["steps"][1]["request"]["conduct"] = {"literal": {"gate": "late"}}
    other["steps"].insert(
        0, {"id": "new", "method": contract.method("Lab/Do"), "request": {"text": {"literal": "new"}}}
    )
    revision = (await baton.apply(other)).revision
    await retry(baton, run.run_id, revision=revision, input=contract.pack("Task", {"text": "bob"}))
    await lab.arrived(text="bobann")
    await lab.noted(lambda notes: any(note.what == "answered" and note.text == "new" for note in notes))
    await server.kill()
    await server.start()
    lab.gates["late"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.revision) == (SUCCEEDED, revision)
    assert [step.step for step in ended.steps] == ["new", "look", "greet"]
    assert contract.unpack("Result", ended.output).text == "bobann"
    assert [note.text for note in lab.arrivals()].count("ann") == 2, "what was kept was not called again"
    assert not invariants.journal_faults(await invariants.read_runs(database))
