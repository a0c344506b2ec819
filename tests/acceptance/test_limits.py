"""Limits on one server: what each scope bounds, who comes next, and what those who wait are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from baton.v1 import limit_service_pb2, run_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker, Note
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


@pytest.fixture
async def own(start_server: StartServer, connect: Connect, lab: LabWorker) -> Baton:
    """A server of this test alone, that knows the lab as `lab`."""
    baton = connect(await start_server(BATON_NAMESPACE_MAX_ACTIVE_RUNS="60"))
    await baton.register("lab", lab.address)
    return baton


def fan(contract: Contract, count: int, method: str = "Lab/Do", **conduct: Any) -> dict[str, Any]:
    """Steps that can all run at once."""
    request = {"text": {"path": "input.text"}, "conduct": {"literal": conduct}}
    steps = [{"id": f"s{number}", "method": contract.method(method), "request": request} for number in range(count)]
    return {"input_type": contract.type("Task"), "steps": steps}


def given(contract: Contract, text: str) -> Any:
    return contract.pack("Task", {"text": text})


def most_at_once(notes: list[Note]) -> int:
    """Calls that the notes show at work together at most."""
    now = most = 0
    for note in notes:
        now += 1 if note.what == "arrived" else -1
        most = max(most, now)
    return most


async def test_calls_of_a_method_a_worker_and_a_namespace_are_bounded(
    own: Baton, contract: Contract, lab: LabWorker
) -> None:
    await own.limit("everything", "NAMESPACE", max_in_flight=6)
    await own.limit("the-lab", "WORKER", "lab", max_in_flight=5)
    await own.limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=2)
    definition = fan(contract, 10, delay="0.02s")
    definition["steps"] += [
        {**step, "id": f"r{step['id']}", "method": contract.method("Lab/Read")} for step in definition["steps"]
    ]
    run = await own.run(definition, given(contract, "x"))
    assert run.state == SUCCEEDED, run.failure
    assert most_at_once([note for note in lab.notes if note.method.endswith("Lab/Do")]) == 2
    assert lab.most_in_flight == 5
    assert (await own.limit_use("everything")).in_flight == 0


async def test_each_key_has_permits_of_its_own(own: Baton, contract: Contract, lab: LabWorker) -> None:
    await own.limit("customers", "KEY", max_in_flight=1)
    definition = fan(contract, 4, delay="0.03s")
    for step in definition["steps"]:
        step["limits"] = [{"limit": "customers", "key": "input.text"}]
    ends = [own.run(definition, given(contract, text)) for text in ("anna", "bert", "carl")]
    assert {run.state for run in await asyncio.gather(*ends)} == {SUCCEEDED}
    for text in ("anna", "bert", "carl"):
        assert most_at_once([note for note in lab.notes if note.text == text]) == 1
    assert most_at_once(lab.notes) == 3


async def test_who_waits_is_told_the_limit_its_use_and_the_place_in_line(
    own: Baton, contract: Contract, lab: LabWorker
) -> None:
    await own.limit("customers", "KEY", max_in_flight=1)
    definition = fan(contract, 3, gate="go")
    for step in definition["steps"]:
        step["limits"] = [{"limit": "customers", "key": "input.text"}]
    run = await own.submit(definition, given(contract, "anna"))
    await lab.arrived()

    async def waits() -> list[run_pb2.WaitReason]:
        found = [step.wait_reason for step in (await own.get(run.run_id)).steps if step.HasField("wait_reason")]
        return found if len(found) == 2 and "in line" in found[1].message else []

    first, second = await eventually(waits)
    assert first.kind == second.kind == run_pb2.WAIT_KIND_LIMIT
    assert first.message == (
        "the limit customers has for the key 'anna' 1 of 1 calls in flight; the step is number 1 in line"
    )
    assert second.message.endswith("the step is number 2 in line")
    use = await own.limit_use("customers")
    assert [(key.key, key.in_flight) for key in use.keys] == [("anna", 1)]
    assert use.waiting >= 1
    lab.gates["go"].set()
    assert (await own.end(run.run_id)).state == SUCCEEDED


async def test_a_rate_bounds_how_many_calls_start(own: Baton, contract: Contract, lab: LabWorker) -> None:
    await own.limit("slowly", "METHOD", contract.method("Lab/Do"), rate={"count": 20, "per": "1s", "burst": 4})
    run = await own.run(fan(contract, 14), given(contract, "x"))
    assert run.state == SUCCEEDED
    times = sorted(attempt.start_time.ToMicroseconds() for step in run.steps for attempt in step.attempts)
    for first in range(len(times)):
        for last in range(first, len(times)):
            # Within any time t at most 4 + 20 t calls start.
            assert last - first + 1 <= 4 + 20 * (times[last] - times[first]) / 1_000_000 + 0.01


async def test_steps_of_a_higher_priority_come_first(own: Baton, contract: Contract, lab: LabWorker) -> None:
    await own.limit("one", "METHOD", contract.method("Lab/Do"), max_in_flight=1)
    held = await own.submit(fan(contract, 1, gate="go"), given(contract, "held"))
    await lab.arrived()
    low = fan(contract, 3)
    low["steps"][1]["priority"] = 3
    runs = [await own.submit(low, given(contract, "low"))]
    runs.append(await own.submit(fan(contract, 2), given(contract, "high"), priority=2))
    assert (await own.get(runs[1].run_id)).priority == 2
    lab.gates["go"].set()
    for run in (held, *runs):
        assert (await own.end(run.run_id)).state == SUCCEEDED
    arrived = [(note.text, note.step) for note in lab.arrivals()]
    assert arrived == [("held", "s0"), ("low", "s1"), ("high", "s0"), ("high", "s1"), ("low", "s0"), ("low", "s2")]


async def test_a_worker_without_a_limit_takes_what_another_may_not(
    own: Baton, contract: Contract, lab: LabWorker, spare_lab: LabWorker
) -> None:
    await own.register("spare", spare_lab.address)
    await own.limit("the-lab", "WORKER", "lab", max_in_flight=2)
    run = await own.run(fan(contract, 30, delay="0.02s"), given(contract, "x"))
    assert run.state == SUCCEEDED
    assert lab.most_in_flight <= 2
    assert len(spare_lab.arrivals()) > len(lab.arrivals())


async def test_a_limit_that_is_not_there_is_waited_for(own: Baton, contract: Contract, lab: LabWorker) -> None:
    definition = fan(contract, 1)
    definition["steps"][0]["limits"] = [{"limit": "later"}]
    run = await own.submit(definition, given(contract, "x"))

    async def told() -> bool:
        return "no limit is named later" in (await own.get(run.run_id)).steps[0].wait_reason.message

    await eventually(told)
    await own.limit("later", "KEY", max_in_flight=1)
    assert (await own.end(run.run_id)).state == SUCCEEDED
    await own.limits.DeleteLimit(limit_service_pb2.DeleteLimitRequest(limit="later"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await own.limit_use("later")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_key_that_cannot_be_read_fails_the_step(own: Baton, contract: Contract) -> None:
    await own.limit("customers", "KEY", max_in_flight=1)
    definition = fan(contract, 1)
    definition["steps"][0]["limits"] = [{"limit": "customers", "key": "string(1 / (input.number - input.number))"}]
    run = await own.run(definition, given(contract, "x"))
    assert run.steps[0].failure.reason == "EVALUATION_FAILED"


async def test_a_raised_limit_lets_those_who_wait_go_on(own: Baton, contract: Contract, lab: LabWorker) -> None:
    await own.limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=1)
    run = await own.submit(fan(contract, 5, gate="go"), given(contract, "x"))
    await lab.arrived()
    await own.limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=4)
    await lab.arrived(4)
    assert lab.in_flight == 4
    lab.gates["go"].set()
    assert (await own.end(run.run_id)).state == SUCCEEDED


async def test_a_namespace_with_too_many_runs_is_refused_with_a_time(
    own: Baton, contract: Contract, lab: LabWorker
) -> None:
    runs = [await own.submit(fan(contract, 1, gate="go"), given(contract, "x")) for _ in range(60)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await own.submit(fan(contract, 1), given(contract, "x"))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    details = Counter(detail.TypeName() for detail in rpc_status.from_call(caught.value).details)  # type: ignore[arg-type]
    assert details == Counter({"google.rpc.ErrorInfo": 1, "google.rpc.RetryInfo": 1})
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(caught.value).details[0].Unpack(info)  # type: ignore[arg-type]
    assert info.reason == "NAMESPACE_QUEUE_FULL"
    lab.gates["go"].set()
    for run in runs:
        assert (await own.end(run.run_id)).state == SUCCEEDED
    assert (await own.run(fan(contract, 1), given(contract, "x"))).state == SUCCEEDED


async def test_a_call_that_waits_for_what_it_delegated_does_not_hold_it_up(
    own: Baton, contract: Contract, lab: LabWorker
) -> None:
    await own.limit("one", "NAMESPACE", max_in_flight=1)
    definition = fan(contract, 1, gate="go")
    await own.limit("customers", "KEY", max_in_flight=1)
    definition["steps"][0]["limits"] = [{"limit": "customers", "key": "input.text"}]
    run = await own.submit(definition, given(contract, "parent"))
    token = (await lab.arrived()).token
    task = contract.message("Task", {"text": "child", "conduct": {"delay": "0.05s"}})
    answer = await own.delegate(token, "search", contract.method("Lab/Do"), task, wait_seconds=20)
    assert answer.step.state == run_pb2.STEP_STATE_SUCCEEDED
    use = await own.limit_use("customers")
    assert [(key.key, key.in_flight) for key in use.keys] == [("parent", 1)]
    assert (await own.limit_use("one")).in_flight == 1
    lab.gates["go"].set()
    assert (await own.end(run.run_id)).state == SUCCEEDED
    assert (await own.limit_use("one")).in_flight == 0


async def test_the_items_of_a_map_have_keys_of_their_own(own: Baton, contract: Contract, lab: LabWorker) -> None:
    await own.limit("texts", "KEY", max_in_flight=1)
    step = {
        "id": "each",
        "method": contract.method("Lab/Do"),
        "map": {"items": {"path": "input.results"}, "max_parallel": 10},
        "request": {"text": {"path": "item.text"}, "conduct": {"literal": {"delay": "0.03s"}}},
        "limits": [{"limit": "texts", "key": "item.text"}],
    }
    results = [{"text": text} for text in ("a", "b", "a", "b", "a", "b")]
    run = await own.run(
        {"input_type": contract.type("Task"), "steps": [step]}, contract.pack("Task", {"results": results})
    )
    assert run.state == SUCCEEDED, run.failure
    for text in ("a", "b"):
        assert most_at_once([note for note in lab.notes if note.text == text]) == 1
    assert most_at_once(lab.notes) == 2
