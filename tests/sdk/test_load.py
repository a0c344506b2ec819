"""A client under load: submissions go together, ends come over one stream, and each call is as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from baton import (
    BatonError,
    Client,
    Conflict,
    InvalidRequest,
    RunFailed,
    RunHandle,
    Unavailable,
    WaitTimeout,
    connection,
)
from baton import ends as ends_module
from baton.v1 import failure_pb2, run_pb2, run_service_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from teashop.v1.teashop_pb2 import OrderInput, OrderOutput

from .double import NAMED_RUNS, UNAVAILABLE, Double, rich
from .typing_ok import fulfil

OUTPUT = OrderOutput(payment_id="p-1", reservation_id="r-1")
LOAD = 8
"""Submissions that a client sends one by one before others go together."""


def order(number: int) -> OrderInput:
    return OrderInput(order_id=f"o-{number}")


def refusal(code: int, reason: str, field: str = "") -> status_pb2.Status:
    status = status_pb2.Status(code=code, message="so it is")
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="baton")]
    if field:
        fault = {"field": field, "reason": reason, "description": "is wrong"}
        details.append(error_details_pb2.BadRequest(field_violations=[fault]))  # type: ignore[arg-type,list-item]
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


@pytest.fixture
async def loaded(double: Double, client: Client) -> AsyncIterator[Client]:
    """A client with so many waits under way that whatever it submits next goes with others."""
    waiting = [asyncio.ensure_future(client.execute(fulfil, order(0))) for _ in range(LOAD)]
    await double.until("SubmitRun", LOAD)
    assert not double.requests["SubmitRuns"]
    yield client
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def submitted(client: Client, count: int) -> list[RunHandle[OrderOutput]]:
    return list(await asyncio.gather(*(client.submit(fulfil, order(number)) for number in range(count))))


async def test_a_client_that_is_not_loaded_sends_each_submission_alone(double: Double, client: Client) -> None:
    for _ in range(20):
        await client.submit(fulfil, order(0))
    await asyncio.gather(*(client.submit(fulfil, order(0)) for _ in range(LOAD)))
    assert len(double.requests["SubmitRun"]) == 20 + LOAD
    assert not double.requests["SubmitRuns"]
    assert {request.client_id for request in double.requests["SubmitRun"]} == {""}


async def test_submissions_of_one_turn_go_together(double: Double, loaded: Client) -> None:
    handles = await submitted(loaded, 600)
    assert len({handle.id for handle in handles}) == 600
    assert [len(request.requests) for request in double.requests["SubmitRuns"]] == [256, 256, 88]
    for number, handle in enumerate(handles):
        assert double.held[handle.id].run.input.value == order(number).SerializeToString()


async def test_ends_of_many_come_over_one_stream(double: Double, loaded: Client) -> None:
    executing = [asyncio.ensure_future(loaded.execute(fulfil, order(number))) for number in range(300)]
    await double.until("WatchRuns", 1)
    await double.until_held(LOAD + 300)
    for run_id in list(double.held)[LOAD:]:
        await double.finish(run_id, OUTPUT)
    assert await asyncio.gather(*executing) == [OUTPUT] * 300
    assert len(double.requests["WatchRuns"]) == 1
    assert not double.requests["WaitRun"]


async def test_what_ended_before_anybody_waited_is_told(double: Double, loaded: Client) -> None:
    handles = await submitted(loaded, 50)
    for handle in handles:
        await double.finish(handle.id, OUTPUT)
    assert await asyncio.gather(*(handle.result() for handle in handles)) == [OUTPUT] * 50
    assert not double.requests["WaitRun"]
    assert not double.requests["GetRun"]


async def test_a_wait_brings_the_steps_and_a_result_does_not_need_them(double: Double, loaded: Client) -> None:
    handles = await submitted(loaded, 4)
    for handle in handles[:3]:
        await double.finish(handle.id, OUTPUT)
    await double.finish(handles[3].id, failure=failure_pb2.Failure(code=9, reason="CARD_DECLINED"))
    assert [step.step for step in (await handles[0].wait()).steps] == ["charge"]
    assert await handles[1].result() == OUTPUT
    assert not handles[1].run.steps
    assert [step.step for step in (await handles[1].wait()).steps] == ["charge"]
    with pytest.raises(RunFailed, match="CARD_DECLINED") as caught:
        await handles[3].result()
    assert [step.step for step in caught.value.run.steps] == ["charge"]


async def test_each_submission_has_its_own_error(double: Double, loaded: Client) -> None:
    double.refuse_next = [
        refusal(3, "INPUT_INVALID", "requests[0].input.amount"),
        refusal(6, "REQUEST_ID_REUSED"),
        refusal(3, "INVALID_REQUEST", "requests[2]"),
    ]
    answers = await asyncio.gather(
        *(loaded.submit(fulfil, order(number)) for number in range(4)), return_exceptions=True
    )
    first, second, third, last = answers
    assert isinstance(first, InvalidRequest)
    assert (first.reason, [each.path for each in first.violations]) == ("INPUT_INVALID", ["input.amount"])
    assert isinstance(second, Conflict)
    assert isinstance(third, InvalidRequest)
    assert [each.path for each in third.violations] == [""]
    assert isinstance(last, RunHandle)
    assert len(double.requests["SubmitRuns"]) == 1


async def test_batches_are_repeated_while_baton_is_away(double: Double, loaded: Client) -> None:
    double.fail_next["SubmitRuns"] = [UNAVAILABLE, UNAVAILABLE]
    handles = await submitted(loaded, 20)
    assert len({handle.id for handle in handles}) == 20
    assert len(double.held) == LOAD + 20
    assert any(handle.existing for handle in handles)
    for handle in handles:
        await double.finish(handle.id, OUTPUT)
    assert await asyncio.gather(*(handle.result() for handle in handles)) == [OUTPUT] * 20


async def test_a_submission_that_baton_has_no_room_for_is_repeated(double: Double, loaded: Client) -> None:
    full = rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS", "full", delay=0.01)
    ((_, details),) = full.trailing_metadata
    double.refuse_next = [status_pb2.Status.FromString(details)]
    handles = await submitted(loaded, 3)
    assert len({handle.id for handle in handles}) == 3
    assert len(double.requests["SubmitRuns"]) == 2


async def test_retries_of_batches_are_bounded(double: Double) -> None:
    async with Client(double.address, retry_timeout=0.3) as client:
        waiting = [asyncio.ensure_future(client.execute(fulfil, order(0))) for _ in range(LOAD)]
        await double.until("SubmitRun", LOAD)
        double.fail_next["SubmitRuns"] = [UNAVAILABLE] * 1000
        with pytest.raises(Unavailable, match="SHUTTING_DOWN"):
            await client.submit(fulfil, order(1))
        for each in waiting:
            each.cancel()


async def test_a_batch_that_baton_held_before_it_went_away_is_repeated_for_longer(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HELD_SECONDS", 0.0)
    async with Client(double.address, retry_timeout=0.2) as client:
        waiting = [asyncio.ensure_future(client.execute(fulfil, order(0))) for _ in range(LOAD)]
        await double.until("SubmitRun", LOAD)
        double.fail_next["SubmitRuns"] = [UNAVAILABLE] * 6
        assert (await client.submit(fulfil, order(1))).id in double.held
        for each in waiting:
            each.cancel()


async def test_a_submission_that_was_taken_has_a_handle_whatever_becomes_of_its_wait(
    double: Double, loaded: Client
) -> None:
    double.fail_next["WatchRuns"] = [rich(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED", "another database")]
    double.fail_next["WaitRun"] = [rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_READS", "no room")]
    run = await loaded.submit(fulfil, order(1), wait_timeout=60)
    await double.finish(run.id, OUTPUT)
    assert await run.result() == OUTPUT


async def test_a_broken_stream_is_taken_up_again(double: Double, loaded: Client) -> None:
    executing = [asyncio.ensure_future(loaded.execute(fulfil, order(number))) for number in range(30)]
    await double.until("WatchRuns", 1)
    double.cuts = ["unavailable", "", "unavailable"]
    for run_id in list(double.held)[LOAD:]:
        await double.finish(run_id, OUTPUT)
    assert await asyncio.gather(*executing) == [OUTPUT] * 30


async def test_load_outlives_a_restart_of_baton(double: Double, loaded: Client) -> None:
    executing = [asyncio.ensure_future(loaded.execute(fulfil, order(number))) for number in range(30)]
    await double.until("WatchRuns", 1)
    await double.stop()
    for run_id in list(double.held)[LOAD:]:
        await double.finish(run_id, OUTPUT)
    await double.start()
    assert await asyncio.gather(*executing) == [OUTPUT] * 30
    assert not double.requests["WaitRun"]


async def test_a_cursor_that_has_expired_is_made_good_run_by_run(double: Double, loaded: Client) -> None:
    expired = rich(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED", "another database")
    double.fail_next["WatchRuns"] = [expired]
    executing = [asyncio.ensure_future(loaded.execute(fulfil, order(number))) for number in range(10)]
    await double.until("WaitRun", 10)
    for run_id in list(double.held)[LOAD:]:
        await double.finish(run_id, OUTPUT)
    assert await asyncio.gather(*executing) == [OUTPUT] * 10


async def test_a_server_that_knows_no_batches_gets_none(double: Double, loaded: Client) -> None:
    double.knows_batches = False
    executing = [asyncio.ensure_future(loaded.execute(fulfil, order(number))) for number in range(20)]
    await double.until("SubmitRun", LOAD + 20)
    assert {request.client_id for request in double.requests["SubmitRun"]} == {""}
    for run_id in list(double.held)[LOAD:]:
        await double.finish(run_id, OUTPUT)
    assert await asyncio.gather(*executing) == [OUTPUT] * 20


async def test_too_much_that_nobody_waits_for_is_forgotten_and_asked_for(
    double: Double, loaded: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends_module, "_KEPT_RUNS", 5)
    handles = await submitted(loaded, 12)
    first = asyncio.ensure_future(handles[0].result())
    await double.until("WatchRuns", 1)
    for handle in reversed(handles):
        await double.finish(handle.id, OUTPUT)
    assert await first == OUTPUT
    assert await asyncio.gather(*(handle.result() for handle in handles)) == [OUTPUT] * 12
    assert 0 < len(double.requests["WaitRun"]) < 12


async def test_waits_under_load_have_an_end_and_can_be_left(double: Double, loaded: Client) -> None:
    (handle,) = await submitted(loaded, 1)
    with pytest.raises(WaitTimeout):
        await handle.result(0.05)
    waiting = asyncio.ensure_future(handle.result())
    other = asyncio.ensure_future(handle.result())
    await double.until("WatchRuns", 1)
    waiting.cancel()
    await double.finish(handle.id, OUTPUT)
    assert await other == OUTPUT


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_ends_while_nobody_waits_any_more_is_told_to_who_waits_again(
    double: Double, loaded: Client, cancelled: bool
) -> None:
    handle, other = await submitted(loaded, 2)
    waiting = asyncio.ensure_future(handle.result(None if cancelled else 0.05))
    await double.until("WatchRuns", 1)
    if cancelled:
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else WaitTimeout):
        await waiting
    for each in (handle, other):  # once the second is told, the first was told before
        await double.finish(each.id, OUTPUT)
    assert await other.result() == OUTPUT
    assert await handle.result(5) == OUTPUT
    assert not double.requests["WaitRun"]


async def test_an_end_that_is_told_as_its_waiter_is_cancelled_is_not_lost(
    double: Double, loaded: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (handle,) = await submitted(loaded, 1)
    waiting = asyncio.ensure_future(handle.result())
    await double.until("WatchRuns", 1)
    tell = ends_module.Ends._tell

    def tell_and_cancel(told: ends_module.Ends, run: run_pb2.Run) -> None:
        tell(told, run)
        waiting.cancel()

    monkeypatch.setattr(ends_module.Ends, "_tell", tell_and_cancel)
    await double.finish(handle.id, OUTPUT)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await handle.result(5) == OUTPUT
    assert not double.requests["WaitRun"]


async def fail_all(double: Double, handles: list[RunHandle[OrderOutput]]) -> None:
    """Has runs fail, and waits until the client was told: once the last has ended, the others were told before."""
    *failing, last = handles
    waiting = asyncio.ensure_future(last.wait())
    await double.until("WatchRuns", 1)
    for handle in failing:
        await double.finish(handle.id, failure=failure_pb2.Failure(code=9, reason="CARD_DECLINED"))
    await double.finish(last.id, OUTPUT)
    await waiting


async def test_a_run_that_ended_again_is_told_with_its_newest_end(double: Double, loaded: Client) -> None:
    first, second, third = await submitted(loaded, 3)
    await fail_all(double, [first, second])
    await double.reopen(first.id)
    await double.finish(first.id, OUTPUT)
    await double.finish(third.id, OUTPUT)
    await third.wait()
    assert (await first.wait()).state == run_pb2.RUN_STATE_SUCCEEDED
    assert not double.requests["WaitRun"]


@pytest.mark.parametrize("mend", ["retry_run", "retry_step", "skip_step", "mend_runs"])
async def test_a_run_that_this_client_mends_is_not_told_with_its_former_end(
    double: Double, loaded: Client, mend: str
) -> None:
    handles = await submitted(loaded, NAMED_RUNS + 2)
    await fail_all(double, handles)
    *failed, _ = handles
    if mend == "mend_runs":
        request = run_service_pb2.MendRunsRequest(filter="state = FAILED")
        assert [page.mended async for page in loaded.mend_runs(request)] == [len(failed)]
    else:
        for handle in failed:
            await getattr(loaded, mend)(handle.id, *(() if mend == "retry_run" else ("charge",)))
    waiting = [asyncio.ensure_future(handle.wait()) for handle in failed]
    await double.until("WaitRun", len(failed))
    for handle in failed:
        await double.finish(handle.id, OUTPUT)
    assert [(await each).state for each in waiting] == [run_pb2.RUN_STATE_SUCCEEDED] * len(failed)


async def test_a_result_waits_on_where_a_run_that_failed_has_another_round_by_now(
    double: Double, loaded: Client
) -> None:
    (handle,) = await submitted(loaded, 1)
    result = asyncio.ensure_future(handle.result())
    await double.until("WatchRuns", 1)
    double.fail_next["GetRun"] = [UNAVAILABLE]
    await double.finish(handle.id, failure=failure_pb2.Failure(code=9, reason="CARD_DECLINED"))
    await double.until("GetRun", 1)
    await double.reopen(handle.id)
    await double.until("GetRun", 2)
    await double.finish(handle.id, OUTPUT)
    assert await result == OUTPUT


async def test_a_run_that_was_there_already_comes_whole(double: Double, loaded: Client) -> None:
    first = await loaded.submit(fulfil, order(1), request_id="order-17")
    await double.finish(first.id, OUTPUT)
    again = await loaded.submit(fulfil, order(1), request_id="order-17")
    assert (again.id, again.existing) == (first.id, True)
    assert await again.result() == OUTPUT


async def test_submissions_carry_the_trace_of_their_own_caller(double: Double, loaded: Client) -> None:
    from opentelemetry import trace

    async def traced(number: int) -> None:
        context = trace.SpanContext(trace_id=number, span_id=1, is_remote=False, trace_flags=trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(context)):
            await loaded.submit(fulfil, order(number))

    await asyncio.gather(traced(0xA), traced(0xB), loaded.submit(fulfil, order(3)))
    (request,) = double.requests["SubmitRuns"]
    expected = [f"00-{number:032x}-{1:016x}-01" for number in (0xA, 0xB)]
    assert [each.traceparent for each in request.requests] == [*expected, ""]
    assert "traceparent" not in double.metadata["SubmitRuns"][0]


@pytest.mark.parametrize("count", [101, 1000])
async def test_waits_do_not_hold_up_a_submission(double: Double, loaded: Client, count: int) -> None:
    handles = await submitted(loaded, count)
    waiting = [asyncio.ensure_future(handle.result()) for handle in handles]
    one_by_one = [asyncio.ensure_future(loaded.run(handle.id).wait()) for handle in handles]
    await double.until("WaitRun", count)
    await double.until("WatchRuns", 1)
    assert double.waiting == count + LOAD
    other = await loaded.submit(fulfil, order(1))
    assert other.id not in {handle.id for handle in handles}
    for handle in handles:
        await double.finish(handle.id, OUTPUT)
    assert await asyncio.gather(*waiting) == [OUTPUT] * count
    await asyncio.gather(*one_by_one)


async def test_ends_of_others_are_watched_by_filter_over_lost_streams(double: Double, client: Client) -> None:
    watch = client.watch_runs('client_id = ""')
    assert not (await anext(watch)).runs
    runs = [await client.submit(fulfil, order(number)) for number in range(3)]
    double.cuts = ["unavailable"]
    seen: list[str] = []
    for run in runs:
        await double.finish(run.id, OUTPUT)
        while run.id not in seen:
            seen += [each.run_id for each in (await anext(watch)).runs]
    assert seen == [run.id for run in runs]
    assert len(double.requests["WatchRuns"]) == 2
    double.fail_next["WatchRuns"] = [rich(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FILTER", "no such field")]
    with pytest.raises(InvalidRequest, match="INVALID_FILTER"):
        await anext(client.watch_runs("secret = 1"))


async def test_an_answer_that_tells_of_fewer_leaves_no_submission_without_an_end(
    double: Double, loaded: Client
) -> None:
    double.untold_results = 1
    submitting = (loaded.submit(fulfil, order(number)) for number in range(20))
    async with asyncio.timeout(10):
        made = await asyncio.gather(*submitting, return_exceptions=True)
    failed = [each for each in made if isinstance(each, BatonError)]
    assert [error.code for error in failed] == ["INTERNAL"]
