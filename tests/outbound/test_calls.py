"""Calls over real sockets: how each way in which a call can end comes back as an answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import DebugInfo, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from orchestrator.domain.failures import MESSAGE_LIMIT_BYTES, Code, Failure, Origin
from orchestrator.engine.worker_ports import Answer
from orchestrator.outbound.calls import Outbound
from orchestrator.outbound.channels import Channels

from .conftest import Behaviour, WorkerProcess, call_of

Serve = Callable[[Behaviour], Awaitable[str]]
Spawn = Callable[..., Awaitable[WorkerProcess]]


def free_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def aborts(code: grpc.StatusCode, text: str) -> Behaviour:
    """A method that ends with a status."""

    async def behave(payload: bytes, context: Any) -> bytes:
        await context.abort(code, text)
        raise AssertionError

    return behave


def answers_status(code: Code, *details: Any) -> Behaviour:
    """A method that ends with a rich status."""
    status = Status(code=int(code), message="declined")
    for detail in details:
        status.details.add().Pack(detail)

    async def behave(payload: bytes, context: Any) -> bytes:
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError

    return behave


def failure_of(answer: Answer) -> Failure:
    assert answer.payload is None
    assert answer.failure is not None
    return answer.failure


async def test_bytes_and_metadata_arrive_and_the_answer_comes_back(serve: Serve, outbound: Outbound) -> None:
    seen: dict[str, Any] = {}

    async def echo(payload: bytes, context: Any) -> bytes:
        seen.update(context.invocation_metadata())
        seen["time"] = context.time_remaining()
        return payload[::-1]

    address = await serve(echo)
    answer = await outbound.call(call_of(address, b"\x00abc", 3.0, attempt=2))
    assert answer == Answer(payload=b"cba\x00")
    assert seen["baton-attempt"] == "2"
    assert 2.0 < seen["time"] < 3.1  # gRPC may round it up a little


async def test_an_empty_message_is_an_answer(serve: Serve, outbound: Outbound) -> None:
    async def nothing(payload: bytes, context: Any) -> bytes:
        return b""

    assert await outbound.call(call_of(await serve(nothing))) == Answer(payload=b"")


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
async def test_each_status_of_a_worker_becomes_its_failure(serve: Serve, outbound: Outbound, code: Code) -> None:
    address = await serve(aborts(grpc.StatusCode[code.name], "the worker's text"))
    answer = await outbound.call(call_of(address))
    assert failure_of(answer) == Failure(
        code=code,
        reason=code.name,
        message="the worker's text",
        origin=Origin.WORKER,
        outcome_unknown=code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"},
    )
    assert answer.sent
    assert answer.against_circuit == (code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED))


async def test_details_make_the_answer_the_workers_own(serve: Serve, outbound: Outbound) -> None:
    info = ErrorInfo(reason="CARD_DECLINED", domain="shop", metadata={"card": "1"})
    retry = RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    answer = await outbound.call(call_of(await serve(answers_status(Code.UNAVAILABLE, info, retry))))
    failure = failure_of(answer)
    assert (failure.code, failure.reason, failure.message) == (Code.UNAVAILABLE, "CARD_DECLINED", "declined")
    assert failure.origin is Origin.WORKER
    assert not failure.outcome_unknown
    assert not answer.against_circuit
    assert answer.retry_delay_us == 2_500_000
    unpacked = ErrorInfo()
    assert AnyMessage.FromString(failure.details[0]).Unpack(unpacked)
    assert unpacked == info
    assert len(failure.details) == 2


async def test_details_beyond_their_limit_are_left_out_and_the_reason_kept(serve: Serve, outbound: Outbound) -> None:
    details = (ErrorInfo(reason="TOO_MUCH", domain="shop"), DebugInfo(detail="x" * 17_000))
    answer = await outbound.call(call_of(await serve(answers_status(Code.ABORTED, *details))))
    assert failure_of(answer).details == ()
    assert failure_of(answer).reason == "TOO_MUCH"


@pytest.mark.parametrize(
    ("seconds", "expected_us"), [(-5, 0), (315_576_000_000, 3_600_000_000)], ids=["negative", "ten thousand years"]
)
async def test_the_wait_that_a_worker_asks_for_is_bounded(
    serve: Serve, outbound: Outbound, seconds: int, expected_us: int
) -> None:
    retry = RetryInfo(retry_delay=Duration(seconds=seconds))
    answer = await outbound.call(call_of(await serve(answers_status(Code.RESOURCE_EXHAUSTED, retry))))
    assert answer.retry_delay_us == expected_us


@pytest.mark.parametrize(
    "trailer",
    [b"\xff\xff\xff", Status(code=5, details=[AnyMessage(type_url="x/y")]).SerializeToString()],
    ids=["malformed", "of another code"],
)
async def test_details_that_make_no_sense_are_passed_over(serve: Serve, outbound: Outbound, trailer: bytes) -> None:
    async def behave(payload: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.INTERNAL, "text", (("grpc-status-details-bin", trailer),))
        raise AssertionError

    failure = failure_of(await outbound.call(call_of(await serve(behave))))
    assert (failure.code, failure.details, failure.outcome_unknown) == (Code.INTERNAL, (), True)


async def test_a_malformed_error_info_is_kept_but_not_read(serve: Serve, outbound: Outbound) -> None:
    status = Status(code=int(Code.ABORTED), message="text")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")

    async def behave(payload: bytes, context: Any) -> bytes:
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError

    failure = failure_of(await outbound.call(call_of(await serve(behave))))
    assert failure.reason == "ABORTED"
    assert len(failure.details) == 1


@pytest.mark.parametrize("length", [3_000, 30_000])
async def test_a_long_error_text_is_cut(serve: Serve, outbound: Outbound, length: int) -> None:
    address = await serve(aborts(grpc.StatusCode.FAILED_PRECONDITION, "é" * length))
    failure = failure_of(await outbound.call(call_of(address)))
    assert failure.code is Code.FAILED_PRECONDITION
    assert failure.message.endswith("…")
    assert MESSAGE_LIMIT_BYTES - 3 < len(failure.message.encode()) <= MESSAGE_LIMIT_BYTES


async def test_an_error_text_beyond_all_measure_is_refused_and_says_so(serve: Serve, outbound: Outbound) -> None:
    address = await serve(aborts(grpc.StatusCode.FAILED_PRECONDITION, "é" * 500_000))
    failure = failure_of(await outbound.call(call_of(address)))
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
    assert failure.outcome_unknown


async def test_an_answer_of_five_mebibytes_is_refused_and_its_outcome_unknown(serve: Serve, outbound: Outbound) -> None:
    async def behave(payload: bytes, context: Any) -> bytes:
        return b"x" * (5 << 20)

    address = await serve(behave)
    answer = await outbound.call(call_of(address))
    failure = failure_of(answer)
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
    assert failure.origin is Origin.ORCHESTRATOR
    assert failure.outcome_unknown
    assert not answer.against_circuit
    assert address in failure.message
    assert "Stream" not in failure.message


async def test_a_request_of_five_mebibytes_is_not_sent(serve: Serve, outbound: Outbound) -> None:
    calls: list[bytes] = []

    async def behave(payload: bytes, context: Any) -> bytes:
        calls.append(payload)
        return payload

    address = await serve(behave)
    answer = await outbound.call(call_of(address, b"x" * (5 << 20)))
    assert failure_of(answer).reason == "PAYLOAD_TOO_LARGE"
    assert not answer.sent
    assert not failure_of(answer).outcome_unknown
    assert calls == []
    assert (await outbound.call(call_of(address, b"x" * (4 << 20), 10.0))).payload is not None


async def test_a_call_that_takes_too_long_times_out_and_may_have_taken_effect(serve: Serve, outbound: Outbound) -> None:
    async def behave(payload: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    answer = await outbound.call(call_of(await serve(behave), deadline_seconds=0.2))
    failure = failure_of(answer)
    assert (failure.code, failure.reason, failure.origin) == (
        Code.DEADLINE_EXCEEDED,
        "ATTEMPT_TIMEOUT",
        Origin.TIMEOUT,
    )
    assert failure.outcome_unknown
    assert answer.sent
    assert answer.against_circuit


async def test_no_time_left_means_no_call(outbound: Outbound) -> None:
    answer = await outbound.call(call_of(free_address(), deadline_seconds=0.0))
    assert failure_of(answer).reason == "ATTEMPT_TIMEOUT"
    assert not failure_of(answer).outcome_unknown
    assert not answer.sent
    assert not answer.against_circuit


async def test_nobody_there_is_a_connect_failure_and_nothing_was_sent(outbound: Outbound) -> None:
    address = free_address()
    answer = await outbound.call(call_of(address))
    failure = failure_of(answer)
    assert (failure.code, failure.reason, failure.origin) == (Code.UNAVAILABLE, "CONNECT_FAILED", Origin.TRANSPORT)
    assert not failure.outcome_unknown
    assert not answer.sent
    assert answer.against_circuit
    assert address in failure.message


@pytest.mark.alone
async def test_where_nobody_has_been_for_long_the_next_call_does_not_wait_as_long(channels: Channels) -> None:
    outbound = Outbound(channels, connect_timeout_seconds=2.0)
    address = free_address()
    first_started = time.monotonic()
    await outbound.call(call_of(address))
    second_started = time.monotonic()
    await outbound.call(call_of(address))
    assert second_started - first_started >= 1.9
    assert time.monotonic() - second_started < 1.5


async def test_a_worker_that_comes_while_a_call_waits_is_called(spawn: Spawn, channels: Channels) -> None:
    outbound = Outbound(channels, connect_timeout_seconds=10.0)
    address = free_address()
    waiting = asyncio.create_task(outbound.call(call_of(address, b"late", 20.0)))
    with channels.hold(address) as connection:
        assert not await connection.wait_ready(0.05)
    await spawn(int(address.split(":")[1]))
    assert await waiting == Answer(payload=b"late")


async def test_killing_the_worker_in_the_middle_leaves_the_outcome_unknown(spawn: Spawn, outbound: Outbound) -> None:
    worker = await spawn()
    calling = asyncio.create_task(outbound.call(call_of(worker.address, b"hang", 30.0)))
    assert await worker.line() == "hang"
    await worker.kill()
    answer = await asyncio.wait_for(calling, 5)
    failure = failure_of(answer)
    assert (failure.code, failure.reason, failure.origin) == (Code.UNAVAILABLE, "UNAVAILABLE", Origin.TRANSPORT)
    assert failure.outcome_unknown
    assert answer.sent
    assert answer.against_circuit
    assert worker.address in failure.message

    again = await spawn(int(worker.address.split(":")[1]))
    assert await outbound.call(call_of(again.address, b"back")) == Answer(payload=b"back")


async def test_cancelling_the_task_cancels_the_call_at_the_worker(spawn: Spawn, outbound: Outbound) -> None:
    worker = await spawn()
    calling = asyncio.create_task(outbound.call(call_of(worker.address, b"hang", 30.0)))
    assert await worker.line() == "hang"
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await worker.line() == "cancelled"


async def test_cancelling_while_connecting_leaves_the_channel_usable(spawn: Spawn, channels: Channels) -> None:
    outbound = Outbound(channels, connect_timeout_seconds=10.0)
    address = free_address()
    waiting = asyncio.create_task(outbound.call(call_of(address, b"never", 20.0)))
    with channels.hold(address) as connection:
        assert not await connection.wait_ready(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    worker = await spawn(int(address.split(":")[1]))
    assert await outbound.call(call_of(address, b"now", 20.0)) == Answer(payload=b"now")
    assert await worker.line() == "now"


async def test_metadata_that_cannot_be_sent_is_a_failure_and_no_exception(serve: Serve, outbound: Outbound) -> None:
    address = await serve(aborts(grpc.StatusCode.ABORTED, "called"))
    answer = await outbound.call(call_of(address, step="line\nbreak"))
    assert failure_of(answer).code is Code.INTERNAL
    assert not answer.sent


async def test_an_unknown_method_is_the_workers_answer(serve: Serve, outbound: Outbound) -> None:
    address = await serve(aborts(grpc.StatusCode.ABORTED, "called"))
    failure = failure_of(await outbound.call(call_of(address, method="nothing.v1.Nothing/Else")))
    assert (failure.code, failure.origin, failure.outcome_unknown) == (Code.UNIMPLEMENTED, Origin.WORKER, False)


async def test_calls_to_one_address_share_one_connection(serve: Serve, outbound: Outbound, channels: Channels) -> None:
    peers: set[str] = set()

    async def behave(payload: bytes, context: Any) -> bytes:
        peers.add(context.peer())
        return payload

    address = await serve(behave)
    answers = await asyncio.gather(*(outbound.call(call_of(address, b"x")) for _ in range(50)))
    assert all(answer.payload == b"x" for answer in answers)
    assert len(peers) == 1
    assert len(channels) == 1


async def test_closing_ends_calls_in_flight_as_lost_and_refuses_new_ones(serve: Serve) -> None:
    arrived = asyncio.Event()

    async def behave(payload: bytes, context: Any) -> bytes:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    channels = Channels()
    outbound = Outbound(channels)
    address = await serve(behave)
    calling = asyncio.create_task(outbound.call(call_of(address)))
    await arrived.wait()
    await channels.close()
    answer = await asyncio.wait_for(calling, 5)
    assert (failure_of(answer).code, failure_of(answer).origin) == (Code.UNAVAILABLE, Origin.TRANSPORT)
    assert failure_of(answer).outcome_unknown
    refused = await outbound.call(call_of(address))
    assert failure_of(refused).reason == "CONNECT_FAILED"
    assert not refused.against_circuit
