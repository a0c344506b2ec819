"""Everything here is right: both type checkers must accept it without a word, and it must run."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from baton import (
    ApprovalRule,
    Binding,
    Delivery,
    Overlap,
    Retry,
    Workflow,
    WorkflowDefinition,
    bind,
    blocking,
    branch,
    cond,
    current,
    default,
    delegate,
    expr,
    expression,
    fallback,
    schedule,
    workflow,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from teabank.v1.money_pb2 import ChargeRequest, Money
from teashop.v1.teashop_pb2 import (
    ChargeResponse,
    OrderInput,
    OrderOutput,
    ReleaseRequest,
    ReserveRequest,
    ReserveResponse,
)
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer as Payments


class Till(Payments):
    """Somebody's own service: its methods can be given too."""

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        return ChargeResponse(payment_id=request.order_id)

    async def ChargeLater(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        return ChargeResponse(payment_id=request.order_id)


@workflow(OrderInput, OrderOutput, name="fulfil-order", run_timeout=timedelta(minutes=5), retry=Retry(max_attempts=5))
def fulfil(wf: Workflow[OrderInput, OrderOutput]) -> Binding[OrderOutput]:
    """Reserves, charges, and gives back what cannot be paid."""
    reserve = wf.step(
        Inventory.Reserve,
        bind(
            ReserveRequest,
            order_id=wf.input.order_id,
            sku=wf.input.sku,
            quantity=wf.input.quantity,
            notes=[*("gift",), wf.input.sku],
            tags={"order": wf.input.order_id, "kind": "web"},
            wanted_time=wf.input.wanted_time,
            hold=Duration(seconds=1800),
            weight=expression(float, "double({}) * 1.5", wf.input.quantity),
            prices=[bind(Money, currency="EUR", minor_units=5), Money(currency="EUR")],
            token=expr("bytes({})", wf.input.sku),
        ),
        expect=cond("size(output.lots) > 0"),
        attempt_timeout=2.5,
    )
    charge = wf.step(
        Payments.Charge,
        bind(
            ChargeRequest,
            order_id=wf.input.order_id,
            amount=reserve.output.total,
            reservation_id=reserve.output.reservation_id,
        ),
        when=reserve.output.in_stock,
        delivery=Delivery.AT_MOST_ONCE,
        retry=Retry(max_attempts=2, initial_backoff=0.1, codes=["UNAVAILABLE"]),
        fallback=[fallback(Payments.ChargeLater, on=["UNAVAILABLE"])],
    )
    release = wf.step(Inventory.Release, bind(ReleaseRequest, reservation_id=reserve.output.reservation_id))
    charge.on_failure(release, reasons=["CARD_DECLINED"])
    wf.step(
        Till.Charge,
        bind(ChargeRequest, amount=bind(Money, currency="EUR", minor_units=reserve.output.total.minor_units)),
        id="tip",
        after=[charge],
        when=charge.succeeded & cond("{} == ''", release.failure.reason),
        on_failure=[branch()],
    )
    return bind(
        OrderOutput,
        payment_id=default(charge.output.payment_id, "unpaid"),
        reservation_id=reserve.output.reservation_id,
    )


@workflow(ReserveRequest, ReserveResponse)
def reserve_only(wf: Workflow[ReserveRequest, ReserveResponse]) -> ReserveResponse:
    return wf.step(Inventory.Reserve, wf.input).output


definition: WorkflowDefinition[OrderInput, OrderOutput] = fulfil
nightly = schedule("nightly", fulfil, OrderInput(order_id="a"), cron="@daily", overlap=Overlap.ALLOW, jitter=60)
by_name = schedule("by-name", "fulfil-order", cron="@daily", catch_up_window=timedelta(hours=1))


@workflow(OrderInput, OrderOutput)
def every_kind(wf: Workflow[OrderInput, OrderOutput]) -> Binding[OrderOutput]:
    """Goes over lists and map fields, repeats, waits, runs another workflow, and takes back."""
    each = wf.map(
        Inventory.Reserve,
        wf.input.notes,
        lambda note: bind(ReserveRequest, sku=note, slot=expression(int, "index")),
        max_parallel=3,
        max_failed=1,
        retry=Retry(max_attempts=2),
        heartbeat_timeout=5,
    )
    each.undo(Inventory.Release, lambda output: bind(ReleaseRequest, reservation_id=output.reservation_id))
    tagged = wf.map_entries(
        Payments.Charge,
        wf.input.tags,
        lambda tag: bind(ChargeRequest, order_id=tag, reservation_id=expression(str, "key")),
    )
    again = wf.map(
        reserve_only, each.output.items, lambda reserved: bind(ReserveRequest, sku=reserved.reservation_id), id="again"
    )
    grown = wf.repeat(
        Payments.ChargeLater,
        lambda previous: bind(ChargeRequest, order_id=previous.payment_id),
        until=lambda output: cond("{} != ''", output.payment_id),
        max_iterations=5,
        interval=timedelta(seconds=1),
        after=[tagged, again],
    )
    stocked = wf.repeat(
        reserve_only, lambda previous: bind(ReserveRequest, sku=previous.reservation_id), until=lambda out: out.in_stock
    )
    child = wf.run_workflow(reserve_only, bind(ReserveRequest, sku=wf.input.sku), id="child")
    named = wf.run_workflow("fulfil-order", wf.input, output=OrderOutput, revision="1")
    wf.sleep(90)
    wf.sleep(timedelta(hours=1), id="hour")
    wf.sleep(until=wf.input.wanted_time, id="until")
    wf.sleep(until=datetime(2030, 1, 1, tzinfo=UTC), id="new_year")
    paid = wf.wait_signal("paid", ChargeResponse, timeout=3_600)
    go = wf.wait_signal("go", when=cond("{} == 0", wf.input.quantity))
    nothing: Empty = go.output
    charge = wf.step(
        Payments.Charge,
        bind(ChargeRequest, order_id=paid.output.payment_id, reservation_id=child.output.reservation_id),
        id="pay",
        approval=ApprovalRule(timeout=timedelta(days=1), approvers=["ada"], description="Is this right?"),
    )
    charge.undo(
        Inventory.Release,
        lambda output: bind(ReleaseRequest, reservation_id=output.payment_id),
        retry=Retry(max_attempts=3),
        undo_timeout=60,
    )
    assert nothing is not None
    wf.step(
        Inventory.Reserve,
        bind(
            ReserveRequest, notes=[named.output.payment_id, grown.output.payment_id], sku=stocked.output.reservation_id
        ),
        id="last",
        after=charge,
    )
    return bind(OrderOutput, payment_id=charge.output.payment_id)


class Agent(Payments):
    """A handler that delegates: what it asks for and gets is typed."""

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        reserved = await delegate(Inventory.Reserve, ReserveRequest(sku=request.order_id), key="stock")
        lots: list[str] = list(reserved.lots)
        first, second = await asyncio.gather(
            delegate(Inventory.Reserve, ReserveRequest(sku=lots[0])),
            delegate(Payments.ChargeLater, request, retry=Retry(max_attempts=1), suspend_after=timedelta(seconds=5)),
        )
        async with asyncio.TaskGroup() as group:
            charging = group.create_task(delegate(Payments.ChargeLater, ChargeRequest()))
        await delegate(Inventory.Release, ReleaseRequest(reservation_id=first.reservation_id), detached=True)
        left = await current().last_checkpoint(ReserveResponse)
        if left is not None:
            await current().checkpoint(ChargeResponse(payment_id=left.reservation_id))
        return ChargeResponse(payment_id=second.payment_id + charging.result().payment_id)

    def ChargeLater(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        reserved = blocking(delegate(Inventory.Reserve, ReserveRequest()))
        return ChargeResponse(payment_id=reserved.reservation_id)
