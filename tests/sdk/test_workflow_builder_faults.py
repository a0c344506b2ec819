"""What the workflow builder refuses: each fault names the field or the step, and the cure."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from baton import (
    ApprovalRule,
    BindError,
    Retry,
    Workflow,
    bind,
    cond,
    default,
    expression,
    fallback,
    workflow,
)
from teabank.v1.money_pb2 import ChargeRequest, Money
from teashop.v1.teashop_pb2 import (
    OrderInput,
    OrderOutput,
    ReserveRequest,
)
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer as Payments

from .test_workflow_builder import Recorder, definition_of, request_of


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
            lambda wf: wf.repeat(Inventory.Reserve, _reserved, until=lambda output: output.lots > 1),
            'as in until=lambda output: cond("{} > 1", output.score)',
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
