"""Changes of a contract: which of them break a workflow, by what it sets and reads, and which do not."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contracts.compatibility import incompatibilities
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.uses import uses_of
from tests.contracts.corpus import contract_of, workflow

CONTRACT = """
syntax = "proto3";
package till;
import "buf/validate/validate.proto";
import "google/protobuf/timestamp.proto";

enum Kind { KIND_UNSPECIFIED = 0; CARD = 1; CASH = 2; }
message Money { int64 units = 1; string currency = 2; string note = 3; }
message Amount { int64 cents = 1; string code = 2; string remark = 3; }
message Line { string sku = 1; int32 quantity = 2; Amount price = 3; }
message Sold { string sku = 1; int32 quantity = 2; Money price = 3; }
message Input { string order = 1; Amount total = 2; repeated Line lines = 3; Kind kind = 4; }
message ChargeRequest {
  string order = 1;
  Amount amount = 2;
  int32 attempts = 3;
  Kind kind = 4;
  repeated Line lines = 5;
  optional int32 limit = 6;
  string email = 7;
  string phone = 8;
  map<string, Amount> fees = 9;
  google.protobuf.Timestamp time = 10;
  string unused = 11;
}
message ChargeResponse {
  string id = 1;
  Money charged = 2;
  int64 points = 3;
  Kind kind = 4;
  repeated Sold sold = 5;
  map<string, Money> fees = 6;
  string unused = 7;
  repeated int32 codes = 8;
  optional string hint = 9;
  Audit audit = 10;
}
message Audit { string by = 1; repeated fixed32 marks = 2; }
message NoteRequest { string text = 1; Money money = 2; int64 number = 3; bool flag = 4; }
message NoteResponse {}
service Till {
  rpc Charge(ChargeRequest) returns (ChargeResponse) { option idempotency_level = IDEMPOTENT; }
  rpc Other(NoteRequest) returns (NoteResponse);
}
service Notes { rpc Note(NoteRequest) returns (NoteResponse); }
"""

SETS_ALL: dict[str, Any] = {
    "order": {"path": "input.order"},
    "amount": {"path": "input.total"},
    "kind": {"literal": "CARD"},
    "attempts": {"literal": 3},
    "lines": {"literal": [{"sku": "a", "quantity": 1}, {"sku": "b", "price": {"cents": "1"}}]},
    "limit": {"literal": 0},
}


def charge(request: dict[str, Any] | None = None, note: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A workflow that charges with `request` and notes what `note` reads of the answer."""
    steps: list[dict[str, Any]] = [
        {"id": "pay", "method": "till.Till/Charge", "request": request or {}, **more.pop("step", {})}
    ]
    if note is not None:
        steps.append({"id": "note", "method": "till.Notes/Note", **note})
    return {"inputType": "till.Input", "steps": steps, **more}


def note(field: str, **binding: Any) -> dict[str, Any]:
    return {"request": {field: binding}}


def broken(definition: dict[str, Any], *changes: tuple[str, str]) -> dict[str, str]:
    """Returns path and reason of what breaks where each text of the contract is another one."""
    checked = check_workflow(workflow(definition), [("till", contract_of(CONTRACT))])
    assert checked.compiled is not None, checked.violations
    source = CONTRACT
    for old, new in changes:
        assert source.count(old) == 1, f"{old} is there {source.count(old)} times"
        source = source.replace(old, new)
    changed = contract_of(source)
    assert changed.digest not in checked.compiled.contract_digests
    found = [one for use in uses_of(checked.compiled) for one in incompatibilities(use, changed)]
    return {one.path: one.reason for one in found}


TEXT = 'steps[1].request["text"]'
NUMBER = 'steps[1].request["number"]'
MONEY = 'steps[1].request["money"]'
FLAG = 'steps[1].request["flag"]'

READS_ID = note("text", path="steps.pay.output.id")
READS_POINTS = note("number", path="steps.pay.output.points")
READS_MONEY = note("money", path="steps.pay.output.charged")
READS_UNITS = note("number", path="steps.pay.output.charged.units")

NOTHING_READ: dict[str, list[tuple[str, str]]] = {
    "a response field that nobody reads is gone": [("  string unused = 7;\n", "")],
    "a request field that nobody sets is gone": [("  string unused = 11;\n", "")],
    "a response field that nobody reads has another number": [("string unused = 7;", "string unused = 70;")],
    "a response field that nobody reads has another wire type": [("string unused = 7;", "int32 unused = 7;")],
    "a number that nobody reads is of another type": [("int64 points = 3;", "bool points = 3;")],
    "a number that nobody reads is repeated": [("int64 points = 3;", "repeated sint64 points = 3;")],
    "there are new fields": [("string id = 1;", "string id = 1; Money more = 50;")],
    "there is a new message, enum and method": [
        ("service Notes {", "message M {} enum E { E_0 = 0; } service Notes { rpc New(M) returns (M);")
    ],
    "another method is gone": [("rpc Other(NoteRequest) returns (NoteResponse);", "")],
    "another method streams": [("rpc Other(NoteRequest)", "rpc Other(stream NoteRequest)")],
    "a message that is read field by field has another name": [
        ("message ChargeResponse", "message ChargeAnswer"),
        ("returns (ChargeResponse)", "returns (ChargeAnswer)"),
    ],
    "an option that means nothing": [("package till;", 'package till; option java_package = "org.till";')],
    "an enum that is only read has a new value": [("CASH = 2;", "CASH = 2; CHEQUE = 3;")],
    "fields that are not set together are of one oneof": [
        ("string email = 7;\n  string phone = 8;", "oneof contact { string email = 7; string phone = 8; }")
    ],
}


@pytest.mark.parametrize("changes", NOTHING_READ.values(), ids=NOTHING_READ)
@pytest.mark.parametrize("reads", [READS_ID, None], ids=["reads an id", "reads nothing"])
def test_what_a_workflow_does_not_use_may_change(changes: list[tuple[str, str]], reads: dict[str, Any] | None) -> None:
    assert broken(charge(SETS_ALL, reads), *changes) == {}


Change = tuple[str, str]

RESPONSES: dict[str, tuple[dict[str, Any], Change, dict[str, str]]] = {
    "gone": (READS_ID, ("  string id = 1;\n", ""), {TEXT: "UNKNOWN_FIELD"}),
    "renamed": (READS_ID, ("string id = 1;", "string charge_id = 1;"), {TEXT: "UNKNOWN_FIELD"}),
    "another number": (READS_ID, ("string id = 1;", "string id = 51;"), {TEXT: "FIELD_CHANGED"}),
    "another type": (READS_ID, ("string id = 1;", "int64 id = 1;"), {TEXT: "TYPE_MISMATCH"}),
    "repeated": (READS_ID, ("string id = 1;", "repeated string id = 1;"), {TEXT: "TYPE_MISMATCH"}),
    "zigzag": (READS_POINTS, ("int64 points = 3;", "sint64 points = 3;"), {NUMBER: "FIELD_CHANGED"}),
    "fixed": (READS_POINTS, ("int64 points = 3;", "sfixed64 points = 3;"), {NUMBER: "FIELD_CHANGED"}),
    "unsigned": (READS_POINTS, ("int64 points = 3;", "uint64 points = 3;"), {NUMBER: "TYPE_MISMATCH"}),
    "narrower": (READS_POINTS, ("int64 points = 3;", "int32 points = 3;"), {}),
    "wider": (
        note("number", expression="steps.pay.output.codes[0]"),
        ("repeated int32 codes = 8;", "repeated int64 codes = 8;"),
        {NUMBER: "TYPE_MISMATCH"},
    ),
    "gets presence": (READS_POINTS, ("int64 points = 3;", "optional int64 points = 3;"), {}),
    "into a oneof": (READS_POINTS, ("int64 points = 3;", "oneof gain { int64 points = 3; bool none = 60; }"), {}),
    "loses presence": (
        note("text", path="steps.pay.output.hint"),
        ("optional string hint = 9;", "string hint = 9;"),
        {TEXT: "FIELD_CHANGED"},
    ),
    "read below a message": (READS_UNITS, ("int64 units = 1;", "string units = 1;"), {NUMBER: "TYPE_MISMATCH"}),
    "beside what is read below a message": (READS_UNITS, ("string note = 3;", ""), {}),
    "within a copied message": (READS_MONEY, ("string note = 3;", "int32 note = 3;"), {MONEY: "TYPE_MISMATCH"}),
    "gone from a copied message": (READS_MONEY, ("string note = 3;", ""), {MONEY: "UNKNOWN_FIELD"}),
    "new in a copied message": (READS_MONEY, ("string note = 3;", "string note = 3; bool tax = 4;"), {}),
    "read in a loop": (
        note("flag", expression="steps.pay.output.sold.exists(x, x.quantity > 1)"),
        ("string sku = 1; int32 quantity = 2; Money", "string sku = 1; string quantity = 2; Money"),
        {FLAG: "TYPE_MISMATCH"},
    ),
    "not read in a loop": (
        note("flag", expression="steps.pay.output.sold.exists(x, x.quantity > 1)"),
        ("string sku = 1; int32 quantity = 2; Money", "int32 quantity = 2; Money"),
        {},
    ),
    "read of an element": (
        note("text", expression="steps.pay.output.sold[0].sku"),
        ("string sku = 1; int32 quantity = 2; Money", "int32 quantity = 2; Money"),
        {TEXT: "UNKNOWN_FIELD"},
    ),
    "not read of an element": (
        note("text", expression="steps.pay.output.sold[0].sku"),
        ("string sku = 1; int32 quantity = 2; Money", "string sku = 1; Money"),
        {},
    ),
    "read where elements are kept": (
        note("flag", expression="size(steps.pay.output.sold.filter(x, x.quantity > 1)) > 0"),
        ("string sku = 1; int32 quantity = 2; Money", "int32 quantity = 2; Money"),
        {FLAG: "UNKNOWN_FIELD"},
    ),
    "only counted": (
        note("number", expression="steps.pay.output.sold.size()"),
        ("string sku = 1; int32 quantity = 2; Money", "int32 quantity = 2; Money"),
        {},
    ),
    "counted, and gone": (
        note("number", expression="size(steps.pay.output.sold)"),
        ("  repeated Sold sold = 5;\n", ""),
        {NUMBER: "UNKNOWN_FIELD"},
    ),
    "read of an entry": (
        note("number", expression="steps.pay.output.fees['card'].units"),
        ("int64 units = 1;", ""),
        {NUMBER: "UNKNOWN_FIELD"},
    ),
    "only tested": (
        note("flag", expression="has(steps.pay.output.charged)"),
        ("int64 units = 1;", ""),
        {},
    ),
    "tested, and gone": (
        note("flag", expression="has(steps.pay.output.charged)"),
        ("  Money charged = 2;\n", ""),
        {FLAG: "UNKNOWN_FIELD"},
    ),
    "read in a condition": (
        {"when": "steps.pay.output.points > 10"},
        ("int64 points = 3;", "double points = 3;"),
        {"steps[1].when": "TYPE_MISMATCH"},
    ),
    "an enum value has another number": (
        {"when": "steps.pay.output.kind == till.Kind.CARD"},
        ("CASH = 2;", "CASH = 4;"),
        {"steps[1].when": "FIELD_CHANGED"},
    ),
    "an enum number has another name": (
        {"when": "steps.pay.output.kind == till.Kind.CARD"},
        ("CASH = 2;", "COIN = 2;"),
        {"steps[1].when": "FIELD_CHANGED"},
    ),
    "an enum value is never sent any more": (
        {"when": "steps.pay.output.kind == till.Kind.CARD"},
        ("CASH = 2;", ""),
        {},
    ),
}


@pytest.mark.parametrize(("reads", "change", "expected"), RESPONSES.values(), ids=RESPONSES)
def test_what_is_read_of_a_response(reads: dict[str, Any], change: Change, expected: dict[str, str]) -> None:
    assert broken(charge({}, reads), change) == expected


AMOUNT, LINES, KIND = (f'steps[0].request["{name}"]' for name in ("amount", "lines", "kind"))
ORDER, LIMIT = 'steps[0].request["order"]', 'steps[0].request["limit"]'
SETS_ORDER = {"order": {"path": "input.order"}}

REQUESTS: dict[str, tuple[dict[str, Any], Change, dict[str, str]]] = {
    "gone": (SETS_ORDER, ("  string order = 1;\n  Amount", "  Amount"), {ORDER: "UNKNOWN_FIELD"}),
    "another number": (
        SETS_ORDER,
        ("string order = 1;\n  Amount", "string order = 51;\n  Amount"),
        {ORDER: "FIELD_CHANGED"},
    ),
    "another type": (
        SETS_ORDER,
        ("string order = 1;\n  Amount", "bytes order = 1;\n  Amount"),
        {ORDER: "TYPE_MISMATCH"},
    ),
    "gets presence": (
        {"email": {"path": "input.order"}},
        ("string email = 7;", "optional string email = 7;"),
        {'steps[0].request["email"]': "FIELD_CHANGED"},
    ),
    "loses presence": (
        {"limit": {"literal": 0}},
        ("optional int32 limit = 6;", "int32 limit = 6;"),
        {LIMIT: "FIELD_CHANGED"},
    ),
    "wider": ({"limit": {"literal": 1}}, ("optional int32 limit = 6;", "optional int64 limit = 6;"), {}),
    "another field is required": (
        SETS_ORDER,
        ("string unused = 11;", "string unused = 11 [(buf.validate.field).required = true];"),
        {"steps[0].request": "MISSING_REQUIRED_FIELD"},
    ),
    "a new field is required": (
        SETS_ORDER,
        ("string unused = 11;", "string shop = 40 [(buf.validate.field).required = true];"),
        {"steps[0].request": "MISSING_REQUIRED_FIELD"},
    ),
    "a field that is set is required": (
        {"email": {"path": "input.order"}},
        ("string email = 7;", "string email = 7 [(buf.validate.field).required = true];"),
        {},
    ),
    "required in a message that is not set": (
        SETS_ORDER,
        (
            "message Amount { int64 cents = 1;",
            "message Amount { int64 cents = 1; bool tax = 9 [(buf.validate.field).required = true];",
        ),
        {},
    ),
    "required in a message that is copied": (
        {"amount": {"path": "input.total"}},
        (
            "message Amount { int64 cents = 1;",
            "message Amount { int64 cents = 1; bool tax = 9 [(buf.validate.field).required = true];",
        ),
        {AMOUNT: "MISSING_REQUIRED_FIELD"},
    ),
    "required in an element": (
        {"lines": {"literal": [{"sku": "a", "quantity": 1}, {"sku": "b"}]}},
        (
            "message Line { string sku = 1; int32 quantity = 2;",
            "message Line { string sku = 1; int32 quantity = 2 [(buf.validate.field).required = true];",
        ),
        {LINES: "MISSING_REQUIRED_FIELD"},
    ),
    "a field of no element is gone": (
        {"lines": {"literal": [{"sku": "a"}]}},
        ("message Line { string sku = 1; int32 quantity = 2;", "message Line { string sku = 1;"),
        {},
    ),
    "a field of one element is gone": (
        {"lines": {"literal": [{"sku": "a"}, {"quantity": 2}]}},
        ("message Line { string sku = 1; int32 quantity = 2;", "message Line { string sku = 1;"),
        {LINES: "UNKNOWN_FIELD"},
    ),
    "of a nested binding": (
        {"amount": {"message": {"fields": {"cents": {"literal": 1}}}}},
        ("string code = 2; string remark = 3; }\nmessage Line", "}\nmessage Line"),
        {},
    ),
    "of elements of a list binding": (
        {
            "lines": {
                "list": {
                    "elements": [
                        {"message": {"fields": {"sku": {"path": "input.order"}}}},
                        {"literal": {"quantity": 1}},
                    ]
                }
            }
        },
        ("message Line { string sku = 1; int32 quantity = 2;", "message Line { int32 quantity = 2;"),
        {'steps[0].request["lines"].list.elements[0].message.fields["sku"]': "UNKNOWN_FIELD"},
    ),
    "of an entry of a map binding": (
        {"fees": {"map": {"entries": {"card": {"literal": {"cents": "1"}}}}}},
        ("message Amount { int64 cents = 1;", "message Amount {"),
        {'steps[0].request["fees"].map.entries["card"]': "UNKNOWN_FIELD"},
    ),
    "another value of a literal's enum is gone": ({"kind": {"literal": "CARD"}}, ("CASH = 2;", ""), {}),
    "the value of a literal is gone": ({"kind": {"literal": "CASH"}}, ("CASH = 2;", ""), {KIND: "FIELD_CHANGED"}),
    "a value that a path could give is gone": (
        {"kind": {"path": "input.kind"}},
        ("CASH = 2;", ""),
        {KIND: "FIELD_CHANGED"},
    ),
    "two fields that are set exclude each other": (
        {"email": {"literal": "e"}, "phone": {"literal": "p"}},
        ("string email = 7;\n  string phone = 8;", "oneof contact { string email = 7; string phone = 8; }"),
        {
            'steps[0].request["email"]': "FIELD_CHANGED",
            'steps[0].request["phone"]': "FIELD_CHANGED",
            "steps[0].request": "ONEOF_CONFLICT",
        },
    ),
    "a well-known type": (
        {"time": {"literal": "2030-01-31T12:00:00Z"}},
        ("google.protobuf.Timestamp time = 10;", "Amount time = 10;"),
        {'steps[0].request["time"]': "TYPE_MISMATCH"},
    ),
}


@pytest.mark.parametrize(("request_bindings", "change", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_what_is_set_of_a_request(request_bindings: dict[str, Any], change: Change, expected: dict[str, str]) -> None:
    assert broken(charge(request_bindings), change) == expected


METHODS: dict[str, tuple[Change, str]] = {
    "gone": (("rpc Charge(ChargeRequest)", "rpc ChargeCard(ChargeRequest)"), "UNKNOWN_METHOD"),
    "the whole service is gone": (("service Till {", "service Desk {"), "UNKNOWN_METHOD"),
    "takes a stream": (("rpc Charge(ChargeRequest)", "rpc Charge(stream ChargeRequest)"), "STREAMING_METHOD"),
    "answers a stream": (("returns (ChargeResponse)", "returns (stream ChargeResponse)"), "STREAMING_METHOD"),
    "is repeatable no more": ((" option idempotency_level = IDEMPOTENT; ", ""), "IDEMPOTENCY_LOST"),
}


@pytest.mark.parametrize(("change", "reason"), METHODS.values(), ids=METHODS)
def test_the_method_itself(change: Change, reason: str) -> None:
    assert broken(charge(), change) == {"steps[0].method": reason}


PARSED: dict[str, tuple[Change, bool]] = {
    "a text is bytes": (("string unused = 7;", "bytes unused = 7;"), True),
    "a text is a message": (("string unused = 7;", "Money unused = 7;"), True),
    "a message is a text": (("Money charged = 2;", "string charged = 2;"), True),
    "a text within a message is bytes": (("message Audit { string by = 1;", "message Audit { bytes by = 1;"), True),
    "fixed numbers are a text": (("repeated fixed32 marks = 2;", "string marks = 2;"), True),
    "fixed numbers are varints": (("repeated fixed32 marks = 2;", "repeated int32 marks = 2;"), True),
    "a text is a number": (("string unused = 7;", "int64 unused = 7;"), False),
    "a number is a text": (("int64 points = 3;", "string points = 3;"), False),
    "a number is another": (("int64 points = 3;", "bool points = 3;"), False),
    "numbers are single": (("repeated int32 codes = 8;", "uint64 codes = 8;"), False),
}


@pytest.mark.parametrize(("change", "breaks"), PARSED.values(), ids=PARSED)
def test_a_response_that_could_not_be_parsed(change: Change, breaks: bool) -> None:
    assert broken(charge(), change) == ({"steps[0].method": "FIELD_CHANGED"} if breaks else {})
