"""Whatever workflow is given, the check answers: it never raises, and a workflow without violations can be run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from baton.v1 import workflow_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.compiled import CompiledStep, CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import VIOLATION_LIMIT, EvaluationFailed
from tests.contracts.corpus import compiled, workers, workflow

IDS = st.sampled_from(["a", "b", "c", "d", "", "é"])
NAMES = st.sampled_from(
    [
        "order_id",
        "amount",
        "items",
        "strings",
        "money",
        "counts",
        "names",
        "any",
        "json",
        "details",
        "time",
        "currency",
        "category",
        "prices",
        "email",
        "phone",
        "wrapped_int32",
        "bytes_value",
        "x",
        "",
    ]
)
METHODS = st.sampled_from(
    [
        "shop.v1.Mirror/Reflect",
        "shop.v1.Payments/Charge",
        "legacy.v1.Ledger/Open",
        "strict.v1.Hotel/Book",
        "x",
        "x/y/z",
        "",
        "shop.v1.Inventory/Watch",
    ]
)
PATHS = st.one_of(
    st.sampled_from(
        ["input", "input.", "steps", "steps.a", "steps.a.output", "steps.b.state", "steps.c.failure.code", ".", ""]
    ),
    st.builds(lambda name: f"input.{name}", NAMES),
    st.builds(lambda step, name: f"steps.{step}.output.{name}", IDS, NAMES),
    st.sampled_from(
        ["item", "item.sku", "index", "key", "previous.charge_id", "iteration", "output", "output.strings"]
    ),
    st.text(max_size=20),
)
EXPRESSIONS = st.one_of(
    PATHS,
    st.builds(
        lambda left, operator, right: f"{left} {operator} {right}",
        PATHS,
        st.sampled_from(["+", "-", "==", "&&", "||", "?", ":", "in"]),
        PATHS,
    ),
    st.builds(
        lambda path, value: f"{path} == {value}", PATHS, st.sampled_from(["'FAILED'", "1", "[]", "{}", "null", "b''"])
    ),
    st.builds(lambda path: f"{path}.map(x, x).exists(y, has(y.{path}))", PATHS),
    st.builds(lambda step: f"steps.{step}.succeeded || !steps.{step}.failed", IDS),
    st.text(max_size=30),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


BINDINGS: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: st.one_of(
        st.just({}),
        st.fixed_dictionaries({"literal": JSON}),
        st.fixed_dictionaries({"path": PATHS}, optional={"defaultValue": JSON}),
        st.fixed_dictionaries({"expression": EXPRESSIONS}, optional={"defaultValue": JSON}),
        st.builds(lambda fields: {"message": {"fields": fields}}, st.dictionaries(NAMES, BINDINGS, max_size=2)),
        st.builds(lambda elements: {"list": {"elements": elements}}, st.lists(BINDINGS, max_size=2)),
        st.builds(
            lambda entries: {"map": {"entries": entries}}, st.dictionaries(st.text(max_size=3), BINDINGS, max_size=2)
        ),
    )
)
REQUESTS = st.dictionaries(NAMES, BINDINGS, max_size=3)
ITEMS = st.one_of(
    BINDINGS,
    st.sampled_from(
        [{"path": "input.strings"}, {"path": "input.counts"}, {"path": "input.items"}, {"expression": "[1, 2]"}]
    ),
)
CODES = st.lists(st.integers(0, 20), max_size=2)
STEPS = st.fixed_dictionaries(
    {"id": IDS, "method": METHODS, "request": REQUESTS},
    optional={
        "wholeRequest": BINDINGS,
        "when": EXPRESSIONS,
        "expect": EXPRESSIONS,
        "after": st.lists(IDS, max_size=2),
        "onFailure": st.lists(st.fixed_dictionaries({"step": IDS}, optional={"codes": CODES}), max_size=2),
        "fallback": st.lists(
            st.fixed_dictionaries({"method": METHODS}, optional={"request": REQUESTS, "codes": CODES}), max_size=2
        ),
        "retry": st.fixed_dictionaries(
            {}, optional={"codes": CODES, "maxBackoff": st.sampled_from(["0s", "-1s", "999999s"])}
        ),
        "stepTimeout": st.sampled_from(["0s", "1s", "-5s"]),
        "map": st.fixed_dictionaries({"items": ITEMS}, optional={"maxFailed": st.integers(-1, 3)}),
        "repeat": st.fixed_dictionaries({"until": EXPRESSIONS}, optional={"interval": st.sampled_from(["0s", "-1s"])}),
        "approval": st.just({}),
        "undo": st.fixed_dictionaries({"method": METHODS, "request": REQUESTS}, optional={"wholeRequest": BINDINGS}),
        "sleep": st.fixed_dictionaries({}, optional={"duration": BINDINGS}),
        "waitSignal": st.fixed_dictionaries({"signal": IDS}, optional={"type": NAMES}),
        "runWorkflow": st.fixed_dictionaries({"workflow": IDS}),
    },
)
WORKFLOWS = st.fixed_dictionaries(
    {"steps": st.lists(STEPS, max_size=4)},
    optional={
        "inputType": st.sampled_from(["shop.v1.Everything", "shop.v1.OrderInput", "google.protobuf.Struct", "x", ""]),
        "outputType": st.sampled_from(["shop.v1.Everything", "google.protobuf.Any", "x"]),
        "output": REQUESTS,
        "wholeOutput": BINDINGS,
        "runTimeout": st.sampled_from(["1s", "0s"]),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(WORKFLOWS)
def test_any_workflow_is_answered(definition: dict[str, Any]) -> None:
    checked = check_workflow(workflow(definition), workers())
    assert (checked.compiled is None) == bool(checked.violations)
    assert len(checked.violations) <= VIOLATION_LIMIT
    if checked.compiled is None:
        return
    found = checked.compiled
    descriptor = found.input_descriptor
    scope = Scope(len(found.steps), found.types.message_class(descriptor)() if descriptor is not None else None)
    for index, step in enumerate(found.steps):
        assert step.output_class is not None
        with suppress(EvaluationFailed):
            assert isinstance(step.condition(scope), bool)
        if step.sleep is not None:
            with suppress(EvaluationFailed):
                assert step.wake_time(scope, 0) <= 253_402_300_799_999_999
        for part in parts_of(step, scope):
            evaluate(step, part)
        scope.set_succeeded(index, step.output_class())


def parts_of(step: CompiledStep, scope: Scope) -> list[Scope]:
    """Returns the scopes of the calls of a step: one, or those of its first items."""
    if step.items is None:
        return [scope.for_part(iteration=1)]
    try:
        items = step.items.read(scope)
    except EvaluationFailed:
        return []
    step.items.collect(items, [None] * len(items.values))
    keys = [None] * len(items.values) if items.keys is None else items.keys
    return [scope.for_part(item=item, key=key) for item, key in zip(items.values, keys, strict=True)][:3]


def evaluate(step: CompiledStep, scope: Scope) -> None:
    """Builds everything that a call needs: nothing but EvaluationFailed is raised."""
    for target in step.targets:
        output = target.response_class()
        for build in (target.build_request, step.undo.build_request if step.undo is not None else target.build_request):
            with suppress(EvaluationFailed):
                assert build(scope.for_part(output=output)).IsInitialized()
        with suppress(EvaluationFailed):
            assert isinstance(step.accepts(scope, output), bool)
        with suppress(EvaluationFailed):
            assert isinstance(step.is_done(scope, output, 1), bool)


STRINGS = st.builds(
    lambda items, read: (items, read),
    st.sampled_from(["input.strings", "input.labels", "input.strings.filter(s, size(s) > 1)"]),
    st.sampled_from(["item", "item + string(index)", "item.size() > 2 ? item : ''"]),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(STRINGS, st.lists(st.text(max_size=4).filter(lambda text: "\0" not in text), max_size=5))
def test_items_are_read_in_order(spelt: tuple[str, str], texts: list[str]) -> None:
    """Whatever the items, what each call is given is what CEL makes of that item alone."""
    items, read = spelt
    found = mapped_workflow(items, read)
    assert found.input_descriptor is not None
    given: Any = found.types.message_class(found.input_descriptor)(strings=texts)
    given.labels.update({text: text for text in texts})
    wanted = sorted(set(texts)) if items == "input.labels" else texts
    if "filter" in items:
        wanted = [text for text in texts if len(text) > 1]
    scope, step = Scope(1, given), found.step(0)
    assert step.items is not None
    values = step.items.read(scope).values
    assert list(values) == wanted
    built: list[Any] = [
        step.targets[0].build_request(scope.for_part(item=value, index=index)) for index, value in enumerate(values)
    ]
    expected = {
        "item": wanted,
        "item + string(index)": [text + str(index) for index, text in enumerate(wanted)],
        "item.size() > 2 ? item : ''": [text if len(text) > 2 else "" for text in wanted],
    }
    assert [one.string_value for one in built] == expected[read]


def mapped_workflow(items: str, read: str) -> CompiledWorkflow:
    key = f"{items} {read}"
    if key not in _COMPILED:
        step = {"id": "a", "method": "shop.v1.Mirror/Reflect", "request": {"string_value": {"expression": read}}}
        step |= {"map": {"items": {"expression": items}}}
        _COMPILED[key] = compiled({"inputType": "shop.v1.Everything", "steps": [step]})
    return _COMPILED[key]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_that_parse_are_answered(data: bytes) -> None:
    definition = workflow_pb2.Workflow()
    try:
        definition.MergeFromString(data)
    except Exception:
        return
    check_workflow(definition, workers())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.text(max_size=10), st.binary(max_size=10))
def test_paths_and_expressions_agree(small: int, large: int, text: str, data: bytes) -> None:
    names = ("int32_value", "int64_value", "string_value", "bytes_value")
    by_path, by_expression = (
        workflow_of({name: {form: f"input.{name}"} for name in names}) for form in ("path", "expression")
    )
    values = (small, large, text, data)
    fields = dict(zip(names, values, strict=True))
    built = []
    for found in (by_path, by_expression):
        assert found.input_descriptor is not None
        scope = Scope(1, found.types.message_class(found.input_descriptor)(**fields))
        if found is by_expression and "\0" in text:
            with pytest.raises(EvaluationFailed):
                found.step(0).targets[0].build_request(scope)
            return
        built.append(found.step(0).targets[0].build_request(scope).SerializeToString(deterministic=True))
    assert built[0] == built[1]


def workflow_of(request: dict[str, Any]) -> CompiledWorkflow:
    key = repr(request)
    if key not in _COMPILED:
        steps = [{"id": "a", "method": "shop.v1.Mirror/Reflect", "request": request}]
        _COMPILED[key] = compiled({"inputType": "shop.v1.Everything", "steps": steps})
    return _COMPILED[key]


_COMPILED: dict[str, CompiledWorkflow] = {}


def test_many_maps_over_each_other_are_checked_in_one_pass() -> None:
    """Ten thousand maps, each over the output of the one after it, down to one that goes over nothing."""
    steps = [
        {
            "id": f"step_{index}",
            "method": "shop.v1.Payments/Charge",
            "map": {"items": {"path": f"steps.step_{index + 1}.output.items"}},
        }
        for index in range(10_000)
    ]
    violations = check_workflow(workflow({"steps": steps}), workers()).violations
    assert [(one.path, one.reason) for one in violations] == [("steps[9999].map.items", "UNKNOWN_STEP")]


def test_many_steps_are_checked_in_one_pass() -> None:
    """Ten thousand steps that are all wrong take no longer than as many right ones."""
    steps = [
        {"id": f"step_{index}", "method": "shop.v1.Payments/Charge", "after": [f"stepp_{index}"]}
        for index in range(10_000)
    ]
    violations = check_workflow(workflow({"steps": steps}), workers()).violations
    assert len(violations) == VIOLATION_LIMIT
    assert violations[0].path == "steps[0].after[0]"
    assert "did you mean" in violations[0].message
