"""Workflows that run workflows: types, inputs, revisions, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from baton.v1 import workflow_pb2

from orchestrator.contracts.children import CHILDREN_LIMIT, NESTING_LIMIT, children_named
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.descriptors import read_contract
from orchestrator.contracts.scope import Scope
from orchestrator.domain.workflow import Map, StepKind
from tests.contracts.corpus import check, compile_protos, compiled, contract, message, workers, workflow
from tests.contracts.definitions import RESERVE, cel, charge, flow, lit, notify, path

PAY: dict[str, Any] = {
    "name": "pay",
    "inputType": "shop.v1.ChargeRequest",
    "outputType": "shop.v1.ChargeResponse",
    "steps": [
        {"id": "charge", "method": "shop.v1.Payments/Charge", "wholeRequest": path("input")},
    ],
    "wholeOutput": path("steps.charge.output"),
}
TELL: dict[str, Any] = {"name": "tell", "steps": [notify(text=lit("x"))]}
PAID, TOLD = compiled(PAY), compiled(TELL)
APPLIED = {("pay", ""): PAID, ("pay", PAID.revision): PAID, ("tell", ""): TOLD}


def pay(**request: Any) -> dict[str, Any]:
    return {"id": "pay", "runWorkflow": {"workflow": "pay"}, "request": request}


def parent(*steps: dict[str, Any], **more: Any) -> CompiledWorkflow:
    checked = check(flow(*steps, name="parent") | more, applied=APPLIED)
    assert checked.compiled is not None, checked.violations
    return checked.compiled


def test_a_workflow_is_run_with_a_typed_input_and_output() -> None:
    found = parent(
        RESERVE,
        pay(order_id=path("input.order_id"), reservation_id=path("steps.reserve.output.reservation_id")),
        notify(text=path("steps.pay.output.charge_id")),
    )
    assert [step.kind for step in found.graph.steps] == [StepKind.CALL, StepKind.RUN_WORKFLOW, StepKind.CALL]
    assert [step.predecessors for step in found.graph.steps] == [(), (0,), (1,)]
    assert found.graph.steps[1].targets == ()
    child = found.step(1).child
    assert child is not None
    assert (child.workflow, child.revision) == ("pay", PAID.revision)
    assert (child.input_type, child.output_type) == ("shop.v1.ChargeRequest", "shop.v1.ChargeResponse")
    scope = Scope(3, message(found, "shop.v1.OrderInput", {"orderId": "o"}))
    scope.set_succeeded(0, found.step(0).targets[0].response_class(reservation_id="r"))
    given: Any = child.build_input(scope)
    assert (given.order_id, given.reservation_id) == ("o", "r")
    scope.set_succeeded(1, child.output_class(charge_id="c"))
    built: Any = found.step(2).targets[0].build_request(scope)
    assert built.text == "c"
    assert found.step(1).output_class is child.output_class


def test_a_workflow_without_input_and_output() -> None:
    found = parent({"id": "tell", "runWorkflow": {"workflow": "tell"}})
    child = found.step(0).child
    assert child is not None
    assert (child.input_type, child.output_type, child.build_input(Scope(1, None))) == ("", "", None)
    assert child.output_class.DESCRIPTOR.full_name == "google.protobuf.Empty"


def test_the_revision_is_written_into_the_definition() -> None:
    found = parent(pay())
    assert found.definition.steps[0].run_workflow.revision == PAID.revision
    given = workflow(flow(pay(), name="parent"))
    checked = check_workflow(given, workers(), applied=APPLIED)
    assert not given.steps[0].run_workflow.revision
    assert checked.compiled is not None
    assert checked.compiled.revision == found.revision
    again = check_workflow(found.definition, workers(), applied=APPLIED)
    assert again.compiled is not None
    assert again.compiled.revision == found.revision
    newer = compiled(PAY | {"description": "newer"})
    other = check_workflow(given, workers(), applied={("pay", ""): newer})
    assert other.compiled is not None
    assert other.compiled.revision != found.revision


def test_a_workflow_is_run_for_each_item_and_again() -> None:
    each = pay(order_id=path("item.sku")) | {"map": {"items": path("input.items"), "maxParallel": 2}}
    again = pay(order_id=path("previous.charge_id")) | {"id": "again", "repeat": {"until": "output.approved"}}
    found = parent(each, again, notify(code=cel("steps.pay.output.items.size()")))
    assert (found.graph.steps[0].map, found.graph.steps[0].kind) == (Map(2, 0), StepKind.RUN_WORKFLOW)
    scope = Scope(3, message(found, "shop.v1.OrderInput", {"items": [{"sku": "s"}]}))
    first, second = found.step(0), found.step(1)
    assert first.items is not None
    assert first.child is not None
    assert second.child is not None
    given: Any = first.child.build_input(scope.for_part(item=first.items.read(scope).values[0]))
    assert given.order_id == "s"
    scope.set_succeeded(0, first.items.collect(first.items.read(scope), [first.child.output_class(charge_id="c")]))
    built: Any = found.step(2).targets[0].build_request(scope)
    assert built.code == 1
    given = second.child.build_input(scope.for_part(iteration=2, previous=second.child.output_class(charge_id="c")))
    assert given.order_id == "c"
    assert second.is_done(scope, second.child.output_class(approved=True), 1)


def test_the_own_types_of_a_child_are_known_to_its_parent() -> None:
    source = (
        'syntax = "proto3"; package mine.v1; import "shop/v1/types.proto"; message Bill { shop.v1.Money total = 1; }'
    )
    files = compile_protos(["mine.proto"], {"mine.proto": source})
    definition = workflow({"name": "bill", "inputType": "mine.v1.Bill", "steps": [notify(text=lit("x"))]})
    definition.types.file.extend(files)
    child = check_workflow(definition, workers()).compiled
    assert child is not None
    step = {"id": "bill", "runWorkflow": {"workflow": "bill"}, "request": {"total": path("input.total")}}
    checked = check(flow(step), applied={("bill", ""): child})
    assert checked.violations == ()
    alone = {"inputType": "mine.v1.Bill", "steps": [step | {"request": {"total": path("input.total")}}]}
    assert check(alone, applied={("bill", ""): child}).violations == ()


def test_the_types_of_a_child_alone_suffice() -> None:
    """The parent calls nothing: its contracts are none, and its types those of the child."""
    checked = check_workflow(workflow({"steps": [pay(order_id=lit("o"))]}), [], applied=APPLIED)
    assert checked.compiled is not None
    assert checked.compiled.contract_digests == ()


def test_types_that_conflict_are_refused_at_the_step() -> None:
    other = (
        'syntax = "proto3"; package shop.v1; message ChargeRequest { int32 order_id = 1; } '
        "service S { rpc Do(ChargeRequest) returns (ChargeRequest); }"
    )
    files = compile_protos(["other.proto"], {"other.proto": other})
    definition = workflow({"steps": [pay()]})
    definition.types.file.extend(files)
    checked = check_workflow(definition, [], applied=APPLIED)
    assert [one.reason for one in checked.violations] == ["CONTRACT_CONFLICT"]
    served = {"steps": [pay(), {"id": "do", "method": "shop.v1.S/Do"}]}
    checked = check_workflow(workflow(served), [("w", read_contract(files))], applied=APPLIED)
    assert [(one.path, one.reason) for one in checked.violations] == [("steps[0].run_workflow", "CONTRACT_CONFLICT")]


WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "unknown workflow": (
        flow({"id": "x", "runWorkflow": {"workflow": "pya"}}),
        [("steps[0].run_workflow.workflow", "UNKNOWN_WORKFLOW")],
    ),
    "unknown revision": (
        flow({"id": "x", "runWorkflow": {"workflow": "pay", "revision": "abc"}}),
        [("steps[0].run_workflow.revision", "UNKNOWN_WORKFLOW")],
    ),
    "no workflow": (flow({"id": "x", "runWorkflow": {}}), [("steps[0].run_workflow.workflow", "UNKNOWN_WORKFLOW")]),
    "itself": (
        flow({"id": "x", "runWorkflow": {"workflow": "pay"}}, name="pay"),
        [("steps[0].run_workflow.workflow", "CYCLE")],
    ),
    "unknown field of the input": (flow(pay(order=lit("x"))), [('steps[0].request["order"]', "UNKNOWN_FIELD")]),
    "field of another type": (
        flow(pay(order_id=path("input.weight_grams"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "whole input of another type": (
        flow({"id": "x", "runWorkflow": {"workflow": "pay"}, "wholeRequest": path("input")}),
        [("steps[0].whole_request", "TYPE_MISMATCH")],
    ),
    "input of a workflow that takes none": (
        flow({"id": "x", "runWorkflow": {"workflow": "tell"}, "request": {"text": lit("x")}}),
        [("steps[0].request", "INVALID_BINDING")],
    ),
    "whole input of a workflow that takes none": (
        flow({"id": "x", "runWorkflow": {"workflow": "tell"}, "wholeRequest": path("input")}),
        [("steps[0].whole_request", "INVALID_BINDING")],
    ),
    "unknown field of the output": (
        flow(pay(), notify(text=path("steps.pay.output.charge"))),
        [('steps[1].request["text"]', "UNKNOWN_FIELD")],
    ),
    "output of an unknown workflow": (
        flow({"id": "x", "runWorkflow": {"workflow": "nobody"}}, notify(text=path("steps.x.output.charge"))),
        [("steps[0].run_workflow.workflow", "UNKNOWN_WORKFLOW")],
    ),
    "unknown step in the input of an unknown workflow": (
        flow({"id": "x", "runWorkflow": {"workflow": "nobody"}, "request": {"a": path("steps.y.output")}}),
        [
            ("steps[0].run_workflow.workflow", "UNKNOWN_WORKFLOW"),
            ('steps[0].request["a"]', "UNKNOWN_STEP"),
        ],
    ),
    "output that may be missing": (
        flow(pay() | {"when": "input.express"}, notify(text=path("steps.pay.output.charge_id"))),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    **{
        f"{name} without a method": (flow(pay() | {name: value}), [(f"steps[0].{spelt}", "INVALID_SETTING")])
        for name, spelt, value in (
            ("expect", "expect", "output.approved"),
            ("retry", "retry", {"maxAttempts": 2}),
            ("queueTimeout", "queue_timeout", "1s"),
            ("attemptTimeout", "attempt_timeout", "1s"),
            ("delivery", "delivery", "DELIVERY_AT_MOST_ONCE"),
            ("fallback", "fallback", [{"method": "shop.v1.Payments/Charge"}]),
            ("approval", "approval", {}),
            ("undo", "undo", {"method": "shop.v1.Payments/Charge"}),
            ("heartbeatTimeout", "heartbeat_timeout", "1s"),
        )
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_the_path(name: str) -> None:
    definition, expected = WRONG[name]
    checked = check(definition, applied=APPLIED)
    assert [(one.path, one.reason) for one in checked.violations] == expected, checked.violations


def test_hints_and_cures() -> None:
    def told(step: dict[str, Any]) -> str:
        return check(flow(step), applied=APPLIED).violations[0].message

    assert "did you mean `pay`" in told({"id": "x", "runWorkflow": {"workflow": "pya"}})
    assert "ListWorkflowRevisions" in told({"id": "x", "runWorkflow": {"workflow": "pay", "revision": "abc"}})
    assert "ApplyWorkflow" in told({"id": "x", "runWorkflow": {"workflow": "zebra"}})


def test_workflows_nest_to_a_limit() -> None:
    applied: dict[tuple[str, str], CompiledWorkflow] = {}
    for level in range(NESTING_LIMIT):
        run = {"runWorkflow": {"workflow": f"level-{level - 1}"}} if level else {"method": "shop.v1.Shipping/Notify"}
        checked = check({"name": f"level-{level}", "steps": [{"id": "x"} | run]}, applied=applied)
        assert checked.compiled is not None, checked.violations
        assert checked.compiled.depth == level + 1
        applied[f"level-{level}", ""] = checked.compiled
    last = {"id": "x", "runWorkflow": {"workflow": f"level-{NESTING_LIMIT - 1}"}}
    checked = check({"name": "one-more", "steps": [last]}, applied=applied)
    assert [(one.path, one.reason) for one in checked.violations] == [
        ("steps[0].run_workflow.workflow", "INVALID_SETTING")
    ]


def test_workflows_run_to_a_limit() -> None:
    steps = [{"id": f"s{index}", "runWorkflow": {"workflow": f"w{index}"}} for index in range(CHILDREN_LIMIT + 1)]
    applied = {(f"w{index}", ""): TOLD for index in range(CHILDREN_LIMIT + 1)}
    definition = workflow({"steps": steps})
    assert len(list(children_named(definition))) == CHILDREN_LIMIT
    checked = check_workflow(definition, workers(), applied=applied)
    assert [(one.path, one.reason) for one in checked.violations] == [
        (f"steps[{CHILDREN_LIMIT}].run_workflow.workflow", "INVALID_SETTING")
    ]


def test_a_child_of_an_older_contract_gives_way_to_the_newer() -> None:
    """The child was compiled when the worker served less; both are types of the same names."""
    assert contract("shop/v1/services.proto").digest in PAID.contract_digests
    found = parent(pay(order_id=path("input.order_id")), charge(order_id=path("steps.pay.output.charge_id")))
    assert found.contract_digests == PAID.contract_digests
    assert isinstance(found.definition, workflow_pb2.Workflow)
