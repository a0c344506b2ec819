"""Expressions that try to take too long, too much memory, or to tell what they should not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from tests.contracts.corpus import check, compiled

SLOW_SECONDS = 0.25
"""Above the 10 ms that an evaluation may take, so that a busy machine does not fail the test."""


LENGTHS = (50, 100, 200, 400, 1_000, 3_000, 9_000)


def definition(source: str, field: str = "bool_value") -> dict[str, Any]:
    return {
        "inputType": "shop.v1.Everything",
        "steps": [
            {"id": "a", "method": "shop.v1.Mirror/Reflect", "request": {field: {"expression": source}}},
        ],
    }


@pytest.mark.parametrize(
    "source",
    [
        "input.strings.all(a, input.strings.all(b, input.strings.all(c, true)))",
        "[[1]].map(a, a.map(b, [b].map(c, c))).size() > 0",
        "input.strings.map(s, s + s).size() > 0",
        "input.strings.exists(s, (s + s).size() > 3)",
        "input.strings.map(s, input.strings + [s]).size() > 0",
        "[input.string_value].map(q, q+q+q+q)[0].size() > 0",
        " + ".join(["input.string_value"] * 20) + " == ''",
        "input.string_value.replace('', input.string_value) == ''",
        "'%s'.format([input.string_value]) == ''",
        "input.strings.join(input.string_value) == ''",
        "input.string_value.split('').size() > 0",
        "input.strings.all(s, s.split(',').size() > 0)",
        "input.string_value.matches(input.string_value)",
        "[" + ",".join(["1"] * 900) + "].size() > 0",
        "true" + " && true" * 300,
    ],
)
def test_costly_expressions_are_refused(source: str) -> None:
    violations = check(definition(source)).violations
    assert [violation.reason for violation in violations] == ["EXPRESSION_TOO_COSTLY"], violations


@pytest.mark.parametrize(
    "source",
    [
        "(" * 500 + "true" + ")" * 500,
        "!" * 1000 + "true",
        "input" + ".category" * 200,
        "[" * 400 + "]" * 400,
        "-" * 1500 + "1 == 1",
        "true ? " * 200 + "true" + " : true" * 200,
        "\x00",
        "'\\ud800' == ''",
        "input.strings.exists(input, true)",
        "[1].exists(steps, true)",
        "steps",
        "steps.a",
        "input.string_value == output",
        "unknown_function(1)",
        "cel.bind(x, 1, x > 0)",
        "input.?string_value",
        "type(input)",
        "'" + "\U0001f600" * 100,
        "\\",
        "",
    ],
)
def test_strange_expressions_are_refused_or_right_but_never_crash(source: str) -> None:
    checked = check(definition(source))
    for violation in checked.violations:
        assert violation.path.startswith('steps[0].request["bool_value"]')
        assert len(violation.message) < 600


def evaluate(workflow: CompiledWorkflow, **fields: Any) -> Any:
    descriptor = workflow.types.find_message("shop.v1.Everything")
    assert descriptor is not None
    scope = Scope(1, workflow.types.message_class(descriptor)(**fields))
    started = time.process_time()
    try:
        return workflow.step(0).targets[0].build_request(scope)
    finally:
        assert time.process_time() - started < SLOW_SECONDS


@pytest.mark.parametrize(
    ("source", "field", "fields"),
    [
        ("input.strings.all(s, !input.string_value.contains(s))", "bool_value", "many and large"),
        ("input.strings.all(s, input.string_value.size() > 0)", "bool_value", "many and large"),
        ("input.strings.all(s, !(s in input.strings))", "bool_value", "many"),
        ("input.strings.all(s, input.strings.all(t, !s.contains(t)))", "bool_value", "many"),
        ("input.strings.map(s, input.strings)", "json", "many"),
        ("input.strings.map(s, shop.v1.Everything{strings: input.strings}).size() > 0", "bool_value", "many"),
        ("input.strings.all(s, input == input)", "bool_value", "many"),
        ("input.string_value.matches('(a+)+$')", "bool_value", "large"),
        ("input.strings.all(s, !s.matches('^(a|aa)+$'))", "bool_value", "many"),
        ("input.strings.all(s, input.strings.all(t, true))", "bool_value", "many"),
    ],
)
def test_evaluation_is_bounded(source: str, field: str, fields: str) -> None:
    workflow = compiled(definition(source, field))
    sizes: dict[str, Any] = {
        "many": {"strings": ["a"] * 60_000},
        "large": {"string_value": "a" * 250_000},
        "many and large": {"strings": ["zz"] * 30_000, "string_value": "a" * 120_000},
    }
    if field == "json":
        sizes["many"]["strings"] = ["a"] * 20_000
    inputs = [sizes[fields], *({"strings": ["zz"] * count, "string_value": "a" * 8_000} for count in LENGTHS)]
    refusals = [refusal for refusal in (refused(workflow, given) for given in inputs) if refusal]
    assert len(refusals) < len(inputs)
    assert all("use a step" in refusal for refusal in refusals)


def refused(workflow: CompiledWorkflow, given: dict[str, Any]) -> str:
    """Returns why an evaluation was refused, "" where it was not."""
    try:
        evaluate(workflow, **given)
    except EvaluationFailed as error:
        return str(error)
    return ""


def test_large_inputs_are_refused_only_where_they_are_read() -> None:
    large = {"string_value": "a" * 1_000_000, "int32_value": 5}
    for source in ("input.int32_value == 5", "has(input.optional_int32) || input.strings.size() == 0"):
        assert evaluate(compiled(definition(source)), **large).bool_value
    with pytest.raises(EvaluationFailed, match="use a step"):
        evaluate(compiled(definition("input.string_value == 'x'")), **large)


def test_results_are_bounded() -> None:
    workflow = compiled(definition("input.strings.map(s, input.moneys)", "json"))
    with pytest.raises(EvaluationFailed):
        evaluate(workflow, strings=["a"] * 300, moneys=[{"units": 1}] * 300)
    long_list = compiled(definition("input.int32_list.map(i, i)", "int32_list"))
    with pytest.raises(EvaluationFailed, match="use a step"):
        evaluate(long_list, int32_list=[1] * 20_000)


def test_strings_with_nul_are_not_cut() -> None:
    workflow = compiled(definition("input.string_value + '!'", "string_value"))
    with pytest.raises(EvaluationFailed, match="NUL"):
        evaluate(workflow, string_value="a\0b")
    assert (
        evaluate(compiled(definition("input.bytes_value", "bytes_value")), bytes_value=b"a\0b").bytes_value == b"a\0b"
    )


def test_a_tested_field_keeps_its_value() -> None:
    source = "has(input.optional_string) && input.optional_string == 'x' && has(input.money) && input.money.units == 2"
    workflow = compiled(definition(source))
    assert evaluate(workflow, optional_string="x", money={"units": 2}).bool_value
    assert not evaluate(workflow, optional_string="x").bool_value
    assert not evaluate(workflow).bool_value


def test_texts_of_the_library_stay_inside() -> None:
    workflow = compiled(definition("input.details.secret == 'x'"))
    with pytest.raises(EvaluationFailed) as caught:
        evaluate(workflow)
    assert "secret" not in str(caught.value)
    assert "NOT_FOUND" not in str(caught.value)
