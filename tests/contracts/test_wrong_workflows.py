"""Wrong workflows: each is refused with exactly these paths and reasons."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contracts.violations import closest, closest_dotted
from tests.contracts.corpus import check
from tests.contracts.definitions import RESERVE, charge, flow, lit
from tests.contracts.wrong_bindings import WRONG_BINDINGS
from tests.contracts.wrong_graphs import WRONG_GRAPHS
from tests.contracts.wrong_kinds import WRONG_KINDS
from tests.contracts.wrong_maps import WRONG_MAPS

WRONG = WRONG_BINDINGS | WRONG_GRAPHS | WRONG_KINDS | WRONG_MAPS


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


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("baton.v1.RunService/GetRun", ""),
        ("shop.v2.Inventory/Reserve", "; did you mean `shop.v1.Inventory/Reserve`?"),
        ("stock.v1.InventoryService/Reserve", "; did you mean `shop.v1.Inventory/Reserve`?"),
        ("shop.v1.Inventry/Resrve", "; did you mean `shop.v1.Inventory/Reserve`?"),
        ("shop.v1.Inventory.Reserve", "; did you mean `shop.v1.Inventory/Reserve`?"),
        ("shop.v1.Inventory/resrve", "; did you mean `Reserve`?"),
        ("shop.v1.Inventory/Teleport", ""),
    ],
)
def test_the_closest_method_is_of_the_same_name_or_service(method: str, hint: str) -> None:
    message = check(flow(RESERVE | {"method": method})).violations[0].message
    assert message.partition("; did")[2] == hint.removeprefix("; did"), message


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("code", ["children"], ""),
        ("reason", ["duration"], ""),
        ("orderId", ["order_id"], "order_id"),
        ("EURO", ["EUR", "USD"], "EUR"),
        ("colour", ["COLOR", "SIZE"], "COLOR"),
    ],
)
def test_no_hint_is_better_than_a_silly_one(name: str, known: list[str], found: str) -> None:
    assert closest(name, known) == (f"; did you mean `{found}`?" if found else "")


def test_a_common_package_makes_no_type_close() -> None:
    assert closest_dotted("shop.v1.Ordre", ["shop.v1.Money", "shop.v1.Address", "shop.v1.Order"]).count("shop.v1.Order")
    assert closest_dotted("shop.v1.Zebra", ["shop.v1.Money", "shop.v1.Address"]) == ""
    assert "shop.v1.Money" in closest_dotted("store.v2.Money", ["shop.v1.Monez", "shop.v1.Money"])


def test_at_most_a_hundred_violations_come_in_order() -> None:
    steps = [charge(order_id=lit(5)) | {"id": f"s{index}"} for index in range(300)]
    violations = check(flow(*steps)).violations
    assert [violation.path for violation in violations] == [
        f'steps[{index}].request["order_id"]' for index in range(100)
    ]


def test_a_name_is_required_where_asked_for() -> None:
    violations = check(flow(RESERVE), require_name=True).violations
    assert [(violation.path, violation.reason) for violation in violations] == [("name", "INVALID_SETTING")]


@pytest.mark.parametrize(
    "step",
    [
        charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Payments/Charge", "attemptTimeout": "9s"}]},
        charge(order_id=lit("x"))
        | {"fallback": [{"method": "shop.v1.Payments/Charge", "request": {"order_id": lit("y")}}]},
        charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Payments/ChargeOld"}]},
        charge(order_id=lit("x")) | {"expect": "input.express"},
        charge(order_id=lit("x")) | {"onFailure": [{"reasons": ["OUTCOME_UNKNOWN", "STEP_TIMEOUT"]}]},
    ],
)
def test_what_is_close_to_a_fault_but_none_is_taken(step: dict[str, Any]) -> None:
    assert check(flow(step)).violations == ()
