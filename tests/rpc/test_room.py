"""Requests that are served at once are bounded in bytes: what is above is refused at once, and small ones never are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

from orchestrator.engine.room import ReadRoom
from orchestrator.rpc.layers import hold_answer
from orchestrator.rpc.receipts import Receipts
from tests.rpc.conftest import make_server
from tests.rpc.fakes import FakeEngine

LIMIT_BYTES = 100_000


def submission(size: int) -> run_service_pb2.SubmitRunRequest:
    request = run_service_pb2.SubmitRunRequest(workflow="pay")
    request.input.Pack(BytesValue(value=b"x" * size))
    return request


@pytest.fixture
async def runs(engine: FakeEngine) -> AsyncIterator[Any]:
    """RunService of a server that serves LIMIT_BYTES of requests at once."""
    server = make_server(engine, requests_limit_bytes=LIMIT_BYTES)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        yield run_service_pb2_grpc.RunServiceStub(channel)
    await server.stop(0)
    await server.close()


async def test_requests_beyond_the_bytes_served_at_once_are_refused_and_taken_when_others_have_left(
    engine: FakeEngine, runs: Any
) -> None:
    engine.hold = asyncio.Event()
    waiting = [asyncio.ensure_future(runs.SubmitRun(submission(60_000)))]
    await asyncio.wait_for(engine.entered.wait(), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.SubmitRun(submission(60_000))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"the replica takes {LIMIT_BYTES} at once" in str(caught.value.details())
    status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert info.reason == "TOO_MANY_REQUESTS"
    assert retry.retry_delay.ToMilliseconds() > 0

    engine.entered.clear()
    waiting.append(asyncio.ensure_future(runs.SubmitRun(submission(1_000))))
    await asyncio.wait_for(engine.entered.wait(), 5)
    engine.hold.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    for _ in range(3):  # What was answered has given its room back.
        await runs.SubmitRun(submission(90_000))


async def test_an_answer_counts_until_its_caller_has_taken_it(engine: FakeEngine) -> None:
    room = ReadRoom(1 << 20)
    server = make_server(engine, read_room=room)
    engine.run_list = [run_pb2.Run(run_id="r", workflow="x" * 2_000_000)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        call = run_service_pb2_grpc.RunServiceStub(channel).ListRuns(run_service_pb2.ListRunsRequest())
        assert len((await asyncio.wait_for(call, 5)).runs) == 1
        assert await asyncio.wait_for(room.take(1 << 20), 5) == 1 << 20  # It was counted, and is no more.
    await server.stop(0)
    await server.close()


async def test_an_answer_that_nobody_takes_counts_for_a_while_only() -> None:
    room, ended = ReadRoom(1 << 20), list[Any]()
    context: Any = SimpleNamespace(add_done_callback=ended.append)
    hold_answer(room, 1_000_000, context, 0.05)
    hold_answer(room, 48_576, context, 60.0)
    assert room.taken_bytes == 1 << 20
    assert await asyncio.wait_for(room.take(1_000_000), 5) == 1_000_000  # That of the first.
    room.give(1_000_000)
    ended[0](None)
    assert room.taken_bytes == 48_576
    ended[1](None)
    assert room.taken_bytes == 0


async def test_large_requests_are_received_a_few_at_a_time_and_small_ones_do_not_wait(engine: FakeEngine) -> None:
    server = make_server(engine, receipts=Receipts(2, 60.0, 0.2))
    held = asyncio.Event()

    async def body() -> AsyncIterator[Any]:
        await held.wait()
        yield submission(10_000)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub = run_service_pb2_grpc.RunServiceStub(channel)
        # As SubmitRun, but its request comes later than its call.
        begin = channel.stream_unary(
            "/baton.v1.RunService/SubmitRun",
            request_serializer=run_service_pb2.SubmitRunRequest.SerializeToString,
            response_deserializer=run_service_pb2.SubmitRunResponse.FromString,
        )
        begun = [begin(body()) for _ in range(3)]
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(call.code()) for call in begun], timeout=10, return_when="FIRST_COMPLETED"
        )
        assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        await asyncio.wait_for(stub.ListRuns(run_service_pb2.ListRunsRequest()), 5)
        held.set()
        answers = await asyncio.wait_for(asyncio.gather(*begun, return_exceptions=True), 10)
        assert sum(isinstance(answer, grpc.aio.AioRpcError) for answer in answers) == 1
        await asyncio.wait_for(stub.SubmitRun(submission(10_000)), 5)
    await server.stop(0)
    await server.close()


async def test_who_sends_slowly_or_leaves_holds_up_others_for_a_while_only() -> None:
    receipts, never = Receipts(2, 0.2, 60.0), asyncio.Event()

    async def receive() -> None:
        assert await receipts.begin()
        await never.wait()

    slow, left = asyncio.create_task(receive()), asyncio.create_task(receive())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    others = [asyncio.create_task(receive()) for _ in range(2)]
    await asyncio.wait_for(asyncio.gather(*(asyncio.create_task(receipts.begin()) for _ in range(4))), 10)
    for task in (slow, *others):
        task.cancel()


async def test_callers_who_leave_while_others_wait_hold_up_nobody() -> None:
    receipts = Receipts(2, 60.0, 60.0)

    async def receive() -> None:
        assert await receipts.begin()
        await asyncio.Event().wait()

    async def follow() -> None:
        assert await receipts.begin()
        receipts.end()

    leaving = [asyncio.create_task(receive()) for _ in range(2)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(follow()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*others), 10)
