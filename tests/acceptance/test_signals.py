"""Signals and sleeps over real sockets: typed, kept until taken, once, in time, at any replica, across kills."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from baton.v1 import run_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_parking import all_parked
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import Baton, kinds, refused, step_of

SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def transport() -> str:
    """What waits calls nobody."""
    return "unary"


def awaiting(contract: Contract, **wait: Any) -> dict[str, Any]:
    """Waits for a signal that carries a task, and calls with its text."""
    signal = {"signal": "paid", "type": contract.type("Task"), **wait}
    request = {"text": {"path": "steps.paid.output.text"}, "number": {"path": "steps.paid.output.number"}}
    return {
        "output_type": contract.type("Result"),
        "steps": [
            {"id": "paid", "wait_signal": signal},
            {"id": "do", "method": contract.method("Lab/Do"), "request": request},
        ],
        "whole_output": {"path": "steps.do.output"},
        "run_timeout": "600s",
    }


def held_back(contract: Contract) -> dict[str, Any]:
    """Waits for a signal only after a call that a gate holds back."""
    definition = awaiting(contract)
    call = {"id": "first", "method": contract.method("Lab/Do"), "request": {"conduct": {"literal": {"gate": "open"}}}}
    definition["steps"][0]["after"] = ["first"]
    definition["steps"].append(call)
    return definition


def paid(contract: Contract, text: str = "40", number: int = 40) -> AnyMessage:
    return contract.pack("Task", {"text": text, "number": number})


async def test_a_step_takes_a_signal_as_its_output(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(awaiting(contract, timeout="60s"))
    reason = await baton.waiting(run.run_id, "paid", run_pb2.WAIT_KIND_SIGNAL)
    assert "paid" in reason.message
    ready = step_of(await baton.get(run.run_id), "paid").ready_time
    assert 59 < reason.until_time.ToSeconds() - ready.ToSeconds() <= 61
    assert not (await baton.signal(run.run_id, "paid", paid(contract))).existing
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).number) == (SUCCEEDED, 41)
    assert contract.unpack("Task", step_of(ended, "paid").output).text == "40"
    received = next(each for each in await baton.events(run.run_id, 2) if each.HasField("signal_received"))
    assert (received.signal_received.signal, received.signal_received.principal) == ("paid", "anonymous")
    assert contract.unpack("Task", received.payload).text == "40"


async def test_a_signal_without_a_type_carries_nothing(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit({"steps": [{"id": "go", "wait_signal": {"signal": "go"}}]})
    refusal = await refused(baton.signal(run.run_id, "go", paid(registered.contract)))
    assert (refusal.code, refusal.reason, list(refusal.paths)) == (INVALID, "INVALID_REQUEST", ["payload"])
    assert "google.protobuf.Empty" in refusal.text
    await baton.signal(run.run_id, "go")
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_signal_that_does_not_fit_is_refused(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(awaiting(contract))
    await baton.waiting(run.run_id, "paid", run_pb2.WAIT_KIND_SIGNAL)
    task = f"type.googleapis.com/{contract.type('Task')}"
    for payload, word in (
        (contract.pack("Result"), contract.type("Result")),
        (AnyMessage(type_url=task, value=b"\xff"), "not a valid"),
        (AnyMessage(value=b"\x0a\x01x"), "message of no type"),
    ):
        refusal = await refused(baton.signal(run.run_id, "paid", payload))
        assert (refusal.code, refusal.reason, list(refusal.paths)) == (INVALID, "INVALID_REQUEST", ["payload"])
        assert word in refusal.text
        assert contract.type("Task") in refusal.text
    large = await refused(baton.signal(run.run_id, "paid", AnyMessage(type_url=task, value=bytes((1 << 20) + 1))))
    assert (large.code, large.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
    unknown = await refused(baton.signal(run.run_id, "payed", paid(contract)))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "SIGNAL_NOT_FOUND")
    assert unknown.text.endswith("its steps wait for: paid")
    misspelt = await refused(baton.signal(run.run_id, "Paid!", paid(contract)))
    assert (misspelt.reason, list(misspelt.paths)) == ("INVALID_REQUEST", ["signal"])
    nothing = await refused(baton.signal("01890a5d-ac96-774b-bcce-b302099a8057", "paid", paid(contract)))
    assert (nothing.code, nothing.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    assert len(await baton.events(run.run_id)) == 2, "what was refused left nothing"
    await baton.cancel(run.run_id)
    ended = await refused(baton.signal(run.run_id, "paid", paid(contract)))
    assert (ended.code, ended.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED")


async def test_a_signal_that_comes_early_is_kept(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(held_back(contract))
    await registered.arrived()
    await baton.signal(run.run_id, "paid", paid(contract, "early"))
    assert step_of(await baton.get(run.run_id), "paid").state == run_pb2.STEP_STATE_BLOCKED
    registered.gates["open"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).text) == (SUCCEEDED, "early")


async def test_each_signal_is_taken_by_one_step_in_order(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    wait = {"signal": "paid", "type": contract.type("Task")}
    definition = {"steps": [{"id": name, "wait_signal": wait} for name in ("a", "b", "c")]}
    run = await baton.submit(definition)
    for name in ("a", "b", "c"):
        await baton.waiting(run.run_id, name, run_pb2.WAIT_KIND_SIGNAL)
    for text in ("1", "2", "3"):
        await baton.signal(run.run_id, "paid", paid(contract, text))
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert [contract.unpack("Task", step.output).text for step in ended.steps] == ["1", "2", "3"]


async def test_a_request_id_sends_one_signal(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(held_back(contract))
    await registered.arrived()
    answers = await asyncio.gather(
        *(baton.signal(run.run_id, "paid", paid(contract), "order-1") for _ in range(10)),
        *(baton.signal(run.run_id, "paid", paid(contract)) for _ in range(3)),
    )
    assert sorted(answer.existing for answer in answers[:10]) == [False] + [True] * 9
    assert not any(answer.existing for answer in answers[10:])
    told = kinds(await baton.events(run.run_id))
    assert told.count("signal_received") == 4
    registered.gates["open"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_a_run_goes_on_by_a_branch_where_no_signal_comes(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    do = contract.method("Lab/Do")
    definition = {
        "steps": [
            {
                "id": "paid",
                "wait_signal": {"signal": "paid", "timeout": "0.2s"},
                "on_failure": [{"reasons": ["SIGNAL_TIMEOUT"], "step": "remind"}],
            },
            {"id": "remind", "method": do, "request": {"text": {"literal": "please pay"}}},
        ]
    }
    run = await baton.run(definition)
    assert run.state == SUCCEEDED
    assert step_of(run, "paid").failure.reason == "SIGNAL_TIMEOUT"
    assert [note.text for note in registered.arrivals()] == ["please pay"]
    alone = await baton.run({"steps": [{"id": "paid", "wait_signal": {"signal": "paid", "timeout": "0.1s"}}]})
    assert (alone.state, alone.failure.reason, alone.failure.step) == (FAILED, "SIGNAL_TIMEOUT", "paid")


async def test_a_kept_signal_outlives_kill_9(start_server: StartServer, connect: Connect, lab: LabWorker) -> None:
    server = await start_server()
    baton, contract = connect(server), lab.contract
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(held_back(contract))
    await lab.arrived()
    await baton.signal(run.run_id, "paid", paid(contract, "early"), "order-1")
    await server.kill()
    lab.gates["open"].set()
    await server.start()
    again = connect(server)
    ended = await again.end(run.run_id)
    assert (ended.state, contract.unpack("Result", ended.output).text) == (SUCCEEDED, "early")
    stored = await invariants.read_runs(server.dsn)
    assert not invariants.journal_faults(stored)
    assert [invariants.kind(event) for event in stored[run.run_id].events].count("signal_received") == 1


async def test_signals_reach_runs_of_other_replicas_and_parked_ones(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    servers = [await start_server(), await start_server(BATON_PARK_SECONDS="0.5")]
    one, two = (connect(server) for server in servers)
    contract = lab.contract
    await one.register(name_of(lab), lab.address)
    mine = await one.submit(awaiting(contract))
    await two.signal(mine.run_id, "paid", paid(contract))
    assert (await one.end(mine.run_id)).state == SUCCEEDED
    yours = await two.submit(awaiting(contract))
    await all_parked(servers[0].dsn, [yours.run_id])
    await one.signal(yours.run_id, "paid", paid(contract), "order-1")
    assert (await two.end(yours.run_id)).state == SUCCEEDED
    for baton in (one, two):
        assert (await baton.signal(yours.run_id, "paid", paid(contract), "order-1")).existing
        assert (await refused(baton.signal(yours.run_id, "paid", paid(contract), "order-2"))).reason == "RUN_ENDED"
    assert not invariants.journal_faults(await invariants.read_runs(servers[0].dsn))


def in_time(seconds: float) -> AnyMessage:
    """An instant, so many seconds from now."""
    instant, packed = Timestamp(), AnyMessage()
    instant.GetCurrentTime()
    instant.FromMicroseconds(instant.ToMicroseconds() + round(seconds * 1_000_000))
    packed.Pack(instant)
    return packed


def sleeping_until(**fields: Any) -> dict[str, Any]:
    nap = {"id": "nap", "sleep": {"until": {"path": "input"}}}
    return {"input_type": "google.protobuf.Timestamp", "steps": [nap], **fields}


async def test_a_step_sleeps_until_an_instant(baton: Baton, registered: LabWorker) -> None:
    given = in_time(1.0)
    run = await baton.submit(sleeping_until(), given)
    reason = await baton.waiting(run.run_id, "nap", run_pb2.WAIT_KIND_SLEEP)
    instant = Timestamp.FromString(given.value)
    assert reason.until_time == instant
    ended = await baton.end(run.run_id)
    assert ended.state == SUCCEEDED
    assert step_of(ended, "nap").end_time.ToMicroseconds() >= instant.ToMicroseconds()
    over = await baton.run(sleeping_until(), in_time(-3600))
    assert over.state == SUCCEEDED, "an instant that has passed is not waited for"


async def test_a_sleep_longer_than_the_run_or_the_step_fails_at_once(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(sleeping_until(), in_time(3600), run_timeout=Duration(seconds=60))
    assert (run.state, run.failure.reason, run.failure.step) == (FAILED, "DEADLINE_UNREACHABLE", "nap")
    definition = sleeping_until()
    definition["steps"][0]["step_timeout"] = "50s"
    run = await baton.run(definition, in_time(100))
    assert (run.state, run.failure.reason) == (FAILED, "DEADLINE_UNREACHABLE")
    assert "step_failed nap" in kinds(await baton.events(run.run_id))


@pytest.mark.parametrize("park_seconds", ["0.2", "600"])
async def test_a_sleep_goes_on_while_no_server_runs(
    start_server: StartServer, connect: Connect, lab: LabWorker, park_seconds: str
) -> None:
    server = await start_server(BATON_PARK_SECONDS=park_seconds)
    baton = connect(server)
    short = {"steps": [{"id": "nap", "sleep": {"duration": {"literal": "1s"}}}], "run_timeout": "600s"}
    long = {"steps": [{"id": "nap", "sleep": {"duration": {"literal": "8s"}}}], "run_timeout": "600s"}
    runs = [await baton.submit(definition) for definition in (short, long)]
    reasons = [await baton.waiting(run.run_id, "nap", run_pb2.WAIT_KIND_SLEEP) for run in runs]
    await server.kill()
    await invariants.passed(server.dsn, reasons[0].until_time)
    await server.start()
    again = connect(server)
    for run, reason in zip(runs, reasons, strict=True):
        ended = await again.end(run.run_id)
        assert ended.state == SUCCEEDED
        assert step_of(ended, "nap").end_time.ToMicroseconds() >= reason.until_time.ToMicroseconds()
        told = kinds(await again.events(run.run_id))
        assert told == ["run_submitted", "step_waiting nap", "step_succeeded nap", "run_succeeded"]
    assert not invariants.journal_faults(await invariants.read_runs(server.dsn))
