"""Filters of ListRuns: what they are read as, and how they are refused."""

from __future__ import annotations

import pytest

from orchestrator.domain.errors import InvalidFilter
from orchestrator.engine.ports import Comparison, FilterTerm
from orchestrator.rpc.filters import TERM_LIMIT, parse_filter

DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        (" \t\n", []),
        ("state = FAILED", [("state", "=", 4)]),
        ("state != RUN_STATE_RUNNING", [("state", "!=", 2)]),
        ('state="SUCCEEDED"', [("state", "=", 3)]),
        ('workflow = "fulfil-order"', [("workflow", "=", "fulfil-order")]),
        ("workflow=fulfil-order", [("workflow", "=", "fulfil-order")]),
        ("revision = 'a\\'b'", [("revision", "=", "a'b")]),
        (r'principal = "a\"\\b"', [("principal", "=", 'a"\\b')]),
        ('workspace = "a AND b"', [("workspace", "=", "a AND b")]),
        ('channel = ""', [("channel", "=", "")]),
        ("labels:pii", [("labels", ":", "pii")]),
        ('labels : "pii" AND labels:secret', [("labels", ":", "pii"), ("labels", ":", "secret")]),
        ('attributes.team = "pay"', [("attributes.team", "=", "pay")]),
        ("attributes.a.b_c-d != x", [("attributes.a.b_c-d", "!=", "x")]),
        ("create_time > 1970-01-02T00:00:00Z", [("create_time", ">", DAY_US)]),
        ('create_time>="1970-01-02T01:00:00+01:00"', [("create_time", ">=", DAY_US)]),
        ("end_time < 1970-01-02t00:00:00.1234567z", [("end_time", "<", DAY_US + 123_456)]),
        ("end_time <= 1969-12-31T23:59:59.5Z", [("end_time", "<=", -500_000)]),
        ("end_time != 2026-01-01T00:00:00.000001Z", [("end_time", "!=", 1_767_225_600_000_001)]),
        (
            'state = FAILED AND workflow = "fulfil-order" AND attributes.team = "pay" '
            'AND create_time > "2026-01-01T00:00:00Z"',
            [
                ("state", "=", 4),
                ("workflow", "=", "fulfil-order"),
                ("attributes.team", "=", "pay"),
                ("create_time", ">", 1_767_225_600_000_000),
            ],
        ),
    ],
)
def test_filters_are_read(text: str, terms: list[tuple[str, str, str | int]]) -> None:
    assert parse_filter(text) == [FilterTerm(field, Comparison(sign), value) for field, sign, value in terms]


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("stat = FAILED", 1, "did you mean `state`?"),
        ("zzz = 1", 1, "the fields are workflow, revision, state"),
        ("state = FAILD", 9, "did you mean `FAILED`?"),
        ("state = 4", 9, "`4` is not a state"),
        ("state = RUN_STATE_UNSPECIFIED", 9, "is not a state"),
        ("state > FAILED", 7, "`state` takes `=` `!=`, not `>`"),
        ("labels = pii", 8, "`labels` takes `:`, not `=`"),
        ("workflow : x", 10, "`workflow` takes `=` `!=`"),
        ("state", 6, "found the end"),
        ("state =", 8, "expected a value for `state`, found the end"),
        ("state = FAILED and workflow = x", 16, "write AND"),
        ("state = FAILED OR workflow = x", 16, "found `OR`"),
        ("state = FAILED workflow = x", 16, "found `workflow`"),
        ("state = FAILED AND", 19, "expected a field, found the end"),
        ("(state = FAILED)", 1, "no brackets"),
        ("NOT state = FAILED", 1, "!= negates"),
        ("-state = FAILED", 1, "!= negates"),
        ('workflow = "open', 12, "the quote is not closed"),
        ("workflow = (x)", 12, "quote values"),
        ("attributes = x", 1, "did you mean `attributes.KEY`?"),
        ("attributes. = x", 1, "cannot be the key"),
        ("attributes.Team = x", 1, "cannot be the key"),
        ("create_time > yesterday", 15, "RFC 3339"),
        ("create_time > 2026-01-01", 15, "RFC 3339"),
        ("create_time > 2026-13-01T00:00:00Z", 15, "RFC 3339"),
        ("create_time > 2026-01-01T00:00:60Z", 15, "RFC 3339"),
        ("create_time > 2026-01-01T00:00:00", 15, "RFC 3339"),
        ("create_time > 0000-01-01T00:00:00Z", 15, "RFC 3339"),
        ("create_time > 2026-01-01T00:00:00+99:99", 15, "RFC 3339"),
        (" AND ".join(["state=FAILED"] * (TERM_LIMIT + 1)), 17 * TERM_LIMIT - 3, "more than 32 terms"),
    ],
)
def test_filters_are_refused(text: str, position: int, said: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(text)
    assert caught.value.metadata["position"] == str(position), caught.value.message
    assert said in caught.value.message
    assert [fault.path for fault in caught.value.faults] == ["filter"]


def test_long_filters_are_read_in_a_moment() -> None:
    for text in ('workflow = "' + "\\" * 2000, "a" * 2048, '"' * 2048, " " * 2048):
        try:
            parse_filter(text)
        except InvalidFilter:
            pass
