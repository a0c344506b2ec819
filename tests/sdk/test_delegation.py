"""Handlers delegate: they get typed responses or failures, are suspended while they wait long, and hold no slot."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from baton import BindError, Conflict, StepFailed, Worker, blocking, current, delegate
from baton.v1 import failure_pb2
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2
from teabank.v1.money_pb2 import ChargeRequest
from teashop.v1.teashop_pb2 import ChargeResponse, ReserveRequest, ReserveResponse
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer as Payments
from teashop.v1.teashop_pb2_grpc import PaymentsServiceStub

from .calling import TOKEN, Calling
from .double import UNAVAILABLE, rich
from .step_double import StepDouble
from .test_worker import Till

CHARGE = "teashop.v1.PaymentsService/Charge"
LATER = "teashop.v1.PaymentsService/ChargeLater"
DOORS = ("stream", "unary")
KINDS = ("async", "plain", "plain loop")

Handle = Callable[[ChargeRequest], Awaitable[ChargeResponse]]


@pytest.fixture
async def steps() -> AsyncIterator[StepDouble]:
    """A StepService that serves."""
    double = StepDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
async def serve(steps: StepDouble) -> AsyncIterator[Callable[..., Any]]:
    """Starts a worker whose handler is an async function, run in one of three ways."""
    started: list[Calling] = []

    async def start(handle: Handle, door: str = "stream", kind: str = "async", **options: Any) -> Calling:
        handlers = {
            "async": lambda request, context: handle(request),
            "plain": lambda request, context: blocking(handle(request)),  # type: ignore[arg-type]
            "plain loop": lambda request, context: asyncio.run(handle(request)),  # type: ignore[arg-type]
        }
        worker = Worker("payments", baton=steps.address, **options)
        worker.add(Till(handlers[kind]))
        started.append(Calling(worker, door, CHARGE if kind == "async" else LATER))
        await started[-1].start()
        return started[-1]

    yield start
    for each in started:
        await each.stop()


def awaited(status: Any) -> list[str]:
    """Keys that a suspended attempt waits for."""
    assert status.code == code_pb2.ABORTED, status
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("SUSPENDED", "baton")
    return str(info.metadata["awaited"]).split(",")


async def reserve(key: str, sku: str = "tea", **options: Any) -> str:
    """Delegates a reservation; returns its id."""
    return (await delegate(Inventory.Reserve, ReserveRequest(sku=sku), key=key, **options)).reservation_id


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_gets_the_typed_response(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        return ChargeResponse(payment_id=await reserve("stock", request.order_id))

    calling = await serve(handle, door, kind)
    call = calling.begin()
    await steps.until(lambda: steps.waiting["stock"])
    await steps.finish("stock", ReserveResponse(reservation_id="r-7"))
    assert (await call).payment_id == "r-7"
    asked = steps.requests[0]
    assert (asked.step_token, asked.key, asked.method) == (TOKEN, "stock", "teashop.v1.InventoryService/Reserve")
    request = ReserveRequest()
    assert asked.request.Unpack(request)
    assert request.sku == "o-1"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_waits_long_is_suspended(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    ends: list[BaseException] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        try:
            await reserve("one", suspend_after=0)
        except Exception:  # what an agent does with everything that goes wrong
            return ChargeResponse(payment_id="swallowed")
        except BaseException as end:
            ends.append(end)
            raise
        raise AssertionError

    calling = await serve(handle, door, kind)
    assert awaited(await calling.call()) == ["one"]
    assert [type(end) for end in ends] == [asyncio.CancelledError]
    await steps.finish("one", ReserveResponse(reservation_id="r-1"))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", ["gather", "exceptions", "group", "wait"])
async def test_all_that_is_waited_for_is_named(
    serve: Any, steps: StepDouble, door: str, kind: str, together: str
) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        calls = [reserve(key, suspend_after=0) for key in ("a", "b", "c")]
        if together == "group":
            async with asyncio.TaskGroup() as group:
                for each in calls:
                    group.create_task(each)
        elif together == "wait":
            tasks = [asyncio.ensure_future(each) for each in calls]
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks = [task for task in tasks if task not in done]
        else:
            await asyncio.gather(*calls, return_exceptions=together == "exceptions")
        return ChargeResponse(payment_id="all")

    steps.meeting = 3
    await steps.finish("b", ReserveResponse(reservation_id="r-b"))
    calling = await serve(handle, door, kind)
    assert awaited(await calling.call()) == ["a", "c"]
    await steps.finish("a", ReserveResponse())
    await steps.finish("c", ReserveResponse())
    assert (await calling.call()).payment_id == "all"


@pytest.mark.parametrize("door", DOORS)
async def test_of_very_many_keys_some_are_named(serve: Any, steps: StepDouble, door: str) -> None:
    """They travel in a trailer of a unary call, and must not be lost for being too many."""

    async def handle(request: ChargeRequest) -> ChargeResponse:
        await asyncio.gather(*(reserve(f"k{number:062}", suspend_after=0) for number in range(300)))
        raise AssertionError

    steps.meeting = 300
    named = awaited(await (await serve(handle, door)).call())
    assert 10 < len(named) < 300
    assert set(named) < set(steps.steps)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_goes_on_all_the_same_is_suspended_still(
    serve: Any, steps: StepDouble, door: str, kind: str
) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        with suppress(asyncio.CancelledError):
            await reserve("one", suspend_after=0)
        with suppress(asyncio.CancelledError):
            await reserve("two", suspend_after=0)
        return ChargeResponse(payment_id="made up")

    calling = await serve(handle, door, kind)
    assert awaited(await calling.call()) == ["one"]
    assert "two" not in steps.steps


async def test_a_handler_waits_for_as_long_as_one_of_its_waits_may(serve: Any, steps: StepDouble) -> None:
    """A loop of short steps beside a long one is at work: it is not suspended."""

    async def handle(request: ChargeRequest) -> ChargeResponse:
        patient = asyncio.ensure_future(reserve("patient", suspend_after=3_600))
        hasty = asyncio.ensure_future(reserve("hasty", suspend_after=0))
        await patient
        return ChargeResponse(payment_id=await hasty)

    calling = await serve(handle)
    call = calling.begin()
    await steps.until(lambda: steps.waiting["patient"] and steps.waiting["hasty"])
    assert steps.requests[-1].wait_timeout.seconds > 0
    await steps.finish("hasty", ReserveResponse(reservation_id="r-1"))
    await steps.finish("patient", ReserveResponse())
    assert (await call).payment_id == "r-1"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_failure_is_typed_and_passes_through(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    seen: list[StepFailed] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        try:
            await reserve("stock")
        except StepFailed as failed:
            seen.append(failed)
            raise
        raise AssertionError

    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="SOLD_OUT", domain="teashop.v1.InventoryService"))
    await steps.fail(
        "stock",
        failure_pb2.Failure(code=code_pb2.FAILED_PRECONDITION, reason="SOLD_OUT", message="no tea", details=[detail]),
    )
    calling = await serve(handle, door, kind)
    status = await calling.call()
    assert (status.code, status.message, list(status.details)) == (code_pb2.FAILED_PRECONDITION, "no tea", [detail])
    [failed] = seen
    assert (failed.step, failed.code, failed.reason, failed.message) == (
        "parent/stock",
        "FAILED_PRECONDITION",
        "SOLD_OUT",
        "no tea",
    )
    assert failed.details == (detail,)
    assert str(failed) == "step parent/stock failed: FAILED_PRECONDITION (SOLD_OUT): no tea"


async def test_what_baton_refuses_is_an_error_of_its_own(serve: Any, steps: StepDouble) -> None:
    seen: list[Conflict] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        try:
            await reserve("stock")
        except Conflict as refused:
            seen.append(refused)
        return ChargeResponse(payment_id="went on")

    steps.fail_next.append(rich(grpc.StatusCode.ALREADY_EXISTS, "DELEGATION_CONFLICT", "another request"))
    calling = await serve(handle)
    assert (await calling.call()).payment_id == "went on"
    assert [refused.reason for refused in seen] == ["DELEGATION_CONFLICT"]


async def test_a_wait_goes_on_over_the_absence_of_baton(serve: Any, steps: StepDouble) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        return ChargeResponse(payment_id=await reserve("stock"))

    calling = await serve(handle)
    steps.fail_next.append(UNAVAILABLE)
    call = calling.begin()
    await steps.until(lambda: steps.waiting["stock"])
    await steps.stop()
    await steps.start()
    await steps.until(lambda: steps.waiting["stock"])
    await steps.finish("stock", ReserveResponse(reservation_id="r-1"))
    assert (await call).payment_id == "r-1"
    assert len(steps.requests) >= 3


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_attempt_that_is_over_ends_its_handler(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    ended = threading.Event()

    async def handle(request: ChargeRequest) -> ChargeResponse:
        try:
            return ChargeResponse(payment_id=await reserve("stock"))
        finally:
            ended.set()

    calling = await serve(handle, door, kind)
    call = calling.begin()
    await steps.until(lambda: steps.waiting["stock"])
    await steps.end()
    assert (await call).code == code_pb2.CANCELLED
    assert ended.is_set()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_that_stops_suspends(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        await asyncio.gather(reserve("a"), reserve("b", suspend_after=3_600))
        raise AssertionError

    calling = await serve(handle, door, kind)
    call = calling.begin()
    await steps.until(lambda: steps.waiting["a"] and steps.waiting["b"])
    stopping = asyncio.create_task(calling.worker.stop(20))
    assert awaited(await call) == ["a", "b"]
    await calling.stream.close()
    await stopping


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_handler_that_waits_holds_no_slot(serve: Any, steps: StepDouble, kind: str) -> None:
    """With one slot, what is delegated to the same worker runs while its parent waits."""
    ran: list[str] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        ran.append(request.order_id)
        if request.order_id == "parent":
            await reserve("child")
        return ChargeResponse(payment_id=request.order_id)

    calling = await serve(handle, "stream", kind, max_in_flight=1)
    parent = calling.begin("parent")
    await steps.until(lambda: steps.waiting["child"])
    assert (await calling.call("child")).payment_id == "child"
    assert not parent.done()
    await steps.finish("child", ReserveResponse())
    assert (await parent).payment_id == "parent"
    await calling.stream.until(lambda: calling.stream.half.credit == 1)
    assert ran == ["parent", "child"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_is_cancelled_while_it_waits_gives_its_slot_back(
    serve: Any, steps: StepDouble, kind: str
) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        if request.order_id == "waits":
            await reserve("child")
        return ChargeResponse(payment_id=request.order_id)

    calling = await serve(handle, "stream", kind, max_in_flight=1)
    waiting = calling.begin("waits")
    await steps.until(lambda: steps.waiting["child"])
    await calling.stream.until(lambda: calling.stream.half.credit == 2)
    calling.stream.cancel(1)
    assert (await waiting).code == code_pb2.CANCELLED
    await steps.until(lambda: not steps.waiting["child"])
    await calling.stream.until(lambda: calling.stream.half.credit == 1)
    assert (await calling.call("next")).payment_id == "next"


async def test_keys_come_from_the_method_and_the_number_of_its_calls(serve: Any, steps: StepDouble) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        first = delegate(Inventory.Reserve, ReserveRequest(sku="1"))
        second = delegate(Inventory.Reserve, ReserveRequest(sku="2"))
        later = delegate(Payments.ChargeLater, ChargeRequest())
        await asyncio.gather(later, second, first)
        return ChargeResponse(payment_id="all")

    for key in ("reserve_1", "reserve_2"):
        await steps.finish(key, ReserveResponse())
    await steps.finish("charge_later_1", ChargeResponse())
    calling = await serve(handle)
    for _ in range(2):  # each attempt counts anew
        assert (await calling.call()).payment_id == "all"
    asked = {each.key: each.request for each in steps.requests}
    request = ReserveRequest()
    assert asked["reserve_2"].Unpack(request)
    assert request.sku == "2"
    assert set(asked) == {"reserve_1", "reserve_2", "charge_later_1"}


async def test_what_is_detached_is_not_waited_for(serve: Any, steps: StepDouble) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        nothing = await delegate(Inventory.Reserve, ReserveRequest(), key="later", detached=True)  # type: ignore[func-returns-value]
        return ChargeResponse(payment_id=str(nothing))

    calling = await serve(handle)
    assert (await calling.call()).payment_id == "None"
    assert steps.requests[0].detached


async def test_what_is_left_behind_by_a_handler_is_waited_for_no_more(serve: Any, steps: StepDouble) -> None:
    left: list[asyncio.Future[str]] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        left.append(asyncio.ensure_future(reserve("left")))
        await steps.until(lambda: steps.waiting["left"])
        return ChargeResponse(payment_id="early")

    calling = await serve(handle)
    assert (await calling.call()).payment_id == "early"
    await steps.until(lambda: not steps.waiting["left"])
    with pytest.raises(asyncio.CancelledError):
        await left[0]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_attempt_leaves_a_checkpoint_for_the_next(serve: Any, steps: StepDouble, door: str, kind: str) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        call = current()
        before = await call.last_checkpoint(ReserveResponse)
        if before is not None:
            return ChargeResponse(payment_id=before.reservation_id)
        call.progress(30, "reserving")
        await call.checkpoint(ReserveResponse(reservation_id="r-3"))
        return ChargeResponse(payment_id="none")

    calling = await serve(handle, door, kind)
    assert (await calling.call()).payment_id == "none"
    assert (await calling.call()).payment_id == "r-3"
    left = [each for each in steps.heartbeats if each.HasField("checkpoint")]
    assert [(each.step_token, each.percent, each.message) for each in left] == [(TOKEN, 30, "reserving")]


async def test_progress_of_a_unary_call_is_told_by_a_heartbeat(serve: Any, steps: StepDouble) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        for percent in range(10, 60, 10):
            current().progress(percent, "baking")
        await steps.until(lambda: steps.heartbeats)
        return ChargeResponse()

    calling = await serve(handle, "unary")
    await calling.call()
    assert [(each.percent, each.message) for each in steps.heartbeats] == [(50, "baking")]


async def test_what_cannot_be_right_is_refused_at_the_call(serve: Any, steps: StepDouble) -> None:
    texts: list[str] = []

    async def handle(request: ChargeRequest) -> ChargeResponse:
        wrong: Any = ChargeRequest()
        for key, message in (("Stock", ReserveRequest()), ("undo", ReserveRequest()), ("stock", wrong)):
            with pytest.raises(BindError) as refused:
                await delegate(Inventory.Reserve, message, key=key)
            texts.append(str(refused.value))
        with pytest.raises(RuntimeError, match="write await in its place"):
            blocking(delegate(Inventory.Reserve, ReserveRequest()))
        return ChargeResponse()

    calling = await serve(handle)
    assert isinstance(await calling.call(), ChargeResponse)
    assert texts[0].startswith("'Stock' is not a key: at most 63 lower-case letters")
    assert texts[2] == "teashop.v1.InventoryService/Reserve takes teashop.v1.ReserveRequest, not ChargeRequest"
    assert not steps.requests


async def test_only_a_call_from_baton_can_delegate(serve: Any, steps: StepDouble) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        with pytest.raises(LookupError, match="does not come from Baton"):
            await reserve("stock")
        return ChargeResponse(payment_id="alone")

    calling = await serve(handle, "unary")
    stub: Any = PaymentsServiceStub(calling.channel)
    assert (await stub.Charge(ChargeRequest())).payment_id == "alone"
    with pytest.raises(LookupError):
        delegate(Inventory.Reserve, ReserveRequest())


async def test_a_suspended_handler_is_no_error_in_the_log(
    serve: Any, steps: StepDouble, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(request: ChargeRequest) -> ChargeResponse:
        try:
            await reserve("stock", suspend_after=0)
        except asyncio.CancelledError:
            raise ValueError("on the way out") from None
        raise AssertionError

    with caplog.at_level(logging.ERROR):
        for door in DOORS:
            assert awaited(await (await serve(handle, door)).call()) == ["stock"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
