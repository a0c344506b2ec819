"""Attempts: retry and backoff, fallbacks, branches, conditions, timeouts, and what is never called twice."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from baton.v1 import event_pb2, failure_pb2, run_pb2, worker_pb2

from tests.acceptance.conftest import name_of
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.wire import GRPC_ROUNDING, Baton, Refusal, eventually, kinds, step_of

SUCCEEDED, FAILED, CANCELLED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED


def one_step(
    lab: LabWorker, conduct: dict[str, Any] | None = None, method: str = "Lab/Do", **step: Any
) -> dict[str, Any]:
    """A workflow of one step, `a`, whose worker behaves as told."""
    request = {"text": {"literal": "a"}, "conduct": {"literal": conduct or {}}}
    return {
        "output_type": lab.contract.type("Result"),
        "steps": [{"id": "a", "method": lab.contract.method(method), "request": request, **step}],
        "whole_output": {"path": "steps.a.output"},
    }


def quick(max_attempts: int = 3, **policy: Any) -> dict[str, Any]:
    """A retry policy that does not wait long."""
    return {"max_attempts": max_attempts, "initial_backoff": "0.02s", "jitter": 0.0, **policy}


def micros(time: Any) -> int:
    return int(time.ToMicroseconds())


def failures(events: list[event_pb2.RunEvent]) -> list[event_pb2.RunEvent]:
    return [event for event in events if event.WhichOneof("kind") == "attempt_failed"]


async def test_a_step_is_tried_again_with_the_same_key_until_it_succeeds(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered, {"failures": 2}, retry=quick()))
    assert run.state == SUCCEEDED
    arrivals = registered.arrivals()
    assert [note.attempt for note in arrivals] == [1, 2, 3]
    assert len({note.key for note in arrivals}) == 1
    assert [note.delivery for note in arrivals] == [1, 1, 1]
    assert registered.contract.unpack("Result", run.output).attempt == 3


async def test_backoff_grows_and_no_attempt_starts_before_its_time(baton: Baton, registered: LabWorker) -> None:
    policy = {"max_attempts": 4, "initial_backoff": "0.1s", "backoff_multiplier": 2, "max_backoff": "0.3s", "jitter": 0}
    run = await baton.run(one_step(registered, {"failures": 3}, retry=policy))
    assert run.state == SUCCEEDED
    failed = failures(await baton.events(run.run_id))
    waits = [micros(event.attempt_failed.retry_time) - micros(event.time) for event in failed]
    assert waits == [100_000, 200_000, 300_000]
    for event, later in zip(failed, run.steps[0].attempts[1:], strict=True):
        assert micros(later.start_time) >= micros(event.attempt_failed.retry_time)


async def test_a_worker_that_asks_for_a_longer_wait_gets_it(baton: Baton, registered: LabWorker) -> None:
    conduct = {"failures": 1, "reason": "BUSY", "retry_delay": "0.4s"}
    run = await baton.run(one_step(registered, conduct, retry=quick()))
    first, second = run.steps[0].attempts
    assert micros(second.start_time) - micros(first.end_time) >= 400_000


async def test_attempts_end_and_the_run_tells_the_workers_own_reason(baton: Baton, registered: LabWorker) -> None:
    conduct = {"failures": 9, "code": 14, "reason": "OVEN_COLD"}
    run = await baton.run(one_step(registered, conduct, retry=quick(3)))
    assert run.state == FAILED
    assert len(registered.arrivals()) == 3
    assert (run.failure.step, run.failure.reason, run.failure.code) == ("a", "OVEN_COLD", 14)
    assert run.failure.origin == failure_pb2.FAILURE_ORIGIN_WORKER
    assert "attempt 3 was told to fail" in run.failure.message
    assert run.steps[0].state == run_pb2.STEP_STATE_FAILED


@pytest.mark.parametrize(("method", "attempts"), [("Lab/Do", 1), ("Lab/Read", 3)])
async def test_internal_is_tried_again_only_where_the_method_says_that_it_may(
    baton: Baton, registered: LabWorker, method: str, attempts: int
) -> None:
    policy = {"initial_backoff": "0.02s"}
    run = await baton.run(one_step(registered, {"failures": 9, "code": 13}, method, retry=policy))
    assert (run.state, len(registered.arrivals())) == (FAILED, attempts)


async def test_a_fallback_takes_over_after_the_last_attempt(baton: Baton, registered: LabWorker) -> None:
    spare = {"method": registered.contract.method("Spare/Do"), "codes": ["UNAVAILABLE"]}
    spare |= {"request": {"text": {"literal": "spare"}}}
    run = await baton.run(one_step(registered, {"failures": 9}, retry=quick(2), fallback=[spare]))
    assert run.state == SUCCEEDED
    assert registered.contract.unpack("Result", run.output).text == "spare"
    assert [note.method.rpartition(".")[2] for note in registered.arrivals()] == ["Lab/Do", "Lab/Do", "Spare/Do"]
    assert [note.attempt for note in registered.arrivals()] == [1, 2, 3]
    step = step_of(run, "a")
    assert (step.target, step.method) == (1, registered.contract.method("Spare/Do"))


async def test_a_fallback_is_left_alone_by_failures_that_are_not_its_own(baton: Baton, registered: LabWorker) -> None:
    spare = {"method": registered.contract.method("Spare/Do"), "codes": ["NOT_FOUND"]}
    run = await baton.run(one_step(registered, {"failures": 9}, retry=quick(1), fallback=[spare]))
    assert (run.state, len(registered.arrivals())) == (FAILED, 1)


async def test_a_failure_branch_runs_its_step_and_no_other(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")

    def step(name: str, **more: Any) -> dict[str, Any]:
        return {"id": name, "method": do, "request": {"text": {"literal": name}}, **more}

    branches = [{"reasons": ["NO_STOCK"], "step": "order_more"}, {"codes": ["INTERNAL"], "step": "call_police"}]
    conduct = {"literal": {"failures": 9, "code": 9, "reason": "NO_STOCK"}}
    definition = {
        "steps": [
            {"id": "a", "method": do, "request": {"conduct": conduct}, "on_failure": branches},
            step("order_more"),
            step("call_police"),
            step("ship", when="steps.a.state == 'SUCCEEDED'"),
            step("close", after=["a", "order_more", "call_police"]),
        ]
    }
    run = await baton.run(definition)
    assert run.state == SUCCEEDED
    states = {each.step: run_pb2.StepState.Name(each.state).removeprefix("STEP_STATE_") for each in run.steps}
    assert states == {
        "a": "FAILED",
        "order_more": "SUCCEEDED",
        "call_police": "SKIPPED",
        "ship": "SKIPPED",
        "close": "SUCCEEDED",
    }


async def test_an_output_that_is_not_expected_is_tried_again_and_then_fails(
    baton: Baton, registered: LabWorker
) -> None:
    policy = quick(3, reasons=["OUTPUT_REJECTED"])
    run = await baton.run(one_step(registered, expect="output.attempt >= 2", retry=policy))
    assert (run.state, len(registered.arrivals())) == (SUCCEEDED, 2)
    run = await baton.run(one_step(registered, expect="output.attempt > 100", retry=policy))
    assert (run.state, run.failure.reason) == (FAILED, "OUTPUT_REJECTED")


async def test_steps_start_after_what_they_wait_for(baton: Baton, registered: LabWorker) -> None:
    do = registered.contract.method("Lab/Do")
    names = ["a", "b", "c", "d"]
    steps = [{"id": "a", "method": do}]
    for one, two in itertools.pairwise(names):
        steps.append({"id": two, "method": do, "after": [one]})
    steps.reverse()
    run = await baton.run({"steps": steps})
    assert [note.step for note in registered.arrivals()] == names
    events = kinds(await baton.events(run.run_id))
    for one, two in itertools.pairwise(names):
        assert events.index(f"step_succeeded {one}") < events.index(f"attempt_started {two}")


async def test_an_attempt_timeout_reaches_the_worker_and_is_retried(baton: Baton, registered: LabWorker) -> None:
    definition = one_step(registered, {"hang": True}, "Lab/Read", attempt_timeout="0.3s", retry=quick(2))
    run = await baton.run(definition)
    assert (run.state, run.failure.reason, run.failure.code) == (FAILED, "ATTEMPT_TIMEOUT", 4)
    assert run.failure.origin == failure_pb2.FAILURE_ORIGIN_TIMEOUT
    assert run.failure.outcome_unknown
    for attempt, note in zip(run.steps[0].attempts, registered.arrivals(), strict=True):
        assert micros(attempt.end_time) - micros(attempt.start_time) >= 300_000
        assert note.remaining_seconds is not None
        assert note.remaining_seconds <= 0.3 * GRPC_ROUNDING
    await registered.noted(lambda notes: sum(note.what == "cancelled" for note in notes) == 2)


async def test_a_step_timeout_ends_all_attempts(baton: Baton, registered: LabWorker) -> None:
    definition = one_step(registered, {"hang": True}, step_timeout="0.4s", retry=quick(9, codes=["DEADLINE_EXCEEDED"]))
    run = await baton.run(definition)
    assert (run.state, run.failure.reason) == (FAILED, "STEP_TIMEOUT")
    assert micros(run.steps[0].end_time) - micros(run.steps[0].ready_time) >= 400_000
    assert len(registered.arrivals()) == 1
    await registered.noted(lambda notes: any(note.what == "cancelled" for note in notes))


async def test_a_step_timeout_passes_during_a_backoff(baton: Baton, registered: LabWorker) -> None:
    policy = {"max_attempts": 5, "initial_backoff": "0.2s", "backoff_multiplier": 1, "jitter": 0}
    run = await baton.run(one_step(registered, {"failures": 9}, step_timeout="0.5s", retry=policy))
    assert run.state == FAILED
    assert len(registered.arrivals()) in (2, 3)


async def test_a_queue_timeout_fails_a_step_that_nobody_takes(baton: Baton, registered: LabWorker) -> None:
    await registered.say_serving(False)

    async def is_heard() -> bool:
        endpoints = (await baton.worker(name_of(registered))).endpoints
        return [one.health for one in endpoints] == [worker_pb2.ENDPOINT_HEALTH_NOT_SERVING]

    await eventually(is_heard)
    run = await baton.submit(one_step(registered, queue_timeout="0.4s"))
    await baton.waiting(run.run_id, "a", run_pb2.WAIT_KIND_WORKER_NOT_SERVING)
    run = await baton.end(run.run_id)
    assert (run.state, run.failure.reason) == (FAILED, "QUEUE_TIMEOUT")
    assert micros(run.steps[0].end_time) - micros(run.steps[0].ready_time) >= 400_000
    assert not registered.arrivals()
    assert not run.steps[0].attempts


@pytest.mark.parametrize("given_by", ["workflow", "request"])
async def test_a_run_timeout_ends_everything(baton: Baton, registered: LabWorker, given_by: str) -> None:
    definition = one_step(registered, {"hang": True})
    fields: dict[str, Any] = {}
    if given_by == "workflow":
        definition["run_timeout"] = "0.5s"
    else:
        fields["run_timeout"] = timedelta(seconds=0.5)
    run = await baton.run(definition, **fields)
    assert (run.state, run.failure.reason) == (FAILED, "RUN_TIMEOUT")
    assert run.steps[0].state == run_pb2.STEP_STATE_CANCELLED
    assert micros(run.end_time) >= micros(run.expire_time)
    assert micros(run.expire_time) - micros(run.create_time) <= 500_000
    await registered.noted(lambda notes: any(note.what == "cancelled" for note in notes))


async def test_cancelling_a_run_cancels_the_calls_of_its_workers(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(one_step(registered, {"hang": True}))
    await registered.arrived()
    cancelled = await baton.cancel(run.run_id, "no longer needed")
    assert cancelled.state == CANCELLED
    assert cancelled.steps[0].state == run_pb2.STEP_STATE_CANCELLED
    assert cancelled.failure.message == "no longer needed"
    await registered.noted(lambda notes: any(note.what == "cancelled" for note in notes))
    assert (await baton.cancel(run.run_id, "again")).end_time == cancelled.end_time
    assert kinds(await baton.events(run.run_id))[-2:] == ["step_cancelled a", "run_cancelled"]


async def test_a_call_at_most_once_whose_connection_is_lost_is_not_made_again(
    baton: Baton, registered: LabWorker
) -> None:
    definition = one_step(registered, {"hang": True}, delivery="DELIVERY_AT_MOST_ONCE", retry=quick(5))
    run = await baton.submit(definition)
    await registered.arrived()
    await registered.stop()
    run = await baton.end(run.run_id)
    assert (run.state, run.failure.reason, run.failure.outcome_unknown) == (FAILED, "OUTCOME_UNKNOWN", True)
    assert len(registered.arrivals()) == 1


async def test_a_call_at_most_once_is_made_again_where_nothing_was_sent(baton: Baton, registered: LabWorker) -> None:
    await registered.stop()
    definition = one_step(registered, delivery="DELIVERY_AT_MOST_ONCE", retry=quick(50, backoff_multiplier=1))
    run = await baton.submit(definition)

    def failed(run: run_pb2.Run) -> bool:
        return any(attempt.failure.reason == "CONNECT_FAILED" for attempt in run.steps[0].attempts)

    async for update in baton.watch(run.run_id):
        if update.HasField("event") and update.event.HasField("attempt_failed"):
            break
    assert failed(await baton.get(run.run_id))
    await registered.start(registered.port)
    run = await baton.end(run.run_id)
    assert run.state == SUCCEEDED
    assert len(registered.arrivals()) == 1


async def test_cancelling_while_a_run_ends_tells_one_of_the_two(baton: Baton, registered: LabWorker) -> None:
    for _ in range(10):
        run = await baton.submit(one_step(registered, {"gate": "open"}))
        await registered.arrived()
        calls = [asyncio.ensure_future(baton.cancel(run.run_id)) for _ in range(3)]
        registered.gates["open"].set()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                refusal = Refusal(answer)
                assert (refusal.reason, refusal.metadata["state"]) == ("RUN_ENDED", "SUCCEEDED")
            else:
                assert answer.state == CANCELLED
        ended = await baton.end(run.run_id)
        assert ended.state in (SUCCEEDED, CANCELLED)
        registered.gates["open"].clear()
        registered.notes.clear()


async def test_a_worker_that_answers_with_rubbish_fails_its_step(baton: Baton, registered: LabWorker) -> None:
    async def rubbish(request: bytes, context: object) -> bytes:
        return b"\xff\xff\xff\xff"

    server = grpc.aio.server()
    handler = {"Do": grpc.unary_unary_rpc_method_handler(rubbish)}
    service = registered.contract.type("Lab")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handler),))
    await registered.stop()
    assert server.add_insecure_port(registered.address) == registered.port
    await server.start()
    try:
        run = await baton.run(one_step(registered, retry=quick(5, codes=["INTERNAL"])))
        assert (run.state, run.failure.reason) == (FAILED, "INVALID_OUTPUT")
        assert registered.contract.type("Result") in run.failure.message
    finally:
        await server.stop(None)
