"""Everything here is right: both type checkers must accept it without a word, and it must run."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

from datetime import timedelta
from typing import Any

from baton import (
    Binding,
    Delivery,
    Retry,
    Workflow,
    WorkflowDefinition,
    bind,
    branch,
    cond,
    default,
    expr,
    expression,
    fallback,
    workflow,
)
from google.protobuf.duration_pb2 import Duration
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
