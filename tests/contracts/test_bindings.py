"""Bindings: what they build from the input, for every kind of field, by path, literal and expression."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from tests.contracts.corpus import FULL, check, compiled, contract_of, message, mirror, workflow


def built(request: dict[str, Any], given: dict[str, Any] | None = None, form: str = "request") -> dict[str, Any]:
    """Returns, in JSON form, the request that a mirror step builds from the input."""
    definition = mirror(request)
    if form != "request":
        definition["steps"][0].pop("request")
        definition["steps"][0][form] = request
    workflow = compiled(definition)
    scope = Scope(1, message(workflow, "shop.v1.Everything", FULL if given is None else given))
    answer = workflow.step(0).targets[0].build_request(scope)
    return json_format.MessageToDict(answer, descriptor_pool=workflow.types.pool)


FIELDS = [
    "double_value float_value int32_value int64_value uint32_value uint64_value sint32_value fixed64_value bool_value "
    "string_value bytes_value currency priority money optional_int32 int32_list int64_list strings moneys currencies "
    "counts prices names labels email time duration details json json_list any wrapped_int32 wrapped_int64 "
    "wrapped_string wrapped_bool wrapped_strings category currency_by_name items"
][0].split()


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@pytest.mark.parametrize("name", FIELDS)
def test_a_path_copies_every_kind_of_field(name: str) -> None:
    assert built({name: {"path": f"input.{name}"}}) == {camel(name): FULL[camel(name)]}


@pytest.mark.parametrize("name", FIELDS)
def test_a_literal_gives_every_kind_of_field(name: str) -> None:
    assert built({name: {"literal": FULL[camel(name)]}}) == {camel(name): FULL[camel(name)]}


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "any"])
def test_an_expression_gives_every_kind_of_field(name: str) -> None:
    assert built({name: {"expression": f"true ? input.{name} : input.{name}"}}) == {camel(name): FULL[camel(name)]}


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [
        ("time", {"seconds": {"literal": "86400"}, "nanos": {"literal": 5}}, "1970-01-02T00:00:00.000000005Z"),
        ("duration", {"seconds": {"literal": 3}}, "3s"),
        ("details", {"fields": {"map": {"entries": {"a": {"literal": [1]}}}}}, {"a": [1.0]}),
        ("json_list", {"values": {"literal": [None, "x"]}}, [None, "x"]),
        ("wrapped_int64", {"value": {"literal": "9007199254740993"}}, "9007199254740993"),
    ],
)
def test_well_known_types_are_built_field_by_field(name: str, fields: dict[str, Any], value: Any) -> None:
    assert built({name: {"message": {"fields": fields}}}) == {camel(name): value}


def test_an_expression_builds_a_map_of_enum_values() -> None:
    expression = "{'a': input.currency, 'b': shop.v1.Currency.EUR}"
    given = {"currency": "EUR"}
    assert built({"currency_by_name": {"expression": expression}}, given) == {
        "currencyByName": {"a": "EUR", "b": "EUR"}
    }


def test_whole_messages() -> None:
    assert built({"path": "input"}, form="wholeRequest") == FULL
    assert built({"literal": FULL}, form="wholeRequest") == FULL
    assert built({"expression": "input"}, form="wholeRequest") == FULL
    nested = {"message": {"fields": {"money": {"path": "input.money"}}}}
    assert built(nested, form="wholeRequest") == {"money": FULL["money"]}


@pytest.mark.parametrize(
    ("target", "source", "value"),
    [
        ("int64_value", "int32_value", "-3"),
        ("int64_value", "uint32_value", "5"),
        ("uint64_value", "uint32_value", "5"),
        ("double_value", "float_value", 2.5),
        ("sint64_value", "int64_value", "-4"),
        ("sfixed32_value", "int32_value", -3),
        ("int64_list", "int32_list", ["1", "2"]),
        ("wrapped_int32", "int32_value", -3),
        ("wrapped_int64", "int32_value", "-3"),
        ("wrapped_int64", "wrapped_int32", "12"),
        ("int32_value", "wrapped_int32", 12),
        ("int64_value", "wrapped_int32", "12"),
        ("wrapped_strings", "strings", ["a", "b"]),
        ("strings", "wrapped_strings", ["w"]),
        ("any", "money", {"@type": "type.googleapis.com/shop.v1.Money"} | FULL["money"]),
        ("phone", "int64_value", "-4"),
        ("json_list", "json_list", [1, True]),
    ],
)
def test_a_path_widens_without_loss(target: str, source: str, value: Any) -> None:
    assert built({target: {"path": f"input.{source}"}}) == {camel(target): value}


def test_every_message_of_a_list_is_packed_into_any() -> None:
    packed = built({"anys": {"path": "input.moneys"}})["anys"]
    assert [one["units"] for one in packed] == ["1", "2"]


@pytest.mark.parametrize(
    "name", ["money", "optional_int32", "optional_string", "wrapped_int32", "email", "time", "category", "any", "json"]
)
def test_what_is_unset_stays_unset(name: str) -> None:
    assert built({name: {"path": f"input.{name}"}}, {}) == {}


def test_an_unset_message_on_the_way_gives_the_default_of_a_scalar() -> None:
    request = {
        "string_value": {"path": "input.category.parent.name"},
        "optional_string": {"path": "input.category.image.url"},
        "bytes_value": {"path": "input.category.image.data"},
    }
    assert built(request, {}) == {"optionalString": ""}


def test_nested_bindings() -> None:
    request = {
        "category": {
            "message": {
                "fields": {
                    "name": {"path": "input.string_value"},
                    "parent": {"message": {"fields": {"name": {"literal": "up"}}}},
                    "children": {
                        "list": {
                            "elements": [
                                {"message": {"fields": {"name": {"literal": "one"}}}},
                                {"path": "input.category"},
                                {"literal": {"name": "three"}},
                                {"expression": "shop.v1.Category{name: input.string_value + '!'}"},
                            ]
                        }
                    },
                }
            }
        },
        "prices": {
            "map": {
                "entries": {
                    "a b": {"path": "input.money"},
                    "c": {"message": {"fields": {"units": {"expression": "input.int64_value * 2"}}}},
                    "d": {"literal": {"units": "1"}},
                }
            }
        },
        "labels": {"map": {"entries": {"x": {"path": "input.string_value"}, "y": {"literal": "z"}}}},
        "strings": {"list": {"elements": [{"literal": "1"}, {"path": "input.string_value"}, {"literal": "3"}]}},
        "address": {"message": {"fields": {}}},
    }
    assert built(request) == {
        "category": {
            "name": "text",
            "parent": {"name": "up"},
            "children": [{"name": "one"}, FULL["category"], {"name": "three"}, {"name": "text!"}],
        },
        "prices": {"a b": FULL["money"], "c": {"units": "-8"}, "d": {"units": "1"}},
        "labels": {"x": "text", "y": "z"},
        "strings": ["1", "text", "3"],
        "address": {},
    }


def test_building_twice_shares_nothing() -> None:
    workflow = compiled(mirror({"strings": {"literal": ["a"]}, "money": {"literal": {"units": "1"}}}))
    scope = Scope(1, message(workflow, "shop.v1.Everything", {}))
    first: Any = workflow.step(0).targets[0].build_request(scope)
    first.strings.append("b")
    first.money.units = 5
    second: Any = workflow.step(0).targets[0].build_request(scope)
    assert list(second.strings) == ["a"]
    assert second.money.units == 1


@pytest.mark.parametrize(
    ("target", "source", "value"),
    [
        ("int32_value", "input.int64_value + 10", 6),
        ("uint32_value", "7", 7),
        ("uint64_value", "7u", "7"),
        ("float_value", "input.double_value * 2.0", 3.0),
        ("string_value", "input.currency == shop.v1.Currency.EUR ? 'euro' : 'other'", "euro"),
        ("currency", "shop.v1.Currency.USD", "USD"),
        ("currency", "input.bool_value ? input.currency : shop.v1.Currency.USD", "EUR"),
        ("currency", "input.currencies[0]", "USD"),
        ("currency", "input.currency_by_name['euro']", "EUR"),
        ("currencies", "[shop.v1.Currency.USD, input.currency]", ["USD", "EUR"]),
        ("currencies", "input.items.map(i, i.currency)", ["CURRENCY_UNSPECIFIED"]),
        ("strings", "input.items.map(i, i.sku)", ["s"]),
        ("moneys", "input.items.map(i, i.price)", [{"units": "5"}]),
        ("moneys", "input.moneys.filter(m, m.units > 1)", [{"units": "2"}]),
        ("int64_value", "input.moneys.map(m, m.units)[1]", "2"),
        ("bool_value", "input.items.exists(i, i.price.units == 5)", True),
        ("counts", "{'n': input.items.size()}", {"n": "1"}),
        ("labels", "input.labels", {"l": "m"}),
        ("prices", "{'p': input.money}", {"p": FULL["money"]}),
        ("names", "{1: 'one'}", {"1": "one"}),
        (
            "money",
            "shop.v1.Money{units: input.int64_value, currency: shop.v1.Currency.EUR}",
            {"units": "-4", "currency": "EUR"},
        ),
        ("time", "input.time + duration('1s')", "2030-01-31T12:00:01.000001Z"),
        ("duration", "input.duration + input.duration", "3s"),
        ("duration", "input.time - timestamp('2030-01-31T00:00:00Z')", "43200.000001s"),
        ("details", "{'a': [1, 'x'], 'b': {'c': true}}", {"a": [1, "x"], "b": {"c": True}}),
        ("json", "[1, 2.5, 'x', null]", [1, 2.5, "x", None]),
        ("json", "input.json", "plain"),
        ("string_value", "input.details.a[1]", "x"),
        ("json_list", "input.json_list", [1, True]),
        ("any", "input.money", {"@type": "type.googleapis.com/shop.v1.Money"} | FULL["money"]),
        ("wrapped_int32", "input.wrapped_int32", 12),
        ("wrapped_string", "'w'", "w"),
        ("int32_value", "input.wrapped_int32", 12),
        ("bytes_value", "b'ab'", "YWI="),
        ("optional_string", "input.?string_value.orValue('none')", "text"),
        ("optional_int32", "has(input.optional_int32) ? input.optional_int32 : 5", 0),
        ("string_value", "has(input.email) && input.email == 'a@b.c' ? input.email : 'none'", "a@b.c"),
        ("string_value", "input.category.?parent.name.orValue('none')", "root"),
        ("string_value", "'A,B'.split(',').join('-').lowerAscii()", "a-b"),
        ("double_value", "math.greatest(input.double_value, 9.0)", 9.0),
    ],
)
def test_expressions_give_exact_values(target: str, source: str, value: Any) -> None:
    assert built({target: {"expression": source}}) == {camel(target): value}


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("money", "null"),
        ("money", "input.bool_value ? null : input.money"),
        ("optional_string", "optional.none()"),
        ("optional_string", "input.?optional_string"),
        ("wrapped_double", "input.wrapped_double"),
        ("strings", "[]"),
    ],
)
def test_null_and_empty_optionals_leave_the_field_unset(target: str, source: str) -> None:
    assert built({target: {"expression": source}}) == {}


@pytest.mark.parametrize(
    ("target", "source", "part"),
    [
        ("int32_value", "input.int64_value * 1000000000", "out of the range of int32"),
        ("uint32_value", "input.int64_value", "out of the range of uint32"),
        ("uint64_value", "input.int64_value", "out of the range of uint64"),
        ("float_value", "input.double_value * 1e300", "out of the range of float"),
        ("int64_value", "9223372036854775807 + input.uint32_value_as_int", None),
        ("int64_value", "1 / (input.int64_value + 4)", "divides by zero"),
        ("int64_value", "input.int64_list[5]", "out of range"),
        ("int64_value", "input.counts['nothing']", "no such key"),
        ("int32_value", "input.json", "is string, but int32 is needed"),
        ("strings", "input.details.a", "is needed"),
        ("string_value", "input.details.missing", "no such key"),
        ("json", "9007199254740993", "without loss"),
        ("int32_value", "int(input.string_value)", "converted"),
        ("time", "timestamp(input.string_value)", "no timestamp"),
    ],
)
def test_run_time_faults_are_failures_with_a_text_for_callers(target: str, source: str, part: str | None) -> None:
    if part is None:
        assert check(mirror({target: {"expression": source}})).violations
        return
    with pytest.raises(EvaluationFailed) as caught:
        built({target: {"expression": source}})
    assert part in str(caught.value)


def test_timestamps_keep_nanoseconds_on_paths() -> None:
    given = {"time": "2030-01-31T12:00:00.123456789Z"}
    assert built({"time": {"path": "input.time"}}, given) == given


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("time", {"time": "2030-01-31T12:00:00.123456789Z"}),
        ("duration", {"duration": "0.000000001s"}),
        ("details", {"details": {"a": None}}),
        ("json", {"json": None}),
        ("money", {}),
        ("optional_int32", {}),
        ("wrapped_string", {}),
        ("any", {"any": {"@type": "type.googleapis.com/shop.v1.Money"}}),
    ],
)
@pytest.mark.parametrize("expression", ["input.{}", " (input.{}) ", "input.`{}`"])
def test_an_expression_that_only_names_a_field_copies_it_like_a_path(
    name: str, given: dict[str, Any], expression: str
) -> None:
    assert built({name: {"expression": expression.format(name)}}, given) == given


def test_nulls_in_json_stay_in_lists_and_maps() -> None:
    source = """
    syntax = "proto3"; package j; import "google/protobuf/struct.proto";
    message M { map<string, google.protobuf.Value> map = 1; repeated google.protobuf.Value list = 2; }
    service S { rpc Call(M) returns (M); }
    """
    for expressions in (("input.map", "input.list"), ("{'a': null, 'b': 1}", "[null, 'x']")):
        request = {name: {"expression": one} for name, one in zip(("map", "list"), expressions, strict=True)}
        definition = {"inputType": "j.M", "steps": [{"id": "s", "method": "j.S/Call", "request": request}]}
        found = check_workflow(workflow(definition), [("w", contract_of(source))]).compiled
        assert found is not None
        given = {"map": {"a": None, "b": 1.0}, "list": [None, "x"]}
        answer = found.step(0).targets[0].build_request(Scope(1, message(found, "j.M", given)))
        assert json_format.MessageToDict(answer) == given


def test_below_json_an_expression_is_no_path() -> None:
    given = {"details": {"fields": {"own": "x"}}}
    assert built({"details": {"expression": "input.details.fields"}}, given) == {"details": {"own": "x"}}


def test_a_name_in_an_expression_is_guarded_and_defaulted_like_a_path() -> None:
    maybe = {"id": "maybe", "method": "shop.v1.Mirror/Reflect", "when": "input.bool_value"}
    name = "steps.maybe.output.string_value"
    for default in ({}, {"defaultValue": "none"}):
        definition = mirror({"string_value": {"expression": name, **default}})
        definition["steps"].append(maybe)
        checked = check(definition)
        assert [one.reason for one in checked.violations] == ([] if default else ["OUTPUT_MAY_BE_MISSING"])
    found = checked.compiled
    assert found is not None
    scope = Scope(2, message(found, "shop.v1.Everything", {}))
    answer: Any = found.step(0).targets[0].build_request(scope)
    assert answer.string_value == "none"
