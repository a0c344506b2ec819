"""Right workflows: what their bindings and conditions build and answer, from the messages of a run."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow, InputInvalid
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.failures import Code, Failure, Origin
from tests.contracts.corpus import check, compiled

FULL: dict[str, Any] = {
    "doubleValue": 1.5,
    "floatValue": 2.5,
    "int32Value": -3,
    "int64Value": "-4",
    "uint32Value": 5,
    "uint64Value": "6",
    "sint32Value": 7,
    "fixed64Value": "8",
    "boolValue": True,
    "stringValue": "text",
    "bytesValue": "AAE=",
    "currency": "EUR",
    "priority": "HIGH",
    "money": {"units": "9", "currencyCode": "EUR"},
    "optionalInt32": 0,
    "int32List": [1, 2],
    "int64List": ["3"],
    "strings": ["a", "b"],
    "moneys": [{"units": "1"}, {"units": "2"}],
    "currencies": ["USD", "EUR"],
    "counts": {"x": "1", "y": "2"},
    "prices": {"p": {"units": "10"}},
    "names": {"7": "seven"},
    "labels": {"l": "m"},
    "email": "a@b.c",
    "time": "2030-01-31T12:00:00.000001Z",
    "duration": "1.500s",
    "details": {"a": [1, "x", {"b": None}]},
    "json": "plain",
    "jsonList": [1, True],
    "any": {"@type": "type.googleapis.com/shop.v1.Money", "units": "11"},
    "wrappedInt32": 12,
    "wrappedInt64": "13",
    "wrappedString": "",
    "wrappedBool": False,
    "wrappedStrings": ["w"],
    "category": {"name": "leaf", "parent": {"name": "root"}, "image": {"url": "u", "data": "AA=="}},
    "currencyByName": {"euro": "EUR"},
    "items": [{"sku": "s", "quantity": 2, "price": {"units": "5"}}],
}


def mirror(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Returns a workflow that copies from an Everything into an Everything."""
    return {
        "inputType": "shop.v1.Everything",
        "steps": [{"id": "mirror", "method": "shop.v1.Mirror/Reflect", "request": request}],
    } | more


def message(workflow: CompiledWorkflow, name: str, value: dict[str, Any]) -> Message:
    descriptor = workflow.types.find_message(name)
    assert descriptor is not None
    return json_format.ParseDict(value, workflow.types.message_class(descriptor)(), descriptor_pool=workflow.types.pool)


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


ORDER: dict[str, Any] = {
    "name": "order",
    "inputType": "shop.v1.OrderInput",
    "outputType": "shop.v1.OrderOutput",
    "runTimeout": "60s",
    "steps": [
        {
            "id": "reserve",
            "method": "shop.v1.Inventory/Reserve",
            "request": {"order_id": {"path": "input.order_id"}, "items": {"path": "input.items"}},
            "expect": "output.complete && output.count == input.items.size()",
        },
        {
            "id": "charge",
            "method": "shop.v1.Payments/Charge",
            "request": {"amount": {"path": "input.total"}},
            "when": "input.total.units > 0",
            "onFailure": [{"codes": ["FAILED_PRECONDITION"], "step": "notify"}, {"reasons": ["DECLINED"]}],
            "fallback": [{"method": "shop.v1.Payments/Quote", "codes": ["UNAVAILABLE"]}],
        },
        {
            "id": "notify",
            "method": "shop.v1.Shipping/Notify",
            "request": {
                "text": {"expression": "'failed: ' + steps.charge.failure.message"},
                "reason": {"path": "steps.charge.failure.reason"},
                "code": {"expression": "steps.charge.failure.code == google.rpc.Code.FAILED_PRECONDITION ? 9 : 0"},
                "failed": {"path": "steps.charge.failed"},
            },
        },
        {
            "id": "ship",
            "method": "shop.v1.Shipping/Ship",
            "after": ["notify"],
            "request": {
                "reservation_id": {"path": "steps.reserve.output.reservation_id"},
                "labels": {"map": {"entries": {"state": {"path": "steps.charge.state"}}}},
            },
        },
    ],
    "output": {
        "reservation_id": {"path": "steps.reserve.output.reservation_id"},
        "charge_id": {"path": "steps.charge.output.charge_id", "defaultValue": "none"},
        "total": {"expression": "steps.charge.succeeded ? steps.charge.output.charged : shop.v1.Money{units: 0}"},
    },
}


def response(workflow: CompiledWorkflow, index: int, **fields: Any) -> Message:
    return workflow.step(index).targets[0].response_class(**fields)


def test_graph_edges_and_targets() -> None:
    checked = check(ORDER)
    assert checked.compiled is not None
    assert [(edge.from_step, edge.to_step, edge.data) for edge in checked.edges] == [
        ("charge", "notify", True),
        ("reserve", "ship", True),
        ("charge", "ship", True),
        ("notify", "ship", False),
    ]
    graph = checked.compiled.graph
    assert [step.predecessors for step in graph.steps] == [(), (), (1,), (0, 1, 2)]
    assert [step.successors for step in graph.steps] == [(3,), (2, 3), (3,), ()]
    assert [step.handles for step in graph.steps] == [(), (), (1,), ()]
    assert [step.has_condition for step in graph.steps] == [False, True, False, False]
    assert [target.method for target in graph.steps[1].targets] == ["shop.v1.Payments/Charge", "shop.v1.Payments/Quote"]
    assert [target.repeatable for target in graph.steps[1].targets] == [False, True]
    assert graph.steps[1].targets[1].taken_for.codes == {Code.UNAVAILABLE}
    assert [(branch.match.codes, branch.match.reasons, branch.step) for branch in graph.steps[1].on_failure] == [
        (frozenset({Code.FAILED_PRECONDITION}), frozenset(), 2),
        (frozenset(), frozenset({"DECLINED"}), None),
    ]
    assert graph.has_output
    assert checked.compiled.run_timeout_us == 60_000_000


def test_a_run_whose_branch_is_taken() -> None:
    workflow = compiled(ORDER)
    given = message(workflow, "shop.v1.OrderInput", {"orderId": "o", "items": [{"sku": "s"}], "total": {"units": "5"}})
    scope = Scope(4, given)
    reserve = workflow.step(0)
    assert reserve.condition(scope)
    assert not reserve.accepts(scope, response(workflow, 0, complete=True))
    assert reserve.accepts(scope, response(workflow, 0, complete=True, count=1))
    scope.set_succeeded(0, response(workflow, 0, complete=True, reservation_id="r"))
    assert workflow.step(1).condition(scope)
    scope.set_failed(1, Failure(Code.FAILED_PRECONDITION, "DECLINED", "no money", Origin.WORKER))
    notify: Any = workflow.step(2).targets[0].build_request(scope)
    assert (notify.text, notify.reason, notify.code, notify.failed) == ("failed: no money", "DECLINED", 9, True)
    scope.set_succeeded(2, response(workflow, 2))
    ship: Any = workflow.step(3).targets[0].build_request(scope)
    assert (ship.reservation_id, dict(ship.labels)) == ("r", {"state": "FAILED"})
    scope.set_succeeded(3, response(workflow, 3))
    output: Any = workflow.build_output(scope)
    assert (output.reservation_id, output.charge_id, output.total.units) == ("r", "none", 0)


def test_a_run_that_succeeds() -> None:
    workflow = compiled(ORDER)
    scope = Scope(4, message(workflow, "shop.v1.OrderInput", {"total": {"units": "5"}}))
    scope.set_succeeded(0, response(workflow, 0, reservation_id="r"))
    charged: Any = response(workflow, 1, charge_id="c")
    charged.charged.units = 5
    scope.set_succeeded(1, charged)
    scope.set_skipped(2)
    output: Any = workflow.build_output(scope)
    assert (output.charge_id, output.total.units) == ("c", 5)


def test_a_condition_sees_every_later_end() -> None:
    workflow = compiled(
        {
            "steps": [
                {"id": "a", "method": "shop.v1.Inventory/Reserve", "onFailure": [{}]},
                {"id": "b", "method": "shop.v1.Inventory/Reserve", "when": "steps.a.state in ['FAILED', 'SKIPPED']"},
            ]
        }
    )
    scope = Scope(2, None)
    with pytest.raises(EvaluationFailed):
        workflow.step(1).condition(scope)
    scope.set_succeeded(0, response(workflow, 0))
    assert not workflow.step(1).condition(scope)
    scope.set_failed(0, Failure(Code.INTERNAL, "X", "", Origin.WORKER))
    assert workflow.step(1).condition(scope)


GUARDED = [
    {"when": "steps.maybe.succeeded"},
    {"when": "steps.maybe.state == 'SUCCEEDED'"},
    {"when": "'SUCCEEDED' == steps.maybe.state"},
    {"when": "steps.maybe.state in ['SUCCEEDED']"},
    {"when": "steps.maybe.succeeded && input.express"},
    {"when": "!(steps.maybe.skipped)"},
    {"when": "steps.maybe.state != 'SKIPPED'"},
    {"when": "steps.maybe.succeeded && steps.maybe.output.complete"},
    {"when": "!(!steps.maybe.succeeded || !steps.maybe.output.complete)"},
    {"when": "steps.follower.succeeded"},
]


@pytest.mark.parametrize("more", GUARDED)
def test_a_condition_guards_the_output(more: dict[str, Any]) -> None:
    compiled(
        {
            "inputType": "shop.v1.OrderInput",
            "steps": [
                {"id": "maybe", "method": "shop.v1.Inventory/Reserve", "when": "input.express"},
                {"id": "follower", "method": "shop.v1.Inventory/Reserve", "when": "steps.maybe.succeeded"},
                {
                    "id": "reader",
                    "method": "shop.v1.Shipping/Ship",
                    "request": {"reservation_id": {"path": "steps.maybe.output.reservation_id"}},
                }
                | more,
            ],
        }
    )


@pytest.mark.parametrize(
    "source",
    [
        "steps.maybe.succeeded ? steps.maybe.output.reservation_id : 'none'",
        "!steps.maybe.succeeded ? 'none' : steps.maybe.output.reservation_id",
        "steps.maybe.skipped ? 'none' : steps.maybe.output.reservation_id",
        "steps.maybe.succeeded && steps.maybe.output.complete ? 'y' : 'n'",
        "!steps.maybe.succeeded || steps.maybe.output.complete ? 'y' : 'n'",
        "steps.maybe.state == 'SUCCEEDED' ? steps.maybe.output.reservation_id : 'none'",
    ],
)
def test_an_expression_guards_the_output(source: str) -> None:
    workflow = compiled(
        {
            "inputType": "shop.v1.OrderInput",
            "steps": [
                {"id": "maybe", "method": "shop.v1.Inventory/Reserve", "when": "input.express"},
                {
                    "id": "reader",
                    "method": "shop.v1.Shipping/Ship",
                    "request": {"reservation_id": {"expression": source}},
                },
            ],
        }
    )
    scope = Scope(2, message(workflow, "shop.v1.OrderInput", {}))
    scope.set_skipped(0)
    skipped: Any = workflow.step(1).targets[0].build_request(scope)
    assert skipped.reservation_id in ("none", "y", "n")
    scope.set_succeeded(0, response(workflow, 0, reservation_id="r"))
    succeeded: Any = workflow.step(1).targets[0].build_request(scope)
    assert succeeded.reservation_id in ("r", "y", "n")


def test_a_default_is_used_only_while_the_output_is_missing() -> None:
    binding = {"expression": "steps.maybe.output.reservation_id + '!'", "defaultValue": "none"}
    workflow = compiled(
        {
            "inputType": "shop.v1.OrderInput",
            "steps": [
                {"id": "maybe", "method": "shop.v1.Inventory/Reserve", "when": "input.express"},
                {"id": "reader", "method": "shop.v1.Shipping/Ship", "request": {"reservation_id": binding}},
            ],
        }
    )
    scope = Scope(2, message(workflow, "shop.v1.OrderInput", {}))
    scope.set_skipped(0)
    request: Any = workflow.step(1).targets[0].build_request(scope)
    assert request.reservation_id == "none"
    scope.set_succeeded(0, response(workflow, 0, reservation_id="r"))
    request = workflow.step(1).targets[0].build_request(scope)
    assert request.reservation_id == "r!"


def test_retry_policies_follow_the_method_and_the_workflow() -> None:
    def policy(method: str, **more: Any) -> Any:
        steps = [{"id": "s", "method": method} | ({"retry": more["step"]} if "step" in more else {})]
        definition = {"steps": steps} | ({"retry": more["workflow"]} if "workflow" in more else {})
        return compiled(definition).graph.steps[0].targets[0].retry

    plain = policy("shop.v1.Inventory/Reserve")
    assert plain.retryable.codes == {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}
    assert plain.retryable.reasons == set()
    assert (plain.max_attempts, plain.initial_backoff_us, plain.max_backoff_us) == (3, 200_000, 30_000_000)
    for method in ("shop.v1.Inventory/Release", "shop.v1.Payments/Quote"):
        assert Code.INTERNAL in policy(method).retryable.codes
        assert policy(method).retryable.reasons == {"OUTPUT_REJECTED"}
    explicit = policy("shop.v1.Inventory/Release", step={"reasons": ["BUSY"]})
    assert (explicit.retryable.codes, explicit.retryable.reasons) == (set(), {"BUSY"})
    inherited = policy("shop.v1.Inventory/Reserve", workflow={"maxAttempts": 9, "jitter": 0.0})
    assert (inherited.max_attempts, inherited.jitter) == (9, 0.0)
    own = policy("shop.v1.Inventory/Reserve", workflow={"maxAttempts": 9}, step={"initialBackoff": "1s"})
    assert (own.max_attempts, own.initial_backoff_us) == (3, 1_000_000)


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
    with pytest.raises(InputInvalid) as caught:
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
    with pytest.raises(InputInvalid) as caught:
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


def test_the_revision_depends_on_content_and_contracts_only() -> None:
    first, again = compiled(ORDER), compiled(ORDER)
    assert first.revision == again.revision
    assert len(first.revision) == 16
    assert compiled(ORDER | {"description": "other"}).revision != first.revision
    assert len(first.contract_digests) == 1


def test_timestamps_keep_nanoseconds_on_paths() -> None:
    given = {"time": "2030-01-31T12:00:00.123456789Z"}
    assert built({"time": {"path": "input.time"}}, given) == given
