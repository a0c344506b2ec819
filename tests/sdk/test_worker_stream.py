"""Handlers on the work stream have what they have in unary calls; workers drain on it, and attach where they must."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from baton import Call, Failure, InvalidRequest, Worker, current
from baton.worker.v1 import work_pb2_grpc
from google.rpc import code_pb2, error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from teabank.v1.money_pb2 import ChargeRequest
from teashop.v1.teashop_pb2 import ChargeResponse

from .double import UNAVAILABLE, Double, rich
from .test_worker import Till
from .work_double import BatonHalf, WorkDouble

CHARGE = "teashop.v1.PaymentsService/Charge"
LATER = "teashop.v1.PaymentsService/ChargeLater"
REQUEST = ChargeRequest(order_id="o-1")
TOLD = {
    "run_id": "run-1",
    "step": "charge",
    "attempt": 2,
    "delivery": 3,
    "epoch": 4,
    "idempotency_key": "key",
    "step_token": "token",
    "traceparent": f"00-{0xABC:032x}-{0xDEF:016x}-01",
}


@pytest.fixture
async def stream(double: Double) -> AsyncIterator[Callable[..., Any]]:
    """Starts a worker of Till with a handler, and a stream to it."""
    workers: list[Worker] = []
    doubles: list[WorkDouble] = []

    async def start(handler: Any, **options: Any) -> WorkDouble:
        worker = Worker("payments", baton=double.address, **options)
        worker.add(Till(handler))
        workers.append(worker)
        doubles.append(WorkDouble())
        await doubles[-1].dial(await worker.start())
        doubles[-1].worker = worker  # type: ignore[attr-defined]
        return doubles[-1]

    yield start
    for each in doubles:
        await each.close()
    for worker in workers:
        await worker.stop(0)


@pytest.mark.parametrize("method", [CHARGE, LATER])
async def test_handlers_know_their_call(stream: Any, method: str) -> None:
    seen: list[tuple[Call, dict[str, str], float]] = []

    def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        seen.append((current(), dict(context.invocation_metadata()), context.time_remaining()))
        return ChargeResponse(payment_id=request.order_id)

    async def charge_async(request: ChargeRequest, context: Any) -> ChargeResponse:
        return charge(request, context)

    double = await stream(charge_async if method == CHARGE else charge)
    outcome = await double.outcome(double.give(method, REQUEST, timeout_seconds=5, **TOLD))
    assert ChargeResponse.FromString(outcome.response).payment_id == "o-1"
    call, metadata, remaining = seen[0]
    assert 0 < remaining <= 5
    assert call.deadline_seconds is not None
    assert call == Call(
        method=method,
        run="run-1",
        step="charge",
        attempt=2,
        delivery=3,
        epoch=4,
        idempotency_key="key",
        step_token="token",
        traceparent=TOLD["traceparent"],
        deadline_seconds=call.deadline_seconds,
    )
    assert metadata["baton-step-token"] == "token"
    assert "token" not in repr(call)


@pytest.mark.parametrize("method", [CHARGE, LATER])
async def test_failures_aborts_and_exceptions_are_those_of_unary_calls(
    stream: Any, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        if request.order_id == "failure":
            raise Failure("FAILED_PRECONDITION", "CARD_DECLINED", "no money", {"bank": "north"})
        if request.order_id == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        if request.order_id == "code":
            context.set_code(grpc.StatusCode.ABORTED)
            context.set_details("again")
            return ChargeResponse()
        if request.order_id == "stream":
            context.take_the_channel()
        raise ValueError("the password is xyzzy")

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        if request.order_id == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        return plain(request, context)

    double = await stream(charge if method == CHARGE else plain)

    async def status(order: str) -> Any:
        return (await double.outcome(double.give(method, ChargeRequest(order_id=order), **TOLD))).status

    declined = await status("failure")
    info = error_details_pb2.ErrorInfo()
    assert declined.details[0].Unpack(info)
    assert (declined.code, info.reason, info.domain) == (9, "CARD_DECLINED", "teashop.v1.PaymentsService")
    aborted = await status("abort")
    assert (aborted.code, aborted.message) == (code_pb2.NOT_FOUND, "no such order")
    coded = await status("code")
    assert (coded.code, coded.message) == (code_pb2.ABORTED, "again")
    with caplog.at_level(logging.ERROR, "baton.worker"):
        broken = await status("")
        refused = await status("stream")
    assert broken.code == refused.code == code_pb2.UNKNOWN
    assert "xyzzy" not in broken.message
    assert "run=run-1 step=charge attempt=2 delivery=3 idempotency_key=key" in caplog.text
    assert broken.message.rpartition("error_id=")[2] in caplog.text
    assert "the context of a call on the work stream has no 'take_the_channel'" in caplog.text


async def test_a_handler_may_use_timeouts_and_groups_of_its_own(stream: Any) -> None:
    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            named = group.create_task(asyncio.sleep(0, current().step))
        return ChargeResponse(payment_id=named.result())

    double = await stream(charge)
    numbers = [double.give(CHARGE, REQUEST, step=f"s{number}") for number in range(20)]
    for index, number in enumerate(numbers):
        assert ChargeResponse.FromString((await double.outcome(number)).response).payment_id == f"s{index}"


async def test_a_plain_handler_blocks_only_its_thread_and_hears_of_cancellation(stream: Any) -> None:
    entered, told = threading.Event(), threading.Event()

    def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        if request.order_id == "waits":
            context.add_callback(told.set)
            entered.set()
            assert told.wait(20)
            assert context.cancelled()
        return ChargeResponse(payment_id=threading.current_thread().name)

    double = await stream(charge, threads=2, max_in_flight=2)
    waits = double.give(LATER, ChargeRequest(order_id="waits"))
    assert await asyncio.to_thread(entered.wait, 20)
    other = await double.outcome(double.give(LATER, REQUEST))
    assert ChargeResponse.FromString(other.response).payment_id.startswith("baton-payments")
    double.cancel(waits)
    assert (await double.outcome(waits)).status.code == code_pb2.CANCELLED


async def test_a_plain_handler_that_exits_gives_its_slot_back(stream: Any, caplog: pytest.LogCaptureFixture) -> None:
    def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        if request.order_id == "exit":
            raise SystemExit(3)
        return ChargeResponse(payment_id="paid")

    double = await stream(charge, max_in_flight=1)
    exits = double.give(LATER, ChargeRequest(order_id="exit"))
    pays = double.give(LATER, REQUEST)
    assert (await double.outcome(exits)).status.code == code_pb2.UNKNOWN
    assert ChargeResponse.FromString((await double.outcome(pays)).response).payment_id == "paid"
    assert "SystemExit" in caplog.text


class Odd(BaseException):
    """None of those that Python or asyncio raise."""


@pytest.mark.parametrize("method", [CHARGE, LATER])
@pytest.mark.parametrize(
    "error",
    [
        Failure("NOT_FOUND", "NO_ORDER", "there is none", {"amount": 5}),  # type: ignore[dict-item]
        Failure("NOTFOUND", "NO_ORDER", "there is none"),
        Failure("NOT_FOUND", "NO_ORDER", "a file named \udc80"),
        Odd(),
        BaseExceptionGroup("many", [Odd()]),
    ],
    ids=["metadata that is no text", "an unknown code", "a text that is none", "odd", "a group of odd ones"],
)
async def test_whatever_a_handler_raises_its_slot_comes_back(stream: Any, method: str, error: BaseException) -> None:
    def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        raise error

    async def charge_async(request: ChargeRequest, context: Any) -> ChargeResponse:
        raise error

    double = await stream(charge if method == LATER else charge_async, max_in_flight=1)
    for _ in range(3):
        assert (await double.outcome(double.give(method, REQUEST))).status.code == code_pb2.UNKNOWN
    await double.until(lambda: double.half.credit == 1)


async def test_a_worker_may_take_more_at_a_time_than_sessions_hold_elsewhere(stream: Any) -> None:
    double = await stream(None, max_in_flight=30_000)
    assert double.half.credit == 30_000
    assert double.worker._serving.door._work.sessions.limits.held >= 30_000


@pytest.mark.parametrize("method", [CHARGE, LATER])
async def test_progress_is_told_and_conflated(stream: Any, method: str) -> None:
    release, plain_release = asyncio.Event(), threading.Event()

    def tell() -> None:
        for percent in range(101):
            current().progress(percent, f"at {percent}" + "!" * 2_000)
        with pytest.raises(ValueError, match="percent is from 0 to 100"):
            current().progress(101)

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        tell()
        await release.wait()
        return ChargeResponse()

    def charge_plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        tell()
        plain_release.wait(20)
        return ChargeResponse()

    double = await stream(charge if method == CHARGE else charge_plain)
    number = double.give(method, REQUEST)
    given = double.half.given[number]
    await double.until(lambda: given.progress and given.progress[-1].percent == 100)
    assert len(given.progress) < 20
    assert given.progress[-1].message.startswith("at 100!")
    assert len(given.progress[-1].message) == 1_024
    release.set()
    plain_release.set()
    await double.outcome(number)


async def test_progress_of_a_unary_call_goes_nowhere(double: Double) -> None:
    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        current().progress(50, "half")
        return ChargeResponse(payment_id="done")

    worker = Worker("payments", baton=double.address)
    worker.add(Till(charge))
    async with grpc.aio.insecure_channel(await worker.start()) as channel:
        from teashop.v1.teashop_pb2_grpc import PaymentsServiceStub

        assert (await PaymentsServiceStub(channel).Charge(REQUEST)).payment_id == "done"
    await worker.stop()


async def test_credit_is_shared_by_the_streams_and_given_back(stream: Any) -> None:
    double = await stream(None, max_in_flight=5)
    other = WorkDouble(BatonHalf("replica-2"))
    await other.dial(double.worker.address)
    await double.until(lambda: double.half.credit == 3)
    assert other.half.credit == 2
    await other.close()
    await double.until(lambda: double.half.credit == 5)


async def test_stopping_drains_the_streams(stream: Any, double: Double) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        entered.set()
        await release.wait()
        return ChargeResponse(payment_id="done")

    work = await stream(charge)
    await work.worker.registered()
    number = work.give(CHARGE, REQUEST)
    await entered.wait()
    stopping = asyncio.ensure_future(work.worker.stop())
    await work.until(lambda: work.half.drained)
    assert not stopping.done()
    assert work.half.credit == 0
    release.set()
    assert ChargeResponse.FromString((await work.outcome(number)).response).payment_id == "done"
    await stopping
    await work.until(lambda: work.code is not None)
    assert work.code is grpc.StatusCode.OK
    assert [line.split()[0] for line in double.journal] == ["register", "drain", "delete"]


async def test_the_stream_is_found_by_reflection(stream: Any) -> None:
    double = await stream(None)
    async with grpc.aio.insecure_channel(double.worker.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [each.name async for answer in asked for each in answer.list_services_response.service]
    assert "baton.worker.v1.WorkerService" in names


# --- attached workers


@pytest.fixture
async def door() -> AsyncIterator[Any]:
    """A Baton to attach to: its address, and what it says."""
    work = WorkDouble()
    servers: list[grpc.aio.Server] = []

    async def serve(address: str = "127.0.0.1:0") -> str:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        work_pb2_grpc.add_AttachServiceServicer_to_server(work, server)  # type: ignore[no-untyped-call,unused-ignore]
        port = server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    work.serve = serve  # type: ignore[attr-defined]
    work.servers = servers  # type: ignore[attr-defined]
    yield work
    await work.close()
    for server in servers:
        await server.stop(0)


async def charge_now(request: ChargeRequest, context: Any) -> ChargeResponse:
    return ChargeResponse(payment_id=request.order_id)


async def test_an_attached_worker_brings_its_contract_and_is_given_work(door: Any) -> None:
    worker = Worker("payments", baton=await door.serve())
    worker.add(Till(charge_now))
    assert await worker.start(attach=True) == ""
    await worker.registered()
    opening = door.half.opening
    assert list(opening.services) == ["teashop.v1.PaymentsService"]
    files = [file.name for file in opening.contract.file]
    assert files.index("teabank/v1/money.proto") < files.index("teashop/v1/teashop.proto")
    assert not any(name.startswith(("baton/", "grpc/")) for name in files)
    outcome = await door.outcome(door.give(CHARGE, REQUEST))
    assert ChargeResponse.FromString(outcome.response).payment_id == "o-1"
    async with asyncio.timeout(10):
        await worker.stop()
    assert door.half.drained


async def test_an_attached_worker_comes_back_to_what_it_holds(door: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        entered.set()
        await release.wait()
        return ChargeResponse(payment_id="done")

    address = await door.serve()
    worker = Worker("payments", baton=address)
    worker.add(Till(charge))
    await worker.start(attach=True)
    await worker.registered()
    number = door.give(CHARGE, REQUEST)
    await entered.wait()
    first = door.half.opening
    await door.servers.pop().stop(0)
    await door.until(lambda: door.half.opening is None)
    await door.serve(address)
    await door.until(lambda: door.half.opening is not None)
    assert door.half.opening.instance_id == first.instance_id
    assert list(door.half.opening.held) == [number]
    release.set()
    assert ChargeResponse.FromString((await door.outcome(number)).response).payment_id == "done"
    await worker.stop()


async def test_attaching_is_tried_again_until_baton_takes_it(door: Any, caplog: pytest.LogCaptureFixture) -> None:
    door.refusals.append(UNAVAILABLE)
    worker = Worker("payments", baton=await door.serve())
    worker.add(Till(charge_now))
    with caplog.at_level(logging.INFO, "baton.worker"):
        await worker.start(attach=True)
        await worker.registered()
    assert door.attached_count == 2
    assert "is not attached to Baton at" in caplog.text
    assert "this replica is draining" in caplog.text
    await worker.stop()


async def test_a_refused_worker_ends(door: Any) -> None:
    door.refusals.append(rich(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONTRACT", "teashop.v1 is not right"))
    worker = Worker("payments", baton=await door.serve())
    worker.add(Till(charge_now))
    async with asyncio.timeout(10):
        with pytest.raises(InvalidRequest, match=r"teashop.v1 is not right"):
            await worker.serve(attach=True)
