"""What begins anew where a run is mended: what a revision does not foresee, a whole map, one round alone."""

from __future__ import annotations

from typing import Any

import pytest
from baton.v1 import run_pb2

from tests.acceptance.conftest import name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.mending import retry, retry_step, skip
from tests.acceptance.test_contract_changes import STRING, changed
from tests.acceptance.test_step_kinds import given, inner, mapped, name_for
from tests.acceptance.wire import Baton, refused

SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED

ONCE = {"max_attempts": 1}


def looked_at(contract: Contract, name: str, text: dict[str, Any], **look: Any) -> dict[str, Any]:
    """A step that looks, and one that tells of it and fails at its first attempt."""
    do = contract.method("Lab/Do")
    tell = {"text": text, "conduct": {"literal": {"failures": 1, "code": 9}}}
    return {
        "name": f"{name}-{contract.package[:-3]}",
        "input_type": contract.type("Task"),
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "look", "method": do, "request": {"text": {"literal": "seen"}}, "retry": ONCE} | look,
            {"id": "tell", "method": do, "request": tell, "retry": ONCE},
        ],
        "whole_output": {"path": "steps.tell.output"},
    }


WITH_OR_WITHOUT = {"expression": "steps.look.succeeded ? steps.look.output.text : 'nothing'"}
WITH = {"path": "steps.look.output.text"}


async def test_what_was_skipped_is_run_where_another_revision_needs_it(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    first = looked_at(contract, f"skipped-{registered.stream}".lower(), WITH_OR_WITHOUT, when="input.number > 5")
    await baton.apply(first)
    run = await baton.run(first["name"], contract.pack("Task", {"number": 1}))
    assert (run.state, run.failure.step) == (FAILED, "tell")
    other = looked_at(contract, f"skipped-{registered.stream}".lower(), WITH)
    revision = (await baton.apply(other)).revision
    assert list((await retry(baton, run.run_id, validate_only=True)).reset) == ["tell"]
    assert list((await retry(baton, run.run_id, revision=revision)).reset) == ["look", "tell"]
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert contract.unpack("Result", ended.output).text == "seen"


async def test_a_failure_that_led_on_does_so_no_more_with_another_revision(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, f"led-{registered.stream}".lower()
    request = {"text": {"literal": "seen"}, "conduct": {"literal": {"failures": 1, "code": 9}}}
    first = looked_at(contract, name, WITH_OR_WITHOUT, request=request, on_failure=[{}])
    await baton.apply(first)
    run = await baton.run(first["name"], contract.pack("Task"))
    assert (run.state, run.failure.step) == (FAILED, "tell")
    revision = (await baton.apply(looked_at(contract, name, WITH, request=request))).revision
    assert list((await retry(baton, run.run_id, revision=revision)).reset) == ["look", "tell"]
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).text) == (SUCCEEDED, "seen")


async def test_a_map_that_succeeded_is_run_again_as_a_whole(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    workflow = mapped(contract)
    workflow["steps"][1] |= {"retry": ONCE}
    workflow["steps"][1]["request"]["conduct"] = {"literal": {"failures": 1, "code": 9}}
    run = await baton.run(workflow, given(contract, 4))
    assert (run.state, run.failure.step) == (FAILED, "sum")
    assert list((await retry_step(baton, run.run_id, "each")).reset) == ["each", "sum"]
    assert (await baton.end(run.run_id)).state == SUCCEEDED
    assert [len(registered.arrivals(str(number))) for number in range(4)] == [2, 2, 2, 2]


async def test_an_output_is_given_in_the_place_of_a_child_run_of_a_map(baton: Baton, registered: LabWorker) -> None:
    contract, name = registered.contract, f"{name_for(registered)}-item"
    await baton.apply(inner(contract, name, {"gate": "open"}))
    workflow = mapped(contract)
    each = workflow["steps"][0]
    del each["method"], each["retry"]
    each |= {"run_workflow": {"workflow": name}, "request": {"text": {"path": "item.text"}}}
    run = await baton.submit(workflow, given(contract, 3))
    child = await registered.arrived(text="1")
    await registered.arrived(3)
    await skip(baton, run.run_id, "each/1", output=contract.pack("Result", {"text": "given"}))
    assert (await baton.end(child.run)).state == run_pb2.RUN_STATE_CANCELLED
    registered.gates["open"].set()
    ended = await baton.end(run.run_id)
    assert contract.unpack("Result", ended.output).text == "0given2"


async def test_a_call_for_a_round_that_is_long_over_mends_nothing(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    request = {"conduct": {"literal": {"failures": 9, "code": 9}}}
    run = await baton.run({"steps": [{"id": "a", "method": do, "request": request, "retry": ONCE}]})
    for number in (1, 2):
        await retry(baton, run.run_id, round=number)
        assert (await baton.end(run.run_id)).round == number + 1
    late = await retry(baton, run.run_id, round=1)
    assert (late.run.state, late.run.round) == (FAILED, 3)
    early = await refused(retry(baton, run.run_id, round=9))
    assert early.reason == "INVALID_REQUEST"
    assert set(early.paths) == {"round"}


@pytest.mark.parametrize("transport", ["unary"], indirect=True)
async def test_the_input_is_read_by_the_types_of_another_revision(baton: Baton, lab: LabWorker) -> None:
    def with_more(messages: dict[str, Any], _: Any) -> None:
        messages["Task"].field.add(name="more", number=99, type=STRING, label=1)

    contract = lab.contract
    await baton.register(name_of(lab), lab.address)
    name = f"types-{lab.stream}".lower()
    first = looked_at(contract, name, WITH)
    await baton.apply(first)
    sent = changed(contract, with_more).pack("Task", {"text": "ann", "more": "bob"})
    run = await baton.run(first["name"], sent)
    assert (run.state, run.failure.step) == (FAILED, "tell")
    port, newer = lab.port, LabWorker(changed(contract, with_more), stream=lab.stream)
    await lab.stop()
    await newer.start(port)
    await baton.register(name_of(lab), newer.address)
    other = looked_at(contract, name, {"path": "input.more"})
    other["steps"].append({"id": "all", "method": contract.method("Lab/Do"), "whole_request": {"path": "input"}})
    revision = (await baton.apply(other)).revision
    assert list((await retry(baton, run.run_id, revision=revision)).reset) == ["tell"]
    ended = await baton.end(run.run_id)
    await newer.stop()
    assert (ended.state, ended.failure.message) == (SUCCEEDED, "")
    assert [note.text for note in newer.arrivals()].count("bob") == 1
