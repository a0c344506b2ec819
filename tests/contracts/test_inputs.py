"""Inputs of runs: what is taken and what is refused, with the field at fault."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2, json_format

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.packed import PackedInvalid
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from tests.contracts.corpus import FULL, compiled, message, mirror


def packed(workflow: CompiledWorkflow, name: str, value: dict[str, Any]) -> any_pb2.Any:
    found = any_pb2.Any()
    found.Pack(message(workflow, name, value))
    return found


def test_input_is_parsed_into_the_workflow_s_types() -> None:
    workflow = compiled(mirror({}))
    parsed = workflow.parse_input(packed(workflow, "shop.v1.Everything", FULL))
    assert parsed is not None
    assert json_format.MessageToDict(parsed, descriptor_pool=workflow.types.pool) == FULL


@pytest.mark.parametrize(
    ("given", "part", "field"),
    [
        (None, "no input was given", ""),
        (any_pb2.Any(), "no input was given", ""),
        (any_pb2.Any(type_url="type.googleapis.com/shop.v1.Money"), "is a shop.v1.Money", ""),
        (any_pb2.Any(type_url="type.googleapis.com/legacy.v1.OpenRequest", value=b"\xff\xff"), "not a valid", ""),
        (any_pb2.Any(type_url="type.googleapis.com/legacy.v1.OpenRequest"), "`customer`", "customer"),
        (
            any_pb2.Any(type_url="type.googleapis.com/legacy.v1.OpenRequest", value=b"\x0a\x01c\x12\x00"),
            "`account.number`",
            "account.number",
        ),
    ],
)
def test_input_that_is_refused(given: any_pb2.Any | None, part: str, field: str) -> None:
    workflow = compiled(
        {
            "inputType": "legacy.v1.OpenRequest",
            "steps": [{"id": "open", "method": "legacy.v1.Ledger/Open", "wholeRequest": {"path": "input"}}],
        }
    )
    with pytest.raises(PackedInvalid) as caught:
        workflow.parse_input(given)
    assert part in caught.value.message
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"nights": 1, "card": "c"}, "room"),
        ({"room": "r", "card": "c"}, "nights"),
        ({"room": "r", "nights": 1}, "payment"),
        ({"room": "r", "nights": 1, "card": "c", "companions": [{"name": "x"}, {}]}, "companions[1].name"),
        ({"room": "r", "nights": 1, "card": "c", "contacts": {"k": {}}}, "contacts['k'].name"),
    ],
)
def test_required_fields_of_the_input(value: dict[str, Any], field: str) -> None:
    workflow = compiled(
        {
            "inputType": "strict.v1.BookRequest",
            "steps": [{"id": "book", "method": "strict.v1.Hotel/Book", "wholeRequest": {"path": "input"}}],
        }
    )
    with pytest.raises(PackedInvalid) as caught:
        workflow.parse_input(packed(workflow, "strict.v1.BookRequest", value))
    assert caught.value.field == field


def test_a_proto2_request_without_a_required_value_is_a_failure() -> None:
    workflow = compiled(
        {
            "inputType": "shop.v1.Everything",
            "steps": [
                {
                    "id": "open",
                    "method": "legacy.v1.Ledger/Open",
                    "request": {"customer": {"path": "input.optional_string"}},
                }
            ],
        }
    )
    with pytest.raises(EvaluationFailed):
        workflow.step(0).targets[0].build_request(Scope(1, message(workflow, "shop.v1.Everything", {})))
