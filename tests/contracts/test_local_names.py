"""Local names in expressions: what `item`, `key` and `previous` give there, and how large they may be."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from tests.contracts.corpus import compiled, message, order, requests
from tests.contracts.definitions import cel, flow, path, repeated


@pytest.mark.parametrize(
    ("items", "given", "field", "expression", "wanted"),
    [
        ("items", {"items": [{"tags": ["a", "b"]}]}, "string_value", "item.tags.filter(tag, tag != 'a').join('')", "b"),
        ("items", {"items": [{}]}, "bool_value", "has(item.price)", False),
        ("items", {"items": [{"price": {"units": "0"}}]}, "bool_value", "has(item.price)", True),
        ("items", {"items": [{"price": {"units": "3"}}]}, "int64_value", "item.?price.units.orValue(7)", 3),
        ("items", {"items": [{"currency": "USD"}]}, "bool_value", "item.currency == shop.v1.Currency.USD", True),
        ("items", {"items": [{"sku": "s"}]}, "bool_value", "item == shop.v1.Item{sku: 's'}", True),
        ("items", {"items": [{"sku": "s", "tags": ["x" * 5_000]}]}, "string_value", "item.sku + '!'", "s!"),
        ("items", {"items": [{"tags": ["t"] * 5_000}]}, "int64_value", "item.tags.size() + index", 5_000),
        ("currencies", {"currencies": ["EUR"]}, "bool_value", "item == shop.v1.Currency.EUR", True),
        ("currencies", {"currencies": ["EUR"]}, "currency", "item", 1),
        ("currency_by_name", {"currencyByName": {"e": "USD"}}, "bool_value", "key == 'e' && int(item) == 2", True),
        ("wrapped_strings", {"wrappedStrings": [""]}, "bool_value", "item == ''", True),
        (
            "anys",
            {"anys": [{"@type": "type.googleapis.com/shop.v1.Money", "units": "5"}]},
            "int64_value",
            "item.units",
            5,
        ),
        ("names", {"names": {"-7": "n"}}, "int64_value", "key * 2", -14),
        ("strings", {"strings": ["é" * 40_000]}, "int64_value", "item.size()", 40_000),
    ],
)
def test_expressions_over_an_item(items: str, given: dict[str, Any], field: str, expression: str, wanted: Any) -> None:
    step = {
        "id": "mirror",
        "method": "shop.v1.Mirror/Reflect",
        "map": {"items": path(f"input.{items}")},
        "request": {field: cel(expression)},
    }
    found = compiled({"inputType": "shop.v1.Everything", "steps": [step]})
    (built,) = requests(found, Scope(1, message(found, "shop.v1.Everything", given)))
    assert getattr(built, field) == wanted


@pytest.mark.parametrize(
    ("items", "given", "expression"),
    [
        ("strings", {"strings": ["a\0b"]}, "item + '!'"),
        ("strings", {"strings": ["x" * 300_000]}, "item + '!'"),
        ("items", {"items": [{"tags": ["t"] * 401}]}, "item.tags.map(tag, tag)[0]"),
        ("items", {"items": [{"tags": []}]}, "item.tags[0]"),
        ("names", {"names": {"1": "n"}}, "string(1 / (key - 1))"),
    ],
)
def test_an_item_too_large_or_wrong_for_an_expression_fails(items: str, given: dict[str, Any], expression: str) -> None:
    step = {
        "id": "mirror",
        "method": "shop.v1.Mirror/Reflect",
        "map": {"items": path(f"input.{items}")},
        "request": {"string_value": cel(expression)},
    }
    found = compiled({"inputType": "shop.v1.Everything", "steps": [step]})
    with pytest.raises(EvaluationFailed):
        requests(found, Scope(1, message(found, "shop.v1.Everything", given)))


def test_one_name_has_another_type_in_each_step() -> None:
    steps = [
        mirror_of("a", "input.strings", "item + '!'"),
        mirror_of("b", "input.int32_list", "string(item + index)"),
        mirror_of("c", "input.items", "item.sku"),
        mirror_of("d", "input.names", "string(key) + item"),
    ]
    given = {"strings": ["s"], "int32List": [4], "items": [{"sku": "k"}], "names": {"1": "n"}}
    found = compiled({"inputType": "shop.v1.Everything", "steps": steps})
    scope = Scope(4, message(found, "shop.v1.Everything", given))
    assert [requests(found, scope, index)[0].string_value for index in range(4)] == ["s!", "4", "k", "1n"]


def mirror_of(step: str, items: str, text: str) -> dict[str, Any]:
    request = {"string_value": cel(text)}
    return {"id": step, "method": "shop.v1.Mirror/Reflect", "map": {"items": cel(items)}, "request": request}


def test_entries_of_a_map_can_be_gone_over() -> None:
    again = {
        "id": "again",
        "method": "shop.v1.Mirror/Reflect",
        "map": {"items": path("steps.look.output.entries")},
        "request": {"string_value": path("item.string_value"), "int32_value": path("key")},
    }
    failed = mirror_of("late", "steps.look.output.failed", "string(item)")
    found = compiled(
        {"inputType": "shop.v1.Everything", "steps": [mirror_of("look", "input.names", "item"), again, failed]}
    )
    scope = Scope(3, message(found, "shop.v1.Everything", {"names": {"2": "b", "1": "a", "3": "c"}}))
    items, response = found.step(0).items, found.step(0).targets[0].response_class
    assert items is not None
    given = [response(string_value="x"), None, response(string_value="z")]
    scope.set_succeeded(0, items.collect(items.read(scope), given))
    assert [(one.string_value, one.int32_value) for one in requests(found, scope, 1)] == [("x", 1), ("z", 3)]
    assert [one.string_value for one in requests(found, scope, 2)] == ["2"]


def test_an_expression_may_test_the_iteration_before() -> None:
    order_id = cel("has(previous.charged) ? string(previous.charged.units) : 'none ' + string(iteration)")
    found = compiled(flow(repeated("!has(output.charged)", order_id=order_id)))
    step, scope = found.step(0), order(found)
    response: Any = step.targets[0].response_class
    first: Any = step.targets[0].build_request(scope.for_part(iteration=1))
    second: Any = step.targets[0].build_request(scope.for_part(iteration=2, previous=response(charged={"units": 3})))
    assert (first.order_id, second.order_id) == ("none 1", "3")
    assert step.is_done(scope, response(), 1)
    assert not step.is_done(scope, response(charged={}), 1)
