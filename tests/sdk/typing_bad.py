"""Every line marked `# wrong: …` must be reported by both type checkers, and no other line. It is never run."""

from __future__ import annotations

from baton import Binding, Workflow, bind, default, expression, fallback, workflow
from teabank.v1.money_pb2 import ChargeRequest, Money
from teashop.v1.teashop_pb2 import OrderInput, OrderOutput, ReserveRequest
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer as Payments


@workflow(OrderInput, OrderOutput)
def steps(wf: Workflow[OrderInput, OrderOutput]) -> Binding[OrderOutput]:
    reserve = wf.step(Inventory.Reserve, bind(ReserveRequest, order_id=wf.input.order_id))
    charge = wf.step(Payments.Charge, bind(ChargeRequest, amount=reserve.output.total))
    wf.step(Payments.Charge, bind(ChargeRequest, amount=reserve.output.lots))  # wrong: list into message
    wf.step(Payments.Charge, bind(ChargeRequest, amount=reserve.output.reservation_id))  # wrong: text into message
    wf.step(Payments.Charge, bind(ChargeRequest, amout=reserve.output.total))  # wrong: unknown field
    wf.step(Payments.Charge, bind(ChargeRequest, amount=reserve.output.totl))  # wrong: unknown output field
    wf.step(Payments.Charge, bind(ChargeRequest, order_id=wf.input.ordr_id))  # wrong: unknown input field
    wf.step(Payments.Charge, bind(ReserveRequest, order_id="x"))  # wrong: request of another method
    wf.step(Payments.Charge, reserve.output)  # wrong: whole message of another type
    wf.step(Payments.Chrge, bind(ChargeRequest, order_id="x"))  # wrong: unknown method
    wf.step(Inventory.WatchStock, bind(ReserveRequest, sku="x"))  # wrong: streaming method
    wf.step(Payments.Charge, bind(ChargeRequest, amount=bind(Money, currency=3)))  # wrong: number into nested text
    wf.step(Payments.Charge, bind(ChargeRequest, amount=bind(ReserveRequest, sku="x")))  # wrong: nested message
    wf.step(Inventory.Reserve, bind(ReserveRequest, notes=[wf.input.quantity]))  # wrong: number into list of texts
    wf.step(Inventory.Reserve, bind(ReserveRequest, tags={"a": wf.input.quantity}))  # wrong: number into map of texts
    wf.step(Inventory.Reserve, bind(ReserveRequest, sku=expression(int, "1 + 1")))  # wrong: typed expression
    wf.step(Inventory.Reserve, bind(ReserveRequest, sku=default(wf.input.sku, 3)))  # wrong: default of another type
    wf.step(Payments.Charge, bind(ChargeRequest), fallback=[fallback(Inventory.Reserve)])  # wrong: fallback's output
    wf.step(Payments.Charge, bind(ChargeRequest), after=["reserve"])  # wrong: a name in place of a step
    charge.on_failure("release")  # wrong: a name in place of a step
    return bind(ChargeRequest, order_id="x")  # wrong: output of another type


@workflow(OrderInput, OrderOutput)  # wrong: decorated function has other types
def other_output(wf: Workflow[OrderInput, ChargeRequest]) -> Binding[ChargeRequest]:
    return bind(ChargeRequest, order_id=wf.input.order_id)
