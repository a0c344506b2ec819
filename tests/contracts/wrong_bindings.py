"""Workflows whose methods, types, fields, bindings or paths are wrong."""

from __future__ import annotations

from tests.contracts.definitions import (
    MAYBE,
    RESERVE,
    Wrong,
    cel,
    charge,
    flow,
    lit,
    mirror,
    msg,
    path,
)

WRONG_BINDINGS: Wrong = {
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
    "enum value with a fraction": (
        flow(mirror(currency=lit(1.5))),
        [('steps[0].request["currency"]', "INVALID_LITERAL")],
    ),
    "number of 64 bits that JSON may have rounded": (
        flow(charge(amount=lit({"units": 9007199254740993}))),
        [('steps[0].request["amount"]', "INVALID_LITERAL")],
    ),
    "whole number with a separator": (
        flow(charge(amount=lit({"units": "1_0"}))),
        [('steps[0].request["amount"]', "INVALID_LITERAL")],
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
}
