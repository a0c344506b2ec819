"""A glance never lets through what the rules of a submission refuse, and leaves alone what it does not know."""

from __future__ import annotations

from typing import Any

import pytest
from baton.v1.run_service_pb2 import SubmitRunRequest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from protovalidate import EvaluationError, Validator

from orchestrator.rpc.glance import is_plain_submission

RULES = Validator()
RULES.collect_violations(SubmitRunRequest())

TEXTS = st.sampled_from([0, 1, 62, 63, 64, 65, 127, 128, 129]).map(lambda length: "ü" * length)
DURATIONS = st.builds(
    Duration,
    seconds=st.sampled_from([-1, 0, 1, 599, 600, 601, 10**9, 315_576_000_000, 315_576_000_001]),
    nanos=st.sampled_from([-1, 0, 1, 999_999_999, 1_000_000_000, 2**31 - 1]),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "workflow": TEXTS,
    "revision": TEXTS,
    "input": st.just(AnyMessage(type_url="x")),
    "request_id": TEXTS,
    "wait_timeout": DURATIONS,
    "workspace": TEXTS,
    "run_timeout": DURATIONS,
    "validate_only": st.booleans(),
    "view": st.integers(-1, 4),
    "client_id": TEXTS,
    "traceparent": TEXTS,
    "priority": st.integers(-102, 102),
}
UNKNOWN: dict[str, Any] = {"inline_workflow": {"name": "w"}, "attributes": {"team": "a"}, "labels": ["pii"]}
"""Fields with rules that a glance does not judge."""


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_what_a_glance_takes_for_valid_keeps_every_rule(fields: dict[str, Any]) -> None:
    request = SubmitRunRequest(**fields)
    if is_plain_submission(request):
        assert RULES.collect_violations(request) == []


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_a_glance_judges_each_field_by_itself(name: str, data: st.DataObject) -> None:
    request = SubmitRunRequest(**({"workflow": "w"} | {name: data.draw(FIELDS[name])}))
    try:
        valid = RULES.collect_violations(request) == []
    except EvaluationError:
        valid = False
    # Durations at the very edges are left to the rules: a glance may be stricter there, never more lenient.
    assert is_plain_submission(request) <= valid
    if name not in ("wait_timeout", "run_timeout"):
        assert is_plain_submission(request) == valid


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_fields_with_other_rules_are_left_to_them(name: str) -> None:
    assert not is_plain_submission(SubmitRunRequest(workflow="w", **{name: UNKNOWN[name]}))


def test_every_field_of_a_submission_is_judged_or_left_to_the_rules() -> None:
    assert {field.name for field in SubmitRunRequest.DESCRIPTOR.fields} == set(FIELDS) | set(UNKNOWN)
