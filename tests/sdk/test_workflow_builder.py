"""The workflow builder records the same message as the other forms of a workflow, and teaches where it cannot."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import grpc
import pytest
from baton import (
    ApprovalRule,
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

    expected = json_format.ParseDict(
        {
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
        },
        workflow_pb2.Workflow(),
    )
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


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"skuu": "x"}, "teashop.v1.ReserveRequest has no field 'skuu'; did you mean 'sku'?"),
        ({"quantity": "x"}, "teashop.v1.ReserveRequest.quantity is int32; 'x' is not one"),
        ({"quantity": 2**40}, "teashop.v1.ReserveRequest.quantity is int32"),
        ({"prices": [Money(), 3]}, "teashop.v1.ReserveRequest.prices is repeated teabank.v1.Money"),
        ({"sku": lambda wf: wf.input.quantity}, "ReserveRequest.sku is string, but input.quantity is int32"),
        ({"sku": lambda wf: wf.input.notes}, "ReserveRequest.sku is string, but input.notes is repeated string"),
        ({"notes": lambda wf: wf.input.sku}, "ReserveRequest.notes is repeated string, but input.sku is string"),
        ({"tags": lambda wf: wf.input.notes}, "tags is map<string, string>, but input.notes is repeated string"),
        (
            {"next": lambda wf: wf.input},
            "ReserveRequest.next is teashop.v1.ReserveRequest, but input is teashop.v1.OrderInput",
        ),
        ({"next": lambda wf: bind(Money)}, "ReserveRequest.next takes teashop.v1.ReserveRequest, not teabank.v1.Money"),
        ({"notes": lambda wf: [wf.input.quantity]}, r"ReserveRequest.notes[0] is string, but input.quantity is int32"),
        ({"prices": lambda wf: [wf.input]}, r"ReserveRequest.prices[0] is teabank.v1.Money, but input is"),
        ({"slots": lambda wf: {3: wf.input.sku}}, "only maps with string keys can mix references and constants"),
        ({"extra": lambda wf: {"a": wf.input.sku}}, "ReserveRequest.extra: a plain value holds a reference"),
        ({"shelf": "a", "slot": 1}, "shelf and slot are of the same oneof 'place'; bind one"),
        ({"sku": lambda wf: wf.input.skuu}, "input: teashop.v1.OrderInput has no field 'skuu'; did you mean 'sku'?"),
        ({"sku": lambda wf: wf.input.sku.x}, "input.sku is not a message; it has no field 'x'"),
        ({"sku": lambda wf: wf.input.notes.x}, "input.notes is repeated; use expression"),
        ({"sku": lambda wf: expression(str, "{} + {}", wf.input.sku)}, "has 2 places {} for 1 references"),
        ({"sku": lambda wf: expression(str, " ")}, "the expression is empty"),
        ({"quantity": lambda wf: default(wf.input.quantity, "x")}, "ReserveRequest.quantity is int32; 'x' is not one"),
        ({"sku": default}, "missing 1 required positional argument"),
        (
            {"sku": lambda wf: default("a", "b")},
            "default(…) takes a reference such as step.output.total first, not 'a'",
        ),
    ],
)
def test_wrong_bindings_name_the_field_and_the_cure(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        request_of(**fields)
    assert text in str(caught.value)


def _steps(wf: Recorder) -> Any:
    return wf.step(Inventory.Reserve, bind(ReserveRequest))


def _reserved(_: object) -> Any:
    return bind(ReserveRequest)


def _other(wf: Recorder) -> Any:
    return Workflow(OrderInput).step(Inventory.Reserve, bind(ReserveRequest), id="elsewhere")


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (
            lambda wf: (_steps(wf), _steps(wf)),
            "there is a step 'reserve' already; name this one, such as id='reserve_2'",
        ),
        (lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), id="A-b"), "'A-b' is not a step id"),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(Money)),
            "step 'reserve': teashop.v1.InventoryService/Reserve takes",
        ),
        (lambda wf: wf.step(Inventory.Reserve, {"sku": 1}), "give bind(ReserveRequest, …)"),
        (lambda wf: wf.step(Inventory.Reserve, wf.input.sku), "but input.sku is string"),
        (
            lambda wf: wf.step(Inventory.WatchStock, bind(ReserveRequest)),
            "WatchStock streams; steps call unary methods",
        ),
        (lambda wf: wf.step(print, bind(ReserveRequest)), "is not a method of a generated servicer"),
        (lambda wf: wf.step(_steps, bind(ReserveRequest)), "is not a method of a generated servicer"),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), after=["reserve"]),
            "step 'reserve': after takes steps, not 'reserve'",
        ),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), after=_other(wf)),
            "the step 'elsewhere' belongs to another workflow",
        ),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), attempt_timeout=0),
            "step 'reserve': attempt_timeout must be more than 0, not 0",
        ),
        (lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), when=True), "not the plain True"),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), when=wf.input.sku),
            "takes a bool; input.sku is not",
        ),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), fallback=[fallback(Payments.Charge)]),
            "gives teashop.v1.ChargeResponse, not teashop.v1.ReserveResponse",
        ),
        (lambda wf: (step := _steps(wf)).on_failure(step), "on_failure cannot lead to the step itself"),
        (lambda wf: _steps(wf).on_failure(codes=["OOPS"]), "'OOPS' is not a status code; they are OK, CANCELLED"),
        (lambda wf: _steps(wf).on_failure(reasons="OOPS"), "reasons take a list, such as ['OOPS']"),
        (lambda wf: None, "has no step; add one with wf.step(…)"),
        (
            lambda wf: wf.map(Inventory.Reserve, ["a"], _reserved),
            "step 'reserve': items takes a reference to a repeated",
        ),
        (lambda wf: wf.map(Inventory.Reserve, wf.input.sku, _reserved), "items takes a reference to a repeated field"),
        (lambda wf: wf.map(Inventory.Reserve, wf.input.tags, _reserved), "map goes over lists, map_entries over map"),
        (lambda wf: wf.map_entries(Inventory.Reserve, wf.input.notes, _reserved), "map_entries over map fields"),
        (
            lambda wf: wf.map(Inventory.Reserve, default(wf.input.notes, ["x"]), _reserved),
            "takes an empty default only: [] or {}, not ['x']",
        ),
        (
            lambda wf: wf.map(Inventory.Reserve, wf.input.notes, lambda note: bind(ReserveRequest, quantity=note)),
            "ReserveRequest.quantity is int32, but item is string",
        ),
        (
            lambda wf: wf.map(Inventory.Reserve, wf.input.notes, lambda note: bind(ReserveRequest, sku=note.text)),
            "item is not a message; it has no field 'text'",
        ),
        (
            lambda wf: bind(ReserveRequest, notes=wf.map(Inventory.Reserve, wf.input.notes, _reserved).output.items),
            "notes is repeated string, but steps.reserve.output.items is repeated teashop.v1.ReserveResponse",
        ),
        (
            lambda wf: wf.repeat(Inventory.Reserve, lambda before: before, until="true"),
            "step 'reserve': teashop.v1.InventoryService/Reserve takes teashop.v1.ReserveRequest, not teashop.v1.Reser",
        ),
        (
            lambda wf: wf.repeat(Inventory.Reserve, _reserved, until=lambda output: output.lots),
            "step 'reserve': repeat: until takes a bool; output.lots is not one",
        ),
        (
            lambda wf: wf.run_workflow("other", wf.input.sku, output=Money),
            "the input of other takes a message: bind(…)",
        ),
        (
            lambda wf: wf.run_workflow("other", bind(Money), output=Money, retry=Retry()),
            "a step of this kind has no setting 'retry'; it has after, description, id, on_failure, step_timeout, when",
        ),
        (lambda wf: wf.sleep(), "step 'sleep': sleep takes a time to wait, or until="),
        (lambda wf: wf.sleep(0), "step 'sleep': sleep must be more than 0, not 0"),
        (lambda wf: wf.sleep(wf.input.sku), "sleep takes google.protobuf.Duration, but input.sku is string"),
        (lambda wf: wf.sleep(until=datetime.datetime(2030, 1, 1)), "has no time zone; give one"),
        (
            lambda wf: _steps(wf).undo(Payments.Charge, lambda output: bind(ReserveRequest)),
            "step 'reserve': undo: the request of teashop.v1.PaymentsService/Charge takes teabank.v1.ChargeRequest",
        ),
        (
            lambda wf: wf.step(Inventory.Reserve, bind(ReserveRequest), approval=ApprovalRule(approvers="ada")),
            "ApprovalRule.approvers take a list, such as ['ada']",
        ),
    ],
)
def test_wrong_steps_name_the_step_and_the_cure(act: Callable[[Recorder], object], text: str) -> None:
    def wrong(wf: Recorder) -> Any:
        act(wf)
        return bind(OrderOutput)

    with pytest.raises(BindError) as caught:
        definition_of(wrong)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "misuse",
    [
        bool,
        len,
        list,
        str,
        int,
        float,
        hash,
        lambda reference: f"{reference}",
        lambda reference: f"{reference:>3}",
        lambda reference: "%s" % reference,  # noqa: UP031
        lambda reference: reference == "a",
        lambda reference: reference != "a",
        lambda reference: reference < 3,
        lambda reference: reference[0],
        lambda reference: "a" in reference,
        lambda reference: reference + 1,
        lambda reference: 1 + reference,
        lambda reference: "a" + reference,
        lambda reference: -reference,
        lambda reference: reference(),
    ],
)
@pytest.mark.parametrize("what", ["reference", "bound"])
def test_references_are_not_values(misuse: Callable[[Any], object], what: str) -> None:
    recorder: Recorder = Workflow(OrderInput)
    value: Any = recorder.input.sku if what == "reference" else bind(OrderInput, sku="x")
    with pytest.raises(BindError, match="is a reference, not a value"):
        misuse(value)
    assert repr(value) in ("<input.sku>", "<bind(teashop.v1.OrderInput)>")


def test_fields_of_references_cannot_be_set_and_conditions_not_tested() -> None:
    recorder: Recorder = Workflow(OrderInput)
    with pytest.raises(BindError, match="cannot be set"):
        recorder.input.sku = "x"
    with pytest.raises(BindError, match=r"combine conditions with &, | and ~"):
        bool(cond("a") and cond("b"))


def test_a_message_in_place_of_bind_is_explained() -> None:
    def direct(wf: Recorder) -> Any:
        wf.step(Payments.Charge, ChargeRequest(order_id=wf.input.order_id))

    with pytest.raises(TypeError) as caught:
        definition_of(direct)
    assert "messages are built with bind(Message, field=…)" in caught.value.__notes__[0]


def test_output_names_and_late_steps_are_checked() -> None:
    kept: list[Any] = []

    def keeps(wf: Recorder) -> Any:
        kept.extend((wf, _steps(wf)))
        return bind(OrderOutput)

    definition_of(keeps)
    for late in (partial(_steps, kept[0]), kept[1].on_failure):
        with pytest.raises(BindError, match="the workflow function has returned"):
            late()
    with pytest.raises(BindError, match=r"the output of 'returns-none' takes teashop.v1.OrderOutput; give bind"):

        @workflow(OrderInput, OrderOutput)
        def returns_none(wf: Recorder) -> Any:
            _steps(wf)

    with pytest.raises(BindError, match="'Not A Name' is not a workflow name"):
        workflow(OrderInput, OrderOutput, name="Not A Name")(keeps)


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
