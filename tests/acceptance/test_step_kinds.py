"""Maps, repeats, sleeps and undo calls over real sockets, with the server killed in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.v1 import run_pb2
from google.protobuf.duration_pb2 import Duration

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, kinds, refused, step_of

SUCCEEDED, FAILED, CANCELLED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED


def mapped(contract: Contract, conduct: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Calls for each result of the input, and adds up what that gives."""
    do = contract.method("Lab/Do")
    request = {
        "text": {"path": "item.text"},
        "number": {"path": "item.number"},
        "conduct": {"literal": conduct or {}},
    }
    items = {"items": {"path": "input.results"}, **settings}
    return {
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "each", "method": do, "request": request, "map": items, "retry": {"max_attempts": 1}},
            {"id": "sum", "method": do, "request": {"results": {"path": "steps.each.output.items"}}},
        ],
        "whole_output": {"path": "steps.sum.output"},
    }


def given(contract: Contract, count: int) -> Any:
    return contract.pack("Task", {"results": [{"text": str(number), "number": number} for number in range(count)]})


async def test_a_map_calls_for_each_item_and_collects_in_order(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(mapped(contract), given(contract, 25))
    assert run.state == SUCCEEDED
    result = contract.unpack("Result", run.output)
    assert result.text == "".join(str(number) for number in range(25))
    assert result.number == sum(range(25)) + 25 + 1
    items = [step for step in run.steps if step.parent == "each"]
    assert [step.step for step in items] == [f"each/{number}" for number in range(25)]
    assert {step.role for step in items} == {run_pb2.STEP_ROLE_ITEM}


async def test_an_empty_map_succeeds_at_once(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(mapped(contract), given(contract, 0))
    assert run.state == SUCCEEDED
    assert contract.unpack("Result", run.output).number == 1


async def test_no_more_items_are_called_for_at_a_time_than_may(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(mapped(contract, {"delay": "0.01s"}, max_parallel=3), given(contract, 20))
    assert run.state == SUCCEEDED
    assert registered.most_in_flight == 3


async def test_one_item_too_many_fails_the_map_and_cancels_the_rest(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(
        mapped(contract, {"failures": 1, "code": 9}, max_failed=2, max_parallel=1), given(contract, 9)
    )
    assert (run.state, run.failure.reason, run.failure.step) == (FAILED, "ITEMS_FAILED", "each")
    states = [step.state for step in run.steps if step.parent == "each"]
    assert states == [run_pb2.STEP_STATE_FAILED] * 3 + [run_pb2.STEP_STATE_CANCELLED] * 6


async def test_items_may_fail_as_far_as_they_may(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(mapped(contract, {"failures": 1, "code": 9}, max_failed=9), given(contract, 4))
    assert run.state == SUCCEEDED
    assert contract.unpack("Result", run.output).text == ""


async def test_a_map_goes_on_after_kill_9(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton, contract = connect(server), lab.contract
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(mapped(contract, {"delay": "0.02s"}, max_parallel=8), given(contract, 200))
    await lab.arrived(60)
    await server.kill()
    await server.start()
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert contract.unpack("Result", ended.output).text == "".join(str(number) for number in range(200))
    assert len(lab.arrivals()) <= 201 + 8, "only what was under way is called again"
    assert not invariants.journal_faults(await invariants.read_runs(database))


def repeated(contract: Contract, until: str, **settings: Any) -> dict[str, Any]:
    do = contract.method("Lab/Do")
    request = {"number": {"path": "previous.number", "default_value": 0}}
    return {
        "output_type": contract.type("Result"),
        "steps": [{"id": "grow", "method": do, "request": request, "repeat": {"until": until, **settings}}],
        "whole_output": {"path": "steps.grow.output"},
    }


async def test_a_repeat_goes_on_until_its_condition_holds(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.run(repeated(contract, "output.number >= 4"))
    assert run.state == SUCCEEDED
    assert contract.unpack("Result", run.output).number == 4
    assert [step.step for step in run.steps] == ["grow", "grow/1", "grow/2", "grow/3", "grow/4"]


async def test_a_repeat_ends_at_its_limit(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(repeated(registered.contract, "output.number >= 99", max_iterations=3))
    assert (run.state, run.failure.reason) == (FAILED, "REPEAT_LIMIT")
    assert len(registered.arrivals()) == 3


def undone(contract: Contract, failing: dict[str, Any]) -> dict[str, Any]:
    """Two steps with undo calls, and a third that fails."""
    do = contract.method("Lab/Do")

    def step(name: str, **more: Any) -> dict[str, Any]:
        undo = {"method": do, "request": {"text": {"expression": "'undo ' + output.text"}}}
        return {"id": name, "method": do, "request": {"text": {"literal": name}}, "undo": undo, **more}

    ship = {"text": {"literal": "ship"}, "conduct": {"literal": failing}}
    return {
        "steps": [
            step("book"),
            step("pay", after=["book"]),
            {"id": "ship", "method": do, "request": ship, "after": ["pay"]},
        ]
    }


async def test_what_succeeded_is_undone_in_reverse_when_the_run_fails(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(undone(registered.contract, {"failures": 9, "code": 9, "reason": "NO_SHIP"}))
    assert (run.state, run.failure.reason) == (FAILED, "NO_SHIP")
    assert [note.text for note in registered.arrivals()] == ["book", "pay", "ship", "undo pay", "undo book"]
    assert step_of(run, "pay/undo").state == run_pb2.STEP_STATE_SUCCEEDED
    told = kinds(await baton.events(run.run_id))
    assert told[-1] == "run_failed"
    assert "run_undoing" in told


async def test_what_succeeded_is_undone_when_the_run_is_cancelled(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(undone(registered.contract, {"hang": True}))
    await registered.arrived(text="ship")
    await baton.cancel(run.run_id, "changed my mind")
    ended = await baton.end(run.run_id)
    assert ended.state == CANCELLED
    assert [note.text for note in registered.arrivals()][-2:] == ["undo pay", "undo book"]


async def test_a_cancelled_run_is_answered_while_its_undo_calls_are_made(baton: Baton, registered: LabWorker) -> None:
    definition = undone(registered.contract, {"hang": True})
    definition["steps"][1]["undo"]["request"]["conduct"] = {"literal": {"gate": "undo"}}
    run = await baton.submit(definition)
    await registered.arrived(text="ship")
    for _ in range(2):
        assert (await baton.cancel(run.run_id, "changed my mind")).state == run_pb2.RUN_STATE_UNDOING
    registered.gates["undo"].set()
    assert (await baton.end(run.run_id)).state == CANCELLED


async def test_the_undo_calls_of_a_failed_run_are_not_cancelled(baton: Baton, registered: LabWorker) -> None:
    definition = undone(registered.contract, {"failures": 9, "code": 9, "reason": "NO_SHIP"})
    definition["steps"][1]["undo"]["request"]["conduct"] = {"literal": {"gate": "undo"}}
    run = await baton.submit(definition)
    await registered.arrived(text="undo pay")
    refusal = await refused(baton.cancel(run.run_id))
    assert (refusal.reason, refusal.text) == ("RUN_ENDED", "the run has failed, and is being undone")
    registered.gates["undo"].set()
    assert (await baton.end(run.run_id)).state == FAILED


async def test_a_sleep_lasts_as_long_as_it_says(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    run = await baton.run(
        {
            "steps": [
                {"id": "nap", "sleep": {"duration": {"literal": "0.3s"}}},
                {"id": "work", "method": do, "after": ["nap"], "request": {"text": {"literal": "x"}}},
            ]
        }
    )
    nap = step_of(run, "nap")
    assert run.state == SUCCEEDED
    assert nap.end_time.ToMicroseconds() - nap.ready_time.ToMicroseconds() >= 300_000


async def test_a_sleep_beyond_the_deadline_fails_at_once(baton: Baton, registered: LabWorker) -> None:
    nap = {"id": "nap", "sleep": {"duration": {"literal": "1800s"}}}
    run = await baton.run({"steps": [nap]}, run_timeout=Duration(seconds=60))
    assert (run.state, run.failure.reason) == (FAILED, "DEADLINE_UNREACHABLE")


def child_of(contract: Contract, name: str, **step: Any) -> dict[str, Any]:
    """Runs the workflow `name` with a task, and gives what it gives."""
    run = {"id": "sub", "run_workflow": {"workflow": name}, "request": {"text": {"literal": "inner"}}, **step}
    return {
        "output_type": contract.type("Result"),
        "steps": [run],
        "whole_output": {"path": "steps.sub.output"},
    }


def inner(contract: Contract, name: str, conduct: dict[str, Any] | None = None) -> dict[str, Any]:
    request = {"text": {"path": "input.text"}, "conduct": {"literal": conduct or {}}}
    return {
        "name": name,
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [{"id": "do", "method": contract.method("Lab/Do"), "request": request, "retry": {"max_attempts": 1}}],
        "whole_output": {"path": "steps.do.output"},
    }


def name_for(lab: LabWorker) -> str:
    return f"inner-{name_of(lab)}-{'stream' if lab.stream else 'unary'}"


async def test_a_workflow_runs_as_a_step(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, name_for(registered)
    await baton.apply(inner(contract, name))
    run = await baton.run(child_of(contract, name))
    assert run.state == SUCCEEDED
    assert contract.unpack("Result", run.output).text == "inner"
    child = await baton.get(step_of(run, "sub").child_run_id)
    assert (child.parent_run_id, child.parent_step, child.state) == (run.run_id, "sub", SUCCEEDED)
    assert child.trace_id == run.trace_id


async def test_the_failure_of_a_child_run_is_the_steps(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, name_for(registered)
    await baton.apply(inner(contract, name, {"failures": 1, "code": 9, "reason": "NOPE"}))
    run = await baton.run(child_of(contract, name))
    assert (run.state, run.failure.reason, run.failure.step) == (FAILED, "NOPE", "sub")
    assert step_of(run, "sub").child_run_id in run.failure.message


async def test_a_child_run_is_cancelled_with_its_parent(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, name_for(registered)
    await baton.apply(inner(contract, name, {"hang": True}))
    run = await baton.submit(child_of(contract, name))
    note = await registered.arrived(text="inner")
    await baton.cancel(run.run_id)
    assert (await baton.end(note.run)).state == CANCELLED


async def test_a_child_run_goes_on_after_kill_9(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton, contract, name = connect(server), lab.contract, name_for(lab)
    await baton.register(name_of(lab), lab.address)
    await baton.apply(inner(contract, name, {"gate": "open"}))
    run = await baton.submit(child_of(contract, name))
    first = await lab.arrived(text="inner")
    await server.kill()
    await server.start()
    second = await lab.arrived(2, "inner")
    assert (first.run, first.attempt, first.key) == (second.run, second.attempt, second.key)
    lab.gates["open"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_the_child_runs_of_a_map_are_cancelled_with_it_however_far_they_are(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker, database: str
) -> None:
    baton, contract, name = connect(await start_server()), lab.contract, name_for(lab)
    await baton.register(name_of(lab), lab.address, max_in_flight=50)
    await baton.apply(inner(contract, name, {"hang": True}))
    definition = child_of(contract, name, map={"items": {"path": "input.results"}, "max_parallel": 300})
    definition = {"input_type": contract.type("Task"), "steps": definition["steps"]}
    run = await baton.submit(definition, given(contract, 300))
    await lab.arrived(20)
    await baton.cancel(run.run_id)

    async def ended() -> list[invariants.StoredRun]:
        runs = list((await invariants.read_runs(database)).values())
        return runs if all(each.ended for each in runs) else []

    assert {invariants.kind(each.events[-1]) for each in await eventually(ended, 60)} == {"run_cancelled"}
