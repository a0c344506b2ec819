"""Mending over real sockets: runs that are reopened in another round, by every verb."""

from __future__ import annotations

import grpc
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.mending import (
    FAILED,
    SUCCEEDED,
    baton_steps,
    chain,
    failed_order,
    greeting,
    order,
    pause,
    resume,
    retry,
    retry_step,
    skip,
)
from tests.acceptance.test_step_kinds import given, mapped, undone
from tests.acceptance.wire import Baton, kinds, refused, step_of


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
