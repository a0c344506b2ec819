"""Changes of a contract, and each way in which a workflow uses it: defaults, checks, fallbacks, maps, undo calls."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contracts import uses
from orchestrator.contracts.compatibility import incompatibilities
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.uses import uses_of
from tests.contracts.corpus import contract_of, workflow
from tests.contracts.test_contract_changes import (
    CONTRACT,
    MONEY,
    ORDER,
    READS_ID,
    SETS_ORDER,
    TEXT,
    Change,
    broken,
    charge,
)


def test_what_a_fallback_is_given_and_gives() -> None:
    source = CONTRACT + "service Spare { rpc Charge(ChargeRequest) returns (ChargeResponse); }"
    step = {"fallback": [{"method": "till.Spare/Charge"}]}
    checked = check_workflow(workflow(charge(SETS_ORDER, READS_ID, step=step)), [("till", contract_of(source))])
    assert checked.compiled is not None, checked.violations
    changed = contract_of(
        source.replace("string order = 1;\n  Amount", "string order = 61;\n  Amount").replace(
            "string id = 1;", "string id = 61;"
        )
    )
    found = [one for use in uses_of(checked.compiled) for one in incompatibilities(use, changed)]
    assert {one.path for one in found} == {ORDER, 'steps[0].fallback[0].request["order"]', TEXT}


def test_the_output_of_a_run_reads_too() -> None:
    definition = charge({}, outputType="till.NoteRequest", output={"money": {"path": "steps.pay.output.charged"}})
    assert broken(definition, ("string note = 3;", "")) == {'output["money"]': "UNKNOWN_FIELD"}


def test_a_whole_request_sets_all_of_it() -> None:
    definition = charge(step={"wholeRequest": {"path": "input"}}) | {"inputType": "till.ChargeRequest"}
    assert broken(definition, ("string unused = 11;", "")) == {"steps[0].whole_request": "UNKNOWN_FIELD"}
    assert broken(definition, ("string unused = 11;", "string unused = 11; string more = 12;")) == {}


def test_a_whole_literal_sets_what_it_holds() -> None:
    definition = charge(step={"wholeRequest": {"literal": {"order": "a", "amount": {"cents": "1"}}}})
    assert broken(definition, ("string unused = 11;", "")) == {}
    assert broken(definition, ("string order = 1;\n  Amount", "Amount")) == {"steps[0].whole_request": "UNKNOWN_FIELD"}


def test_a_default_sets_what_it_holds() -> None:
    binding = {"path": "steps.pay.output.charged", "defaultValue": {"note": "none"}}
    definition = charge({}, {"request": {"money": binding}, "after": ["pay"]}, step={"onFailure": [{}]})
    assert broken(definition, ("string note = 3;", "")) == {MONEY: "UNKNOWN_FIELD"}


def test_what_the_check_of_a_step_reads() -> None:
    definition = charge({}, step={"expect": "output.points > 0"})
    assert broken(definition, ("int64 points = 3;", "")) == {"steps[0].expect": "UNKNOWN_FIELD"}
    assert broken(definition, ("string id = 1;", "")) == {}


CLOSED = """
syntax = "proto2";
package desk;
enum Kind { ZERO = 0; CARD = 1; CASH = 2; }
message Asked { optional Kind kind = 1; required string order = 2; }
message Told { optional Kind kind = 1; optional int32 points = 2 [default = 5]; required string id = 3; }
service Desk { rpc Ask(Asked) returns (Told); }
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("CASH = 2;", "CASH = 2; CHEQUE = 3;", {"steps[0].expect": "FIELD_CHANGED"}),
        ("enum Kind { ZERO", "enum Kind { option allow_alias = true; NONE = 0; ZERO", {}),
        ("[default = 5]", "[default = 6]", {"steps[0].expect": "FIELD_CHANGED"}),
        ("required string id = 3;", "optional string id = 3;", {"steps[0].method": "FIELD_CHANGED"}),
        ("required string order = 2;", "required string order = 2; optional string note = 9;", {}),
        ("required string order = 2;", "required string order = 2; required string note = 9;",
         {"steps[0].request": "MISSING_REQUIRED_FIELD"}),
    ],
)  # fmt: skip
def test_closed_enums_defaults_and_required_fields(old: str, new: str, expected: dict[str, str]) -> None:
    step = {"id": "a", "method": "desk.Desk/Ask", "request": {"order": {"literal": "o"}}}
    step["expect"] = "output.kind == desk.Kind.CARD || output.points > 5"
    checked = check_workflow(workflow({"steps": [step]}), [("desk", contract_of(CLOSED))])
    assert checked.compiled is not None, checked.violations
    assert CLOSED.count(old) == 1
    changed = contract_of(CLOSED.replace(old, new))
    found = [one for use in uses_of(checked.compiled) for one in incompatibilities(use, changed)]
    assert {one.path: one.reason for one in found} == expected


def test_an_option_that_is_not_known_uses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = charge({}, step={"description": "something new"})
    change = ("string unused = 7;", "string unused = 77;")
    assert broken(definition, change) == {}
    monkeypatch.setattr(uses, "_FIELDS_OF_STEPS", uses._FIELDS_OF_STEPS - {"description"})
    assert broken(definition, change) == {"steps[0].method": "FIELD_CHANGED"}
    assert broken(definition, ("string unused = 11;", "")) == {"steps[0]": "UNKNOWN_FIELD"}


MAPPED = {
    "inputType": "till.Input",
    "steps": [
        {"id": "pay", "method": "till.Till/Charge", "request": SETS_ORDER},
        {
            "id": "each",
            "method": "till.Notes/Note",
            "map": {"items": {"path": "steps.pay.output.sold"}},
            "request": {"text": {"path": "item.sku"}, "number": {"expression": "index + 1"}},
        },
    ],
}
COLLECTED = {
    "inputType": "till.Input",
    "steps": [
        {
            "id": "many",
            "method": "till.Till/Charge",
            "map": {"items": {"path": "input.lines"}},
            "request": {"order": {"path": "item.sku"}},
        },
        {
            "id": "note",
            "method": "till.Notes/Note",
            "request": {"text": {"expression": "steps.many.output.items[0].id"}},
        },
    ],
}
REPEATED = charge({"order": {"path": "previous.id"}}, step={"repeat": {"until": "output.points > 3"}})
UNDONE = charge(SETS_ORDER, step={"undo": {"method": "till.Till/Other", "request": {"text": {"path": "output.id"}}}})
UNDO = 'steps[0].undo.request["text"]'

KINDS: dict[str, tuple[dict[str, Any], Change, dict[str, str]]] = {
    "what no item is asked for": (MAPPED, ("string sku = 1; int32 quantity = 2; Money", "string sku = 1; Money"), {}),
    "what items are asked for": (
        MAPPED,
        ("string sku = 1; int32 quantity = 2; Money", "int32 quantity = 2; Money"),
        {'steps[1].request["text"]': "UNKNOWN_FIELD"},
    ),
    "the list that a map goes over": (
        MAPPED,
        ("repeated Sold sold = 5;", "repeated Sold sold = 55;"),
        {"steps[1].map.items": "FIELD_CHANGED", 'steps[1].request["text"]': "FIELD_CHANGED"},
    ),
    "what is read of collected outputs": (COLLECTED, ("string id = 1;", "string id = 51;"), {TEXT: "FIELD_CHANGED"}),
    "what is not read of them": (COLLECTED, ("string unused = 7;", ""), {}),
    "what the end of a repeat reads": (
        REPEATED,
        ("int64 points = 3;", "double points = 3;"),
        {"steps[0].repeat.until": "TYPE_MISMATCH"},
    ),
    "what the next iteration reads": (REPEATED, ("string id = 1;", "string id = 51;"), {ORDER: "FIELD_CHANGED"}),
    "what neither reads": (REPEATED, ("string unused = 7;", ""), {}),
    "what an undo call reads": (UNDONE, ("string id = 1;", "string id = 51;"), {UNDO: "FIELD_CHANGED"}),
    "what an undo call sets": (UNDONE, ("string text = 1;", ""), {UNDO: "UNKNOWN_FIELD"}),
    "what an undo call does not set": (UNDONE, ("bool flag = 4;", ""), {}),
    "the method of an undo call": (
        UNDONE,
        ("rpc Other(NoteRequest) returns (NoteResponse);", ""),
        {"steps[0].undo.method": "UNKNOWN_METHOD"},
    ),
}


@pytest.mark.parametrize(("definition", "change", "expected"), KINDS.values(), ids=KINDS)
def test_maps_repeats_and_undo_calls(definition: dict[str, Any], change: Change, expected: dict[str, str]) -> None:
    assert broken(definition, change) == expected
