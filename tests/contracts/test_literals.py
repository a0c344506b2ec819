"""Literals that are wrong: the message names the innermost part and the cure."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contracts.compile import check_workflow
from tests.contracts.corpus import check, contract_of, mirror, workflow


def fault(field: str, value: Any) -> str:
    """Returns the one message about a literal of a field of Everything."""
    (violation,) = check(mirror({field: {"literal": value}})).violations
    assert (violation.path, violation.reason) == (f'steps[0].request["{field}"]', "INVALID_LITERAL")
    return violation.message


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        (
            "currency_by_name",
            {"a": "EUR", "b c": "EURO"},
            ['currency_by_name["b c"] is shop.v1.Currency', '"EURO"; did you mean `EUR`'],
        ),
        ("counts", {"x": 1, "y": "two"}, ['counts["y"] is int64', "whole number", '"two"']),
        ("counts", {"x": None}, ['counts["x"] is int64', "null"]),
        ("names", {"1": "one", "two": "2"}, ['names["two"]', "the keys are int32"]),
        ("names", {"4294967296": "big"}, ["the keys are int32"]),
        (
            "prices",
            {"p": {"units": 1}, "q": {"unit": 1}},
            ['prices["q"]: shop.v1.Money has no field `unit`', "`units`"],
        ),
        ("prices", {"q": {"currency": "EURO"}}, ['prices["q"].currency is shop.v1.Currency', "`EUR`"]),
        ("prices", {"q": 5}, ['prices["q"] is shop.v1.Money, but the literal is 5']),
        ("items", [{"sku": "a"}, {"price": {"units": "x"}}], ["items[1].price.units is int64", '"x"']),
        ("items", [{"tags": ["a", 5]}], ["items[0].tags[1] is string", "5"]),
        ("moneys", [{"units": 1}, 7], ["moneys[1] is shop.v1.Money", "7"]),
        ("address", {"notes": {"k": 1}}, ['address.notes["k"] is string']),
        ("any", {"@type": "type.googleapis.com/shop.v1.Mony"}, ["has shop.v1.Mony; did you mean `shop.v1.Money`"]),
        ("any", {"units": 1}, ["give the name of the message in it as `@type`"]),
        ("any", {"@type": "t/shop.v1.Money", "unit": 1}, ["any: shop.v1.Money has no field `unit`"]),
        ("any", {"@type": "t/shop.v1.Money", "units": "1_0"}, ["any.units is int64"]),
        ("any", {"@type": "t/google.protobuf.Duration", "value": "soon"}, ["google.protobuf.Duration", "`1.5s`"]),
    ],
)
def test_the_message_names_the_inner_place(field: str, value: Any, parts: list[str]) -> None:
    message = fault(field, value)
    for part in parts:
        assert part in message


NESTED = """
syntax = "proto3"; package n; import "google/protobuf/field_mask.proto"; import "google/protobuf/struct.proto";
message Part { oneof choice { string by_name = 1; int64 by_int = 2; google.protobuf.Value by_json = 3; } }
message M {
  Part part = 1; repeated Part parts = 2; google.protobuf.FieldMask mask = 3; google.protobuf.Struct json = 4;
}
service S { rpc Call(M) returns (M); }
"""


def messages(request: dict[str, Any], form: str = "request") -> list[str]:
    step = {"id": "s", "method": "n.S/Call", form: request}
    checked = check_workflow(workflow({"steps": [step]}), [("w", contract_of(NESTED))])
    return [violation.message for violation in checked.violations]


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("part", {"by_name": "a", "by_int": 1}, ["n.M.part: `by_int` and `by_name` are both of the oneof `choice`"]),
        ("parts", [{}, {"byName": "a", "by_json": None, "byInt": 1}], ["n.M.parts[1]:", "`byInt` and `byName`"]),
        ("part", {"by_int": 1, "byInt": 2}, ["n.M.part.by_int is there twice, as `byInt` and as `by_int`"]),
        ("mask", "a..b", ["n.M.mask is google.protobuf.FieldMask", "`displayName,address.city`"]),
        ("mask", "a,", ["FieldMask"]),
        ("mask", ".a", ["FieldMask"]),
        ("mask", "a_b", ["FieldMask"]),
    ],
)
def test_contradictions_in_a_literal(field: str, value: Any, parts: list[str]) -> None:
    (message,) = messages({field: {"literal": value}})
    (whole,) = messages({"literal": {field: value}}, "wholeRequest")
    for part in parts:
        assert part in message
        assert part.removeprefix("n.M.part: ") in whole


@pytest.mark.parametrize(
    "request_literal",
    [
        {"mask": ""},
        {"mask": "a"},
        {"mask": "displayName,address.city"},
        {"json": {"fields": {"a": {"numberValue": "x"}, "b": 1.5}}},
        {"part": {"byInt": "5"}},
        {"part": {"by_name": None, "by_int": 1}},
    ],
)
def test_what_is_right_is_taken(request_literal: dict[str, Any]) -> None:
    assert messages({name: {"literal": value} for name, value in request_literal.items()}) == []
    assert messages({"literal": request_literal}, "wholeRequest") == []


def test_a_whole_message_is_as_exact_as_a_field() -> None:
    (message,) = messages({"literal": {"part": {"byInt": "1_0"}}}, "wholeRequest")
    assert "n.M.part.by_int is int64" in message
    (message,) = messages({"literal": [1]}, "wholeRequest")
    assert "an object of its fields, not a list" in message
