"""The workflow builder records the same message as the other forms of a workflow, and teaches where it cannot."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from types import FunctionType
from typing import Any

import grpc
import pytest
from baton import (
    BindError,
    Delivery,
    Retry,
    Workflow,
    bind,
    branch,
    cond,
    default,
    expr,
    expression,
    fallback,
    workflow,
)
from baton.v1 import workflow_pb2
from google.protobuf import duration_pb2, json_format, struct_pb2, timestamp_pb2
from teabank.v1.money_pb2 import ChargeRequest, Money
from teashop.v1.teashop_pb2 import (
    PRIORITY_HIGH,
    ChargeResponse,
    OrderInput,
    OrderOutput,
    ReleaseRequest,
    ReserveRequest,
    ReserveResponse,
)
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer as Payments

Recorder = Workflow[Any, Any]


def definition_of(
    function: Callable[[Recorder], Any], input_class: Any = OrderInput, output_class: Any = OrderOutput
) -> Any:
    return workflow(input_class, output_class)(function).definition


def request_of(**fields: Any) -> dict[str, Any]:
    """The recorded request of one step, in protobuf JSON form; a field may be a function of the recorder."""

    def only(wf: Recorder) -> Any:
        given = {name: value(wf) if isinstance(value, FunctionType) else value for name, value in fields.items()}
        wf.step(Inventory.Reserve, bind(ReserveRequest, **given))
        return bind(OrderOutput)

    step = definition_of(only).steps[0]
    written: dict[str, Any] = json_format.MessageToDict(step)["request"]
    return written


FULFIL_ORDER: dict[str, Any] = {
    "name": "fulfil-order",
    "description": "Fulfils an order.",
    "inputType": "teashop.v1.OrderInput",
    "outputType": "teashop.v1.OrderOutput",
    "runTimeout": "300s",
    "retry": {"maxAttempts": 5},
    "steps": [
        {
            "id": "reserve",
            "method": "teashop.v1.InventoryService/Reserve",
            "request": {"order_id": {"path": "input.order_id"}, "quantity": {"path": "input.quantity"}},
            "expect": "size(output.lots) > 0",
            "queueTimeout": "60s",
            "attemptTimeout": "2.5s",
            "stepTimeout": "60s",
        },
        {
            "id": "charge",
            "method": "teashop.v1.PaymentsService/Charge",
            "request": {
                "amount": {"path": "steps.reserve.output.total"},
                "reservation_id": {"path": "steps.reserve.output.reservation_id"},
            },
            "when": "(input.quantity > 0) && (!steps.reserve.skipped)",
            "retry": {
                "maxAttempts": 2,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "codes": ["UNAVAILABLE"],
            },
            "delivery": "DELIVERY_AT_MOST_ONCE",
            "fallback": [
                {"method": "teashop.v1.PaymentsService/ChargeLater", "codes": ["UNAVAILABLE"]},
                {
                    "method": "teashop.v1.PaymentsService/ChargeLater",
                    "reasons": ["BUSY"],
                    "request": {"order_id": {"literal": "x"}},
                    "attemptTimeout": "1s",
                },
            ],
            "onFailure": [
                {"reasons": ["NOTHING_TO_PAY"]},
                {"step": "give_back", "codes": ["FAILED_PRECONDITION"], "reasons": ["CARD_DECLINED"]},
            ],
        },
        {
            "id": "give_back",
            "method": "teashop.v1.InventoryService/Release",
            "request": {"reservation_id": {"path": "steps.reserve.output.reservation_id"}},
            "after": ["reserve"],
            "when": "true",
        },
    ],
    "output": {
        "payment_id": {"path": "steps.charge.output.payment_id", "defaultValue": "unpaid"},
        "reservation_id": {"literal": "r"},
    },
}
"""A workflow as it is written by hand, in protobuf JSON form."""


def test_a_workflow_is_the_message_written_by_hand() -> None:
    @workflow(OrderInput, OrderOutput, run_timeout=datetime.timedelta(minutes=5), retry=Retry(max_attempts=5))
    def fulfil_order(wf: Workflow[OrderInput, OrderOutput]) -> OrderOutput:
        """Fulfils an order.

        The rest of the text is for those who read the code.
        """
        reserve = wf.step(
            Inventory.Reserve,
            bind(ReserveRequest, order_id=wf.input.order_id, quantity=wf.input.quantity),
            expect=cond("size(output.lots) > 0"),
            queue_timeout=60,
            attempt_timeout=2.5,
            step_timeout=datetime.timedelta(minutes=1),
        )
        charge = wf.step(
            Payments.Charge,
            bind(ChargeRequest, amount=reserve.output.total, reservation_id=reserve.output.reservation_id),
            when=cond("{} > 0", wf.input.quantity) & ~reserve.skipped,
            retry=Retry(max_attempts=2, initial_backoff=0.1, max_backoff=1, codes=[grpc.StatusCode.UNAVAILABLE]),
            delivery=Delivery.AT_MOST_ONCE,
            fallback=[
                fallback(Payments.ChargeLater, on=["UNAVAILABLE"]),
                fallback(Payments.ChargeLater, bind(ChargeRequest, order_id="x"), attempt_timeout=1, reasons=["BUSY"]),
            ],
            on_failure=[branch(reasons=["NOTHING_TO_PAY"])],
        )
        release = wf.step(
            Inventory.Release,
            bind(ReleaseRequest, reservation_id=reserve.output.reservation_id),
            id="give_back",
            after=[reserve],
            when="true",
        )
        charge.on_failure(release, codes=[grpc.StatusCode.FAILED_PRECONDITION], reasons=["CARD_DECLINED"])
        return bind(OrderOutput, payment_id=default(charge.output.payment_id, "unpaid"), reservation_id="r")

    expected = json_format.ParseDict(FULFIL_ORDER, workflow_pb2.Workflow())
    assert fulfil_order.definition == expected
    assert (fulfil_order.name, fulfil_order.input_class, fulfil_order.output_class) == (
        "fulfil-order",
        OrderInput,
        OrderOutput,
    )


def test_constants_take_the_protobuf_json_form_of_their_field() -> None:
    instant = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    extra = struct_pb2.Struct()
    extra.update({"depth": 2, "names": ["a"]})
    assert request_of(
        order_id="",
        quantity=7,
        priority=PRIORITY_HIGH,
        notes=("a", "b"),
        tags={"k": "v"},
        wanted_time=instant,
        hold=datetime.timedelta(seconds=90),
        token=b"\x00\xff",
        weight=1.5,
        extra=extra,
        prices=[Money(currency="EUR", minor_units=2**60)],
        express=False,
        slot=0,
        slots={3: "c"},
        next=None,
    ) == {
        "order_id": {"literal": ""},
        "quantity": {"literal": 7.0},
        "priority": {"literal": "PRIORITY_HIGH"},
        "notes": {"literal": ["a", "b"]},
        "tags": {"literal": {"k": "v"}},
        "wanted_time": {"literal": "2026-01-02T03:04:05Z"},
        "hold": {"literal": "90s"},
        "token": {"literal": "AP8="},
        "weight": {"literal": 1.5},
        "extra": {"literal": {"depth": 2.0, "names": ["a"]}},
        "prices": {"literal": [{"currency": "EUR", "minor_units": str(2**60)}]},
        "express": {"literal": False},
        "slot": {"literal": 0.0},
        "slots": {"literal": {"3": "c"}},
    }


def test_well_known_messages_are_constants_too() -> None:
    assert request_of(
        wanted_time=timestamp_pb2.Timestamp(seconds=4), hold=duration_pb2.Duration(nanos=500_000_000)
    ) == {
        "wanted_time": {"literal": "1970-01-01T00:00:04Z"},
        "hold": {"literal": "0.500s"},
    }


def test_lists_maps_and_nested_messages_mix_references_and_constants() -> None:
    assert request_of(
        notes=lambda wf: ["gift", wf.input.sku],
        tags=lambda wf: {"order": wf.input.order_id, "kind": "web"},
        prices=lambda wf: [bind(Money, currency=wf.input.sku, minor_units=5), Money(currency="EUR")],
        next=lambda wf: bind(ReserveRequest, sku=wf.input.sku, next=bind(ReserveRequest, notes=wf.input.notes)),
    ) == {
        "notes": {"list": {"elements": [{"literal": "gift"}, {"path": "input.sku"}]}},
        "tags": {"map": {"entries": {"order": {"path": "input.order_id"}, "kind": {"literal": "web"}}}},
        "prices": {
            "list": {
                "elements": [
                    {"message": {"fields": {"currency": {"path": "input.sku"}, "minor_units": {"literal": "5"}}}},
                    {"literal": {"currency": "EUR"}},
                ]
            }
        },
        "next": {
            "message": {
                "fields": {
                    "sku": {"path": "input.sku"},
                    "next": {"message": {"fields": {"notes": {"path": "input.notes"}}}},
                }
            }
        },
    }


def test_expressions_take_the_paths_of_references() -> None:
    assert request_of(
        weight=lambda wf: expression(float, "double({}) * {}", wf.input.quantity, expr("2.0 + 1.0")),
        sku=expr("'{}'"),
        quantity=lambda wf: default(expression(int, "{} + 1", wf.input.quantity), 3),
    ) == {
        "weight": {"expression": "double(input.quantity) * (2.0 + 1.0)"},
        "sku": {"expression": "'{}'"},
        "quantity": {"expression": "input.quantity + 1", "defaultValue": 3.0},
    }


def test_a_whole_message_can_be_a_reference_or_a_constant() -> None:
    def whole(wf: Recorder) -> Any:
        first = wf.step(Inventory.Reserve, wf.input)
        wf.step(Inventory.Reserve, ReserveRequest(sku="tea"), id="again")
        return default(first.output, ReserveResponse(lots=["a"]))

    made = json_format.MessageToDict(definition_of(whole, ReserveRequest, ReserveResponse))
    assert made["steps"][0]["wholeRequest"] == {"path": "input"}
    assert made["steps"][1]["wholeRequest"] == {"literal": {"sku": "tea"}}
    assert made["wholeOutput"] == {"path": "steps.reserve.output", "defaultValue": {"lots": ["a"]}}


def test_failures_are_read_in_conditions() -> None:
    def reads(wf: Recorder) -> Any:
        first = wf.step(Inventory.Reserve, wf.input)
        wf.step(
            Inventory.Reserve, wf.input, id="second", when=first.failed & cond("{} == 'GONE'", first.failure.reason)
        )
        wf.step(Inventory.Reserve, wf.input, id="third", when=first.output.in_stock)
        return bind(ReserveResponse, reservation_id=first.failure.message)

    made = definition_of(reads, ReserveRequest, ReserveResponse)
    assert made.steps[1].when == "steps.reserve.failed && (steps.reserve.failure.reason == 'GONE')"
    assert made.steps[2].when == "steps.reserve.output.in_stock"
    assert made.output["reservation_id"].path == "steps.reserve.failure.message"


def test_types_hold_exactly_the_files_of_input_and_output_imports_first() -> None:
    @workflow(ReserveRequest, ChargeResponse, name="x")
    def one(wf: Workflow[ReserveRequest, ChargeResponse]) -> ChargeResponse:
        return wf.step(Payments.Charge, bind(ChargeRequest, order_id=wf.input.order_id)).output

    @workflow(Money, Money, name="y")
    def other(wf: Workflow[Money, Money]) -> Money:
        wf.step(Inventory.Reserve, bind(ReserveRequest))
        return wf.input

    assert not one.definition.HasField("types")
    names = [file.name for file in one.with_types().types.file]
    assert names[-1] == "teashop/v1/teashop.proto"
    assert set(names) == {
        "teashop/v1/teashop.proto",
        "teabank/v1/money.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/struct.proto",
        "google/protobuf/timestamp.proto",
    }
    assert [file.name for file in other.with_types().types.file] == ["teabank/v1/money.proto"]


def test_the_typed_example_runs() -> None:
    from . import typing_ok

    assert [step.id for step in typing_ok.fulfil.definition.steps] == ["reserve", "charge", "release", "tip"]
    assert typing_ok.fulfil.definition.steps[3].method == "teashop.v1.PaymentsService/Charge"


def test_limits_are_named_with_their_keys() -> None:
    def limited(wf: Recorder) -> Any:
        keys = {"orders": wf.input.order_id, "halves": expr("{} + '!'", wf.input.order_id), "all": None}
        wf.step(Inventory.Reserve, bind(ReserveRequest), limits=keys, priority=-3)
        with pytest.raises(BindError, match="differs from run to run"):
            wf.step(Inventory.Release, bind(ReleaseRequest), limits={"orders": "constant"})
        return bind(OrderOutput)

    step = definition_of(limited).steps[0]
    assert [(one.limit, one.key) for one in step.limits] == [
        ("orders", "input.order_id"),
        ("halves", "input.order_id + '!'"),
        ("all", ""),
    ]
    assert step.priority == -3


def test_steps_of_every_kind_are_the_messages_written_by_hand() -> None:
    from . import typing_ok

    steps = {step.id: step for step in typing_ok.every_kind.definition.steps}
    for name, written in EVERY_KIND.items():
        assert json_format.MessageToDict(steps[name], preserving_proto_field_name=True) == {"id": name, **written}
    assert set(steps) - set(EVERY_KIND) == {"fulfil_order", "last"}


def test_the_messages_of_signals_travel_with_the_workflow() -> None:
    @workflow(Money, Money)
    def waits(wf: Workflow[Money, Money]) -> Money:
        wf.wait_signal("paid", ChargeResponse)
        return wf.input

    assert "teashop/v1/teashop.proto" in [file.name for file in waits.with_types().types.file]


_RESERVE, _CHARGE = "teashop.v1.InventoryService/Reserve", "teashop.v1.PaymentsService/Charge"
_RELEASE = "teashop.v1.InventoryService/Release"
EVERY_KIND: dict[str, dict[str, Any]] = {
    "reserve": {
        "method": _RESERVE,
        "request": {"sku": {"path": "item"}, "slot": {"expression": "index"}},
        "retry": {"max_attempts": 2},
        "map": {"items": {"path": "input.notes"}, "max_parallel": 3, "max_failed": 1},
        "undo": {"method": _RELEASE, "request": {"reservation_id": {"path": "output.reservation_id"}}},
        "heartbeat_timeout": "5s",
    },
    "charge": {
        "method": _CHARGE,
        "request": {"order_id": {"path": "item"}, "reservation_id": {"expression": "key"}},
        "map": {"items": {"path": "input.tags"}},
    },
    "again": {
        "run_workflow": {"workflow": "reserve-only"},
        "request": {"sku": {"path": "item.reservation_id"}},
        "map": {"items": {"path": "steps.reserve.output.items"}},
    },
    "charge_later": {
        "method": "teashop.v1.PaymentsService/ChargeLater",
        "request": {"order_id": {"path": "previous.payment_id"}},
        "after": ["charge", "again"],
        "repeat": {"until": "output.payment_id != ''", "max_iterations": 5, "interval": "1s"},
    },
    "reserve_only": {
        "run_workflow": {"workflow": "reserve-only"},
        "request": {"sku": {"path": "previous.reservation_id"}},
        "repeat": {"until": "output.in_stock"},
    },
    "child": {"run_workflow": {"workflow": "reserve-only"}, "request": {"sku": {"path": "input.sku"}}},
    "sleep": {"sleep": {"duration": {"literal": "90s"}}},
    "hour": {"sleep": {"duration": {"literal": "3600s"}}},
    "until": {"sleep": {"until": {"path": "input.wanted_time"}}},
    "new_year": {"sleep": {"until": {"literal": "2030-01-01T00:00:00Z"}}},
    "paid": {"wait_signal": {"signal": "paid", "type": "teashop.v1.ChargeResponse", "timeout": "3600s"}},
    "go": {"when": "input.quantity == 0", "wait_signal": {"signal": "go"}},
    "pay": {
        "method": _CHARGE,
        "request": {
            "order_id": {"path": "steps.paid.output.payment_id"},
            "reservation_id": {"path": "steps.child.output.reservation_id"},
        },
        "approval": {"timeout": "86400s", "approvers": ["ada"], "description": "Is this right?"},
        "undo": {
            "method": _RELEASE,
            "request": {"reservation_id": {"path": "output.payment_id"}},
            "retry": {"max_attempts": 3},
            "undo_timeout": "60s",
        },
    },
}
