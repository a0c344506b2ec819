"""Every line marked `# wrong: …` must be reported by both type checkers, and no other line. It is never run."""

from __future__ import annotations

from baton import (
    Binding,
    Workflow,
    WorkflowDefinition,
    bind,
    default,
    delegate,
    expression,
    fallback,
    schedule,
    workflow,
)
from teabank.v1.money_pb2 import ChargeRequest, Money
from teashop.v1.teashop_pb2 import ChargeResponse, OrderInput, OrderOutput, ReleaseRequest, ReserveRequest
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


@workflow(OrderInput, OrderOutput)
def kinds(wf: Workflow[OrderInput, OrderOutput]) -> Binding[OrderOutput]:
    each = wf.map(Inventory.Reserve, wf.input.notes, lambda note: bind(ReserveRequest, sku=note))
    notes = wf.input.notes
    wf.map(Inventory.Reserve, notes, lambda note: bind(ReserveRequest, quantity=note))  # wrong: text into number
    wf.map(Inventory.Reserve, notes, lambda note: bind(ReserveRequest, sku=note.text))  # wrong: field of a text
    wf.map(Inventory.Reserve, wf.input.notes, lambda note: bind(ChargeRequest, order_id=note))  # wrong: other request
    wf.map(Inventory.Reserve, wf.input.quantity, lambda note: bind(ReserveRequest))  # wrong: a number is no list
    wf.map(Payments.Charge, each.output.items, lambda item: bind(ChargeRequest, amount=item.lots))  # wrong: list
    wf.map_entries(Payments.Charge, wf.input.notes, lambda note: bind(ChargeRequest))  # wrong: a list is no map
    wf.step(Inventory.Reserve, bind(ReserveRequest, notes=each.output.items))  # wrong: messages into texts
    each.undo(Inventory.Release, lambda output: bind(ReleaseRequest, reservation_id=output.id))  # wrong: unknown field
    each.undo(Payments.Charge, lambda output: bind(ReleaseRequest))  # wrong: request of another method
    wf.repeat(Inventory.Reserve, lambda before: bind(ReserveRequest, sku=before.sku), until="true")  # wrong: unknown
    wf.repeat(Inventory.Reserve, lambda _: bind(ReserveRequest), until=lambda output: output.total)  # wrong: no bool
    wf.run_workflow(other, bind(ReserveRequest, sku="x"))  # wrong: input of another workflow
    wf.sleep("90s")  # wrong: a text is no time
    wf.sleep(until=wf.input.sku)  # wrong: a text is no instant
    paid = wf.wait_signal("paid", ChargeResponse)
    wf.step(Payments.Charge, bind(ChargeRequest, order_id=paid.output.order_id))  # wrong: field of another message
    wf.step(Payments.Charge, bind(ChargeRequest), heartbeat_timeut=3)  # wrong: unknown setting
    return bind(OrderOutput)


other: WorkflowDefinition[OrderInput, OrderOutput] = kinds


async def agent(request: OrderInput) -> str:
    await delegate(Inventory.Reserve, ChargeRequest())  # wrong: request of another method
    await delegate(Inventory.WatchStock, ReserveRequest())  # wrong: streaming method
    await delegate(Inventory.Reserve, ReserveRequest(), detached=True, suspend_after=3)  # wrong: nothing is waited for
    reserved = await delegate(Inventory.Reserve, ReserveRequest(sku=request.sku))
    print(reserved.payment_id)  # wrong: field of another message
    return await delegate(Payments.Charge, ChargeRequest())  # wrong: a message is no text


schedule("nightly", steps, OrderOutput(), cron="@daily")  # wrong: input of another type
schedule("nightly", steps, OrderInput())  # wrong: no times
