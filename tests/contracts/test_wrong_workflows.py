"""Wrong workflows: each is refused with exactly these paths and reasons."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.corpus import check

RESERVE: dict[str, Any] = {
    "id": "reserve",
    "method": "shop.v1.Inventory/Reserve",
    "request": {"order_id": {"path": "input.order_id"}},
}
MAYBE: dict[str, Any] = RESERVE | {"when": "input.express"}
HANDLED: dict[str, Any] = RESERVE | {"onFailure": [{}]}


def charge(**request: Any) -> dict[str, Any]:
    return {"id": "charge", "method": "shop.v1.Payments/Charge", "request": request}


def notify(**request: Any) -> dict[str, Any]:
    return {"id": "notify", "method": "shop.v1.Shipping/Notify", "request": request}


def mirror(**request: Any) -> dict[str, Any]:
    return {"id": "mirror", "method": "shop.v1.Mirror/Reflect", "request": request}


def flow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputType": "shop.v1.OrderInput", "steps": list(steps)} | more


def path(text: str) -> dict[str, Any]:
    return {"path": text}


def cel(text: str) -> dict[str, Any]:
    return {"expression": text}


def lit(value: Any) -> dict[str, Any]:
    return {"literal": value}


def msg(**fields: Any) -> dict[str, Any]:
    return {"message": {"fields": fields}}


WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    # Methods and types
    "unknown service": (
        flow(RESERVE | {"method": "shop.v1.Inventry/Reserve"}),
        [("steps[0].method", "UNKNOWN_METHOD")],
    ),
    "unknown method": (flow(RESERVE | {"method": "shop.v1.Inventory/Resrve"}), [("steps[0].method", "UNKNOWN_METHOD")]),
    "server streaming": (
        flow(RESERVE | {"method": "shop.v1.Inventory/Watch"}),
        [("steps[0].method", "STREAMING_METHOD")],
    ),
    "client streaming": (
        flow(RESERVE | {"method": "shop.v1.Inventory/Upload"}),
        [("steps[0].method", "STREAMING_METHOD")],
    ),
    "unknown input type": (
        flow(RESERVE, inputType="shop.v1.OrderInptu"),
        [("input_type", "UNKNOWN_TYPE")],
    ),
    "unknown output type": (
        flow(RESERVE, outputType="shop.v1.Nothing", output={"x": path("input.order_id")}),
        [("output_type", "UNKNOWN_TYPE")],
    ),
    "streaming fallback": (
        flow(RESERVE | {"fallback": [{"method": "shop.v1.Inventory/Watch"}]}),
        [("steps[0].fallback[0].method", "STREAMING_METHOD")],
    ),
    # Fields
    "unknown field": (flow(charge(ammount=lit({}))), [('steps[0].request["ammount"]', "UNKNOWN_FIELD")]),
    "json name of a field": (
        flow(charge(orderId=path("input.order_id"))),
        [('steps[0].request["orderId"]', "UNKNOWN_FIELD")],
    ),
    "unknown nested field": (
        flow(charge(amount=msg(unit=lit("1")))),
        [('steps[0].request["amount"].message.fields["unit"]', "UNKNOWN_FIELD")],
    ),
    "unknown output field": (
        flow(RESERVE, outputType="shop.v1.OrderOutput", output={"totals": path("input.total")}),
        [('output["totals"]', "UNKNOWN_FIELD")],
    ),
    "missing required proto2 field": (
        flow({"id": "open", "method": "legacy.v1.Ledger/Open", "request": {"note": lit("x")}}),
        [("steps[0].request", "MISSING_REQUIRED_FIELD")],
    ),
    "missing required nested proto2 field": (
        flow(
            {
                "id": "open",
                "method": "legacy.v1.Ledger/Open",
                "request": {"customer": lit("x"), "account": msg(limit=lit(5))},
            }
        ),
        [('steps[0].request["account"].message.fields', "MISSING_REQUIRED_FIELD")],
    ),
    "missing field_behavior and buf.validate fields and oneof": (
        flow({"id": "book", "method": "strict.v1.Hotel/Book", "request": {}}),
        [("steps[0].request", "MISSING_REQUIRED_FIELD")] * 3,
    ),
    "missing field in a list element": (
        flow(
            {
                "id": "book",
                "method": "strict.v1.Hotel/Book",
                "request": {
                    "room": lit("1"),
                    "nights": lit(2),
                    "card": lit("c"),
                    "companions": {"list": {"elements": [msg(name=lit("a")), msg(nickname=lit("b"))]}},
                    "contacts": {"map": {"entries": {"k": msg()}}},
                },
            }
        ),
        [
            ('steps[0].request["companions"].list.elements[1].message.fields', "MISSING_REQUIRED_FIELD"),
            ('steps[0].request["contacts"].map.entries["k"].message.fields', "MISSING_REQUIRED_FIELD"),
        ],
    ),
    "literal without a required field": (
        flow({"id": "open", "method": "legacy.v1.Ledger/Open", "request": {"customer": lit("x"), "account": lit({})}}),
        [('steps[0].request["account"]', "MISSING_REQUIRED_FIELD")],
    ),
    # Type fit
    "string into message": (
        flow(RESERVE, charge(amount=path("steps.reserve.output.reservation_id"))),
        [('steps[1].request["amount"]', "TYPE_MISMATCH")],
    ),
    "message into string": (
        flow(charge(order_id=path("input.total"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "other message": (flow(charge(amount=path("input.address"))), [('steps[0].request["amount"]', "TYPE_MISMATCH")]),
    "int64 into int32": (
        flow(mirror(int32_value=path("input.total.units"))),
        [('steps[0].request["int32_value"]', "TYPE_MISMATCH")],
    ),
    "int32 into uint32": (
        flow(mirror(uint32_value=path("input.weight_grams"))),
        [('steps[0].request["uint32_value"]', "TYPE_MISMATCH")],
    ),
    "int32 into double": (
        flow(mirror(double_value=path("input.weight_grams"))),
        [('steps[0].request["double_value"]', "TYPE_MISMATCH")],
    ),
    "double into float": (
        flow(mirror(float_value=path("input.everything.double_value"))),
        [('steps[0].request["float_value"]', "TYPE_MISMATCH")],
    ),
    "string into bytes": (
        flow(mirror(bytes_value=path("input.order_id"))),
        [('steps[0].request["bytes_value"]', "TYPE_MISMATCH")],
    ),
    "enum into another enum": (
        flow(mirror(priority=path("input.currency"))),
        [('steps[0].request["priority"]', "TYPE_MISMATCH")],
    ),
    "int into enum": (
        flow(mirror(currency=path("input.weight_grams"))),
        [('steps[0].request["currency"]', "TYPE_MISMATCH")],
    ),
    "list into singular": (
        flow(RESERVE, charge(order_id=path("steps.reserve.output.lots"))),
        [('steps[1].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "singular into list": (
        flow(mirror(strings=path("input.order_id"))),
        [('steps[0].request["strings"]', "TYPE_MISMATCH")],
    ),
    "list of other elements": (
        flow(mirror(moneys=path("input.items"))),
        [('steps[0].request["moneys"]', "TYPE_MISMATCH")],
    ),
    "map with other values": (
        flow(mirror(counts=path("input.address.notes"))),
        [('steps[0].request["counts"]', "TYPE_MISMATCH")],
    ),
    "map with other keys": (
        flow(mirror(names=path("input.address.notes"))),
        [('steps[0].request["names"]', "TYPE_MISMATCH")],
    ),
    "wrapper of another scalar": (
        flow(mirror(wrapped_string=path("input.weight_grams"))),
        [('steps[0].request["wrapped_string"]', "TYPE_MISMATCH")],
    ),
    "whole request of another message": (
        flow({"id": "charge", "method": "shop.v1.Payments/Charge", "wholeRequest": path("input")}),
        [("steps[0].whole_request", "TYPE_MISMATCH")],
    ),
    "expression of another type": (
        flow(charge(order_id=cel("1 + 2"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "expression: int into enum": (
        flow(mirror(currency=cel("1"))),
        [('steps[0].request["currency"]', "TYPE_MISMATCH")],
    ),
    "expression: constant of another enum": (
        flow(mirror(priority=cel("shop.v1.Currency.EUR"))),
        [('steps[0].request["priority"]', "TYPE_MISMATCH")],
    ),
    "condition that is no bool": (flow(RESERVE | {"when": "input.order_id"}), [("steps[0].when", "TYPE_MISMATCH")]),
    "expect that is no bool": (flow(RESERVE | {"expect": "output.count"}), [("steps[0].expect", "TYPE_MISMATCH")]),
    "list element of another type": (
        flow(mirror(strings={"list": {"elements": [lit("a"), path("input.weight_grams")]}})),
        [('steps[0].request["strings"].list.elements[1]', "TYPE_MISMATCH")],
    ),
    "map entry of another type": (
        flow(mirror(labels={"map": {"entries": {"a b": path("input.total")}}})),
        [('steps[0].request["labels"].map.entries["a b"]', "TYPE_MISMATCH")],
    ),
    # Literals
    "literal of another type": (flow(charge(order_id=lit(5))), [('steps[0].request["order_id"]', "INVALID_LITERAL")]),
    "fraction for an integer": (
        flow(mirror(int32_value=lit(1.5))),
        [('steps[0].request["int32_value"]', "INVALID_LITERAL")],
    ),
    "integer out of range": (
        flow(mirror(int32_value=lit(3000000000))),
        [('steps[0].request["int32_value"]', "INVALID_LITERAL")],
    ),
    "unknown enum value": (flow(mirror(currency=lit("EURO"))), [('steps[0].request["currency"]', "INVALID_LITERAL")]),
    "null": (flow(charge(order_id=lit(None))), [('steps[0].request["order_id"]', "INVALID_LITERAL")]),
    "unknown field in a literal": (
        flow(charge(amount=lit({"unit": 5}))),
        [('steps[0].request["amount"]', "INVALID_LITERAL")],
    ),
    "bad timestamp": (flow(mirror(time=lit("today"))), [('steps[0].request["time"]', "INVALID_LITERAL")]),
    "bad base64": (flow(mirror(bytes_value=lit("%%%"))), [('steps[0].request["bytes_value"]', "INVALID_LITERAL")]),
    "bad element": (flow(mirror(int32_list=lit([1, "x"]))), [('steps[0].request["int32_list"]', "INVALID_LITERAL")]),
    "Any of an unknown type": (
        flow(mirror(any=lit({"@type": "type.googleapis.com/shop.v1.Missing"}))),
        [('steps[0].request["any"]', "INVALID_LITERAL")],
    ),
    # Oneofs and forms
    "two of a oneof": (
        flow(mirror(email=lit("a@b"), phone=lit("5"))),
        [('steps[0].request["phone"]', "ONEOF_CONFLICT")],
    ),
    "request and whole request": (
        flow(charge(order_id=lit("x")) | {"wholeRequest": lit({})}),
        [("steps[0].whole_request", "INVALID_BINDING")],
    ),
    "output and whole output": (
        flow(
            RESERVE,
            outputType="shop.v1.OrderInput",
            output={"order_id": path("input.order_id")},
            wholeOutput=path("input"),
        ),
        [("whole_output", "INVALID_BINDING")],
    ),
    "output type without output": (flow(RESERVE, outputType="shop.v1.OrderOutput"), [("output", "INVALID_BINDING")]),
    "output without output type": (
        flow(RESERVE, output={"total": path("input.total")}),
        [("output", "INVALID_BINDING")],
    ),
    "empty binding": (flow(charge(order_id={})), [('steps[0].request["order_id"]', "INVALID_BINDING")]),
    "message form for a scalar": (
        flow(charge(order_id=msg(x=lit("y")))),
        [('steps[0].request["order_id"]', "INVALID_BINDING")],
    ),
    "list form for a scalar": (
        flow(charge(order_id={"list": {"elements": [lit("a")]}})),
        [('steps[0].request["order_id"]', "INVALID_BINDING")],
    ),
    "map form for integer keys": (
        flow(mirror(names={"map": {"entries": {"1": lit("a")}}})),
        [('steps[0].request["names"]', "INVALID_BINDING")],
    ),
    "default of a literal": (
        flow(charge(order_id=lit("a") | {"defaultValue": "b"})),
        [('steps[0].request["order_id"]', "INVALID_BINDING")],
    ),
    "default that is never used": (
        flow(RESERVE, charge(order_id=path("steps.reserve.output.reservation_id") | {"defaultValue": "b"})),
        [('steps[1].request["order_id"]', "INVALID_BINDING")],
    ),
    "default of another type": (
        flow(MAYBE, charge(order_id=path("steps.reserve.output.reservation_id") | {"defaultValue": 5})),
        [('steps[1].request["order_id"]', "INVALID_LITERAL")],
    ),
    # Paths
    "path of another form": (
        flow(charge(order_id=path("order_id"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "path with an index": (
        flow(charge(order_id=path("input.items[0].sku"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "path through a list": (
        flow(charge(order_id=path("input.items.sku"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "path through a map": (
        flow(charge(order_id=path("input.address.notes.door"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "path below a scalar": (
        flow(charge(order_id=path("input.order_id.x"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "path to an unknown field": (
        flow(charge(order_id=path("input.ordr_id"))),
        [('steps[0].request["order_id"]', "UNKNOWN_FIELD")],
    ),
    "path to a step's unknown part": (
        flow(RESERVE, charge(order_id=path("steps.reserve.outptu"))),
        [('steps[1].request["order_id"]', "INVALID_PATH")],
    ),
    "input without input type": (
        {"steps": [charge(order_id=path("input.order_id"))]},
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    # Steps
    "unknown step": (
        flow(RESERVE, charge(order_id=path("steps.resrve.output.reservation_id"))),
        [('steps[1].request["order_id"]', "UNKNOWN_STEP")],
    ),
    "unknown step in an expression": (
        flow(RESERVE, charge(order_id=cel("steps.resrve.output.reservation_id + '!'"))),
        [('steps[1].request["order_id"]', "UNKNOWN_STEP")],
    ),
    "unknown step in after": (flow(RESERVE | {"after": ["nobody"]}), [("steps[0].after[0]", "UNKNOWN_STEP")]),
    "unknown step in on_failure": (
        flow(RESERVE | {"onFailure": [{}, {"step": "nobody"}]}),
        [("steps[0].on_failure[1].step", "UNKNOWN_STEP")],
    ),
    "duplicate step": (flow(RESERVE, RESERVE), [("steps[1].id", "DUPLICATE_STEP")]),
    "step that reads itself": (
        flow(charge(order_id=path("steps.charge.output.charge_id"))),
        [('steps[0].request["order_id"]', "CYCLE")],
    ),
    "step after itself": (flow(RESERVE | {"after": ["reserve"]}), [("steps[0].after[0]", "CYCLE")]),
    "step that handles itself": (
        flow(RESERVE | {"onFailure": [{"step": "reserve"}]}),
        [("steps[0].on_failure[0].step", "CYCLE")],
    ),
    "circle through data and after": (
        flow(RESERVE | {"after": ["charge"]}, charge(order_id=path("steps.reserve.output.reservation_id"))),
        [("steps[0].after[0]", "CYCLE")],
    ),
    "circle through a failure branch": (
        flow(
            RESERVE | {"request": {"order_id": path("steps.notify.state")}, "onFailure": [{"step": "notify"}]},
            notify(text=lit("x")),
        ),
        [('steps[0].request["order_id"]', "CYCLE")],
    ),
    # Missing outputs
    "output of a step with when": (
        flow(MAYBE, charge(order_id=path("steps.reserve.output.reservation_id"))),
        [('steps[1].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output of a step that may fail": (
        flow(HANDLED, charge(order_id=cel("steps.reserve.output.reservation_id + 'x'"))),
        [('steps[1].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output of a handler": (
        flow(
            RESERVE | {"onFailure": [{"step": "charge"}]},
            charge(order_id=lit("x")),
            notify(text=path("steps.charge.output.charge_id")),
        ),
        [('steps[2].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "run output that may be missing": (
        flow(
            MAYBE, outputType="shop.v1.OrderOutput", output={"charge_id": path("steps.reserve.output.reservation_id")}
        ),
        [('output["charge_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output that may be missing in when": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "steps.reserve.output.complete"}),
        [("steps[1].when", "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard after the read": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "steps.reserve.output.complete && steps.reserve.succeeded"}),
        [("steps[1].when", "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard in the wrong branch": (
        flow(MAYBE, notify(text=cel("steps.reserve.succeeded ? 'x' : steps.reserve.output.reservation_id"))),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard by or": (
        flow(
            MAYBE,
            notify(text=path("steps.reserve.output.reservation_id"))
            | {"when": "steps.reserve.succeeded || input.express"},
        ),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "failing step's output in its handler": (
        flow(
            RESERVE | {"onFailure": [{"step": "notify"}]},
            notify(text=path("steps.reserve.output.reservation_id")),
        ),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "missing output in expect": (
        flow(MAYBE, charge(order_id=lit("x")) | {"expect": "output.charge_id != steps.reserve.output.reservation_id"}),
        [("steps[1].expect", "OUTPUT_MAY_BE_MISSING")],
    ),
    "missing output in a fallback": (
        flow(
            MAYBE,
            charge(order_id=lit("x"))
            | {
                "fallback": [
                    {
                        "method": "shop.v1.Payments/ChargeAgain",
                        "request": {"order_id": path("steps.reserve.output.reservation_id")},
                    }
                ]
            },
        ),
        [('steps[1].fallback[0].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    # Steps that never run
    "failure that ends the run": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.failed"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "failure code of a step without on_failure": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.failure.reason == 'DECLINED'"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "skip of a step that always runs": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.state == 'SKIPPED'"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "condition that is false": (flow(RESERVE | {"when": "false"}), [("steps[0].when", "UNREACHABLE_STEP")]),
    "states that exclude each other": (
        flow(HANDLED, notify(text=lit("x")) | {"when": "steps.reserve.succeeded && steps.reserve.failed"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "states that exclude each other through another step": (
        flow(
            HANDLED,
            charge(order_id=lit("x")) | {"when": "steps.reserve.succeeded"},
            notify(text=lit("x")) | {"when": "steps.charge.succeeded && !steps.reserve.succeeded"},
        ),
        [("steps[2].when", "UNREACHABLE_STEP")],
    ),
    "handler that requires success": (
        flow(
            RESERVE | {"onFailure": [{"step": "notify"}]},
            notify(text=lit("x")) | {"when": "steps.reserve.succeeded"},
        ),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    # Expressions
    "syntax error": (flow(charge(order_id=cel("input."))), [('steps[0].request["order_id"]', "INVALID_EXPRESSION")]),
    "type error": (
        flow(charge(order_id=cel("input.order_id + 1"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "unknown field in an expression": (
        flow(charge(order_id=cel("input.ordr_id + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "unknown name": (flow(charge(order_id=cel("order.id"))), [('steps[0].request["order_id"]', "INVALID_EXPRESSION")]),
    "unknown state": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.state == 'DONE'"}),
        [("steps[1].when", "INVALID_EXPRESSION")],
    ),
    "own output outside of expect": (
        flow(RESERVE | {"when": "output.complete"}),
        [("steps[0].when", "INVALID_EXPRESSION")],
    ),
    "has of an output": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "has(steps.reserve.output)"}),
        [("steps[1].when", "INVALID_EXPRESSION")],
    ),
    "loops nested too deep": (
        flow(RESERVE | {"when": "[1].all(a, [1].all(b, [1].all(c, true)))"}),
        [("steps[0].when", "EXPRESSION_TOO_COSTLY")],
    ),
    "strings joined in a loop": (
        flow(mirror(strings=cel("input.items.map(i, i.sku + input.order_id)"))),
        [('steps[0].request["strings"]', "EXPRESSION_TOO_COSTLY")],
    ),
    "source too long": (
        flow(charge(order_id=cel("'" + "x" * 2050 + "'"))),
        [('steps[0].request["order_id"]', "EXPRESSION_TOO_COSTLY")],
    ),
    # Fallbacks and settings
    "fallback with another output": (
        flow(charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Shipping/Ship", "request": {}}]}),
        [
            ("steps[0].fallback[0].method", "FALLBACK_TYPE_MISMATCH"),
            ('steps[0].fallback[0].request["order_id"]', "UNKNOWN_FIELD"),
        ],
    ),
    "inherited request that does not fit": (
        flow(charge(amount=path("input.total")) | {"fallback": [{"method": "shop.v1.Payments/ChargeOld"}]}),
        [('steps[0].fallback[0].request["amount"]', "TYPE_MISMATCH")],
    ),
    "fallback's own request that does not fit": (
        flow(
            charge(order_id=lit("x"))
            | {"fallback": [{"method": "shop.v1.Payments/ChargeOld", "request": {"amount": path("input.total")}}]}
        ),
        [('steps[0].fallback[0].request["amount"]', "TYPE_MISMATCH")],
    ),
    "backoffs that contradict": (
        flow(RESERVE | {"retry": {"initialBackoff": "5s", "maxBackoff": "1s"}}),
        [("steps[0].retry.max_backoff", "INVALID_SETTING")],
    ),
    "workflow's backoffs that contradict": (
        flow(RESERVE, retry={"initialBackoff": "5s", "maxBackoff": "1s"}),
        [("retry.max_backoff", "INVALID_SETTING")],
    ),
    "attempt longer than step": (
        flow(RESERVE | {"attemptTimeout": "5s", "stepTimeout": "1s"}),
        [("steps[0].attempt_timeout", "INVALID_SETTING")],
    ),
    "step longer than run": (
        flow(RESERVE | {"stepTimeout": "5s"}, runTimeout="1s"),
        [("steps[0].step_timeout", "INVALID_SETTING")],
    ),
    "retry of OK": (
        flow(RESERVE | {"retry": {"codes": ["OK"]}}),
        [("steps[0].retry.codes[0]", "INVALID_SETTING")],
    ),
    "branch on OK": (
        flow(RESERVE | {"onFailure": [{"codes": ["OK"]}]}),
        [("steps[0].on_failure[0].codes[0]", "INVALID_SETTING")],
    ),
    # Several at once, in the order of the workflow
    "several": (
        flow(
            charge(order_id=lit(5), amount=path("input.address")),
            notify(txt=lit("x"), code=path("steps.chrge.output.charge_id")),
            outputType="shop.v1.OrderOutput",
            output={"total": path("input.order_id")},
        ),
        [
            ('steps[0].request["amount"]', "TYPE_MISMATCH"),
            ('steps[0].request["order_id"]', "INVALID_LITERAL"),
            ('steps[1].request["code"]', "UNKNOWN_STEP"),
            ('steps[1].request["txt"]', "UNKNOWN_FIELD"),
            ('output["total"]', "TYPE_MISMATCH"),
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_workflow_is_refused_at_the_path(name: str) -> None:
    definition, expected = WRONG[name]
    checked = check(definition)
    assert [(violation.path, violation.reason) for violation in checked.violations] == expected, checked.violations
    assert checked.compiled is None


@pytest.mark.parametrize("name", WRONG)
def test_messages_are_sentences_without_internals(name: str) -> None:
    for violation in check(WRONG[name][0]).violations:
        assert len(violation.message) > 10
        assert "Traceback" not in violation.message
        assert "google._upb" not in violation.message
        assert "INVALID_ARGUMENT" not in violation.message


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("unknown service", ["shop.v1.Inventry/Reserve", "did you mean `shop.v1.Inventory/Reserve`"]),
        ("unknown method", ["did you mean `Reserve`"]),
        ("unknown input type", ["did you mean `shop.v1.OrderInput`"]),
        ("unknown field", ["shop.v1.ChargeRequest has no field `ammount`; did you mean `amount`"]),
        ("json name of a field", ["did you mean `order_id`"]),
        ("unknown step", ["there is no step `resrve`; did you mean `reserve`"]),
        ("unknown enum value", ["shop.v1.Currency", "did you mean `EUR`"]),
        ("unknown field in a literal", ["shop.v1.Money has no field `unit`; did you mean `units`"]),
        (
            "string into message",
            ["shop.v1.ChargeRequest.amount is shop.v1.Money, but steps.reserve.output.reservation_id is string"],
        ),
        ("circle through data and after", ["reserve -> charge -> reserve"]),
        ("failure that ends the run", ["add on_failure to `reserve`"]),
        ("output of a step with when", ["steps.reserve.output.reservation_id may be missing", "default_value"]),
        ("list into singular", ["expression"]),
        ("unknown field in an expression", ["did you mean `order_id`"]),
        ("bad element", ["int32_list[1] is int32"]),
    ],
)
def test_message_names_types_and_the_closest_name(name: str, parts: list[str]) -> None:
    messages = " ".join(violation.message for violation in check(WRONG[name][0]).violations)
    for part in parts:
        assert part in messages


def test_at_most_a_hundred_violations_come_in_order() -> None:
    steps = [charge(order_id=lit(5)) | {"id": f"s{index}"} for index in range(300)]
    violations = check(flow(*steps)).violations
    assert [violation.path for violation in violations] == [
        f'steps[{index}].request["order_id"]' for index in range(100)
    ]


def test_a_name_is_required_where_asked_for() -> None:
    violations = check(flow(RESERVE), require_name=True).violations
    assert [(violation.path, violation.reason) for violation in violations] == [("name", "INVALID_SETTING")]
