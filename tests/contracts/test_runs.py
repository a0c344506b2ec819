"""Compiled workflows in the course of a run: graph, conditions, guards, failures, outputs, settings."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.failures import Code, Failure, Origin
from tests.contracts.corpus import check, compiled, message

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


def test_the_revision_depends_on_content_and_contracts_only() -> None:
    first, again = compiled(ORDER), compiled(ORDER)
    assert first.revision == again.revision
    assert len(first.revision) == 16
    assert compiled(ORDER | {"description": "other"}).revision != first.revision
    assert len(first.contract_digests) == 1


def test_keys_of_limits_are_read_from_the_input_and_from_outputs() -> None:
    limits = [{"limit": "orders", "key": "input.order_id"}, {"limit": "all"}]
    reading = [{"limit": "reservations", "key": "'r-' + steps.reserve.output.reservation_id"}]
    workflow = compiled(
        {
            "inputType": "shop.v1.OrderInput",
            "steps": [
                {"id": "reserve", "method": "shop.v1.Inventory/Reserve", "limits": limits, "priority": 7},
                {"id": "reader", "method": "shop.v1.Shipping/Ship", "limits": reading},
            ],
        }
    )
    assert workflow.graph.steps[1].predecessors == (0,)
    assert (workflow.step(0).priority, workflow.step(1).priority) == (7, 0)
    scope = Scope(2, message(workflow, "shop.v1.OrderInput", {"order_id": "o1"}))
    assert [(one.limit, one.key(scope)) for one in workflow.step(0).limits] == [("orders", "o1"), ("all", "")]
    scope.set_succeeded(0, response(workflow, 0, reservation_id="9"))
    assert [(one.limit, one.key(scope)) for one in workflow.step(1).limits] == [("reservations", "r-9")]


def test_keys_of_limits_of_a_map_read_the_item() -> None:
    workflow = compiled(
        {
            "inputType": "shop.v1.OrderInput",
            "steps": [
                {
                    "id": "each",
                    "method": "shop.v1.Inventory/Reserve",
                    "map": {"items": {"path": "input.items"}},
                    "limits": [{"limit": "items", "key": "item.sku"}],
                }
            ],
        }
    )
    given: Any = message(workflow, "shop.v1.OrderInput", {"items": [{"sku": "a"}, {"sku": "b"}]})
    scope = Scope(1, given)
    (limit,) = workflow.step(0).limits
    assert [limit.key(scope.for_part(item=item, index=0, key=None)) for item in given.items] == ["a", "b"]
