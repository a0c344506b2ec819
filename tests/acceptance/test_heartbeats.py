"""Heartbeats and checkpoints of running attempts. Here the tests speak for the worker that is held at a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.v1 import run_pb2, step_service_pb2
from google.protobuf.wrappers_pb2 import StringValue

from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, kinds, refused, step_of

SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED


def watched(contract: Contract, conduct: dict[str, Any], **step: Any) -> dict[str, Any]:
    request = {"text": {"literal": "long"}, "conduct": {"literal": conduct}}
    retry = {"max_attempts": 2, "initial_backoff": "0.01s", "reasons": ["HEARTBEAT_TIMEOUT"], "codes": ["UNAVAILABLE"]}
    return {"steps": [{"id": "long", "method": contract.method("Lab/Do"), "request": request, "retry": retry, **step}]}


async def beat(baton: Baton, token: str, text: str = "", **fields: Any) -> str:
    """Gives a sign of life; returns the text of the last checkpoint."""
    asked = step_service_pb2.HeartbeatRequest(step_token=token, **fields)
    if text:
        asked.checkpoint.Pack(StringValue(value=text))
    answer = await baton.steps_of_workers.Heartbeat(asked, timeout=20, wait_for_ready=True)
    kept = StringValue()
    return kept.value if answer.checkpoint.Unpack(kept) else ""


async def test_an_attempt_without_a_sign_of_life_fails_and_is_tried_again(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(watched(registered.contract, {"hang": True}, heartbeat_timeout="0.3s"))
    assert (run.state, run.failure.reason) == (FAILED, "HEARTBEAT_TIMEOUT")
    assert [attempt.failure.reason for attempt in run.steps[0].attempts] == ["HEARTBEAT_TIMEOUT"] * 2
    cancelled = await registered.noted(lambda notes: [note for note in notes if note.what == "cancelled"][1:])
    assert cancelled, "the calls that are given up are cancelled"


async def test_signs_of_life_keep_an_attempt_going(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(watched(registered.contract, {"gate": "open"}, heartbeat_timeout="0.5s"))
    token = (await registered.arrived()).token
    start = None

    async def lasted() -> bool:
        nonlocal start
        await beat(baton, token, percent=40, message="reading")
        step = step_of(await baton.get(run.run_id), "long")
        assert step.state == run_pb2.STEP_STATE_RUNNING
        now = step.progress.time.ToMicroseconds()
        start = start or now
        return now - start > 1_200_000

    await eventually(lasted)
    step = step_of(await baton.get(run.run_id), "long")
    assert (step.progress.percent, step.progress.message) == (40, "reading")
    registered.gates["open"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, len(ended.steps[0].attempts)) == (SUCCEEDED, 1)


async def test_the_next_attempt_gets_the_last_checkpoint(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(watched(registered.contract, {"gate": "open", "failures": 1}))
    first = (await registered.arrived()).token
    assert await beat(baton, first) == ""
    for page in ("page 1", "page 2", "page 3"):
        assert await beat(baton, first, page) == page
    registered.gates["open"].set()
    registered.gates["open"] = type(registered.gates["open"])()
    second = (await registered.arrived(2)).token
    assert await beat(baton, second) == "page 3", "the newest counts, however little time has passed"
    registered.gates["open"].set()
    ended = await baton.end(run.run_id)
    told = kinds(await baton.events(run.run_id))
    assert ended.state == SUCCEEDED
    assert told.count("checkpoint_recorded long") == 2, "at most one a second, and the newest when the attempt ends"
    late = await refused(beat(baton, second))
    assert late.reason == "STEP_NOT_RUNNING"


async def test_a_checkpoint_has_a_limit(baton: Baton, registered: LabWorker) -> None:
    await baton.submit(watched(registered.contract, {"gate": "open"}))
    token = (await registered.arrived()).token
    large = await refused(beat(baton, token, "x" * (257 << 10)))
    assert large.reason == "PAYLOAD_TOO_LARGE"
    registered.gates["open"].set()


async def test_a_checkpoint_survives_kill_9_of_the_server(
    start_server: StartServer, connect: Callable[[ServerProcess], Baton], lab: LabWorker
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(watched(lab.contract, {"gate": "open"}))
    await beat(baton, (await lab.arrived()).token, "half")

    async def journaled() -> bool:
        return "checkpoint_recorded long" in kinds(await baton.events(run.run_id))

    await eventually(journaled)
    await server.kill()
    await server.start()
    again = await lab.arrived(2)
    assert await beat(baton, again.token) == "half"
    lab.gates["open"].set()
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_to_delegate_and_to_wait_for_it_is_a_sign_of_life(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    run = await baton.submit(watched(contract, {"gate": "open"}, heartbeat_timeout="1s"))
    token = (await registered.arrived()).token
    child = contract.of("Task")(text="child")
    child.conduct.delay.FromMilliseconds(700)
    for number in range(4):
        # The look at the end of the timeout falls into one of the waits, and the next one after it.
        answer = await baton.delegate(token, f"child_{number}", contract.method("Lab/Do"), child, wait_seconds=20)
        assert answer.step.state == run_pb2.STEP_STATE_SUCCEEDED
    registered.gates["open"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, len(step_of(ended, "long").attempts)) == (SUCCEEDED, 1)
