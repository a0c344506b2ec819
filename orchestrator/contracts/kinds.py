"""Kinds of steps: what each does, and which settings go with it. Anything else is refused with the cure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton.v1 import workflow_pb2

from orchestrator.contracts.violations import Report
from orchestrator.domain.workflow import StepKind

_Given = Callable[[workflow_pb2.Step], bool]

KINDS: Mapping[StepKind, str] = {
    StepKind.CALL: "method",
    StepKind.RUN_WORKFLOW: "run_workflow",
    StepKind.SLEEP: "sleep",
    StepKind.SIGNAL: "wait_signal",
}
"""The field of a step that makes it of this kind."""

CALLING = (StepKind.CALL, StepKind.RUN_WORKFLOW)
"""Kinds that have a request, and can be mapped and repeated."""

_CALLS_NONE: Mapping[StepKind, str] = {
    StepKind.RUN_WORKFLOW: "runs a workflow",
    StepKind.SLEEP: "sleeps",
    StepKind.SIGNAL: "waits for a signal",
}

_WITH_METHOD: Mapping[str, _Given] = {
    "expect": lambda step: bool(step.expect),
    "retry": lambda step: step.HasField("retry"),
    "queue_timeout": lambda step: step.HasField("queue_timeout"),
    "attempt_timeout": lambda step: step.HasField("attempt_timeout"),
    "delivery": lambda step: bool(step.delivery),
    "fallback": lambda step: bool(step.fallback),
    "approval": lambda step: step.HasField("approval"),
    "undo": lambda step: step.HasField("undo"),
    "heartbeat_timeout": lambda step: step.HasField("heartbeat_timeout"),
    "limits": lambda step: bool(step.limits),
    "priority": lambda step: bool(step.priority),
}

_WITH_REQUEST: Mapping[str, _Given] = {
    "request": lambda step: bool(step.request),
    "whole_request": lambda step: step.HasField("whole_request"),
    "map": lambda step: step.HasField("map"),
    "repeat": lambda step: step.HasField("repeat"),
}


def kinds_of(step: workflow_pb2.Step) -> list[StepKind]:
    """Returns what a step does: one kind, unless it is wrong."""
    return [kind for kind, name in KINDS.items() if (step.method if kind is StepKind.CALL else step.HasField(name))]  # type: ignore[arg-type]


def kind_of(step: workflow_pb2.Step) -> StepKind:
    """Returns the first kind of a step; that of a call where it has none."""
    if step.method:
        return StepKind.CALL
    found = kinds_of(step)
    return found[0] if found else StepKind.CALL


def is_mapped(step: workflow_pb2.Step) -> bool:
    """Tells whether a step goes over items."""
    return step.HasField("map") and kind_of(step) in CALLING


def is_repeated(step: workflow_pb2.Step) -> bool:
    """Tells whether a step calls until a condition holds."""
    return step.HasField("repeat") and not is_mapped(step) and kind_of(step) in CALLING


def check_kinds(workflow: workflow_pb2.Workflow, report: Report) -> None:
    """Reports steps that do nothing or several things, and settings that do not go with what a step does."""
    for index, step in enumerate(workflow.steps):
        path = f"steps[{index}]"
        found = kinds_of(step)
        if not found:
            report.add(
                path,
                "INVALID_SETTING",
                "the step does nothing; give one of method, run_workflow, sleep and wait_signal",
            )
            continue
        for kind in found[1:]:
            report.add(
                f"{path}.{KINDS[kind]}",
                "INVALID_SETTING",
                f"a step does one thing, and this one has {KINDS[found[0]]} already; make it two steps",
            )
        if found[0] is not StepKind.CALL:
            _check_without_method(step, found[0], path, report)
        _check_parts(step, path, report)


def _check_without_method(step: workflow_pb2.Step, kind: StepKind, path: str, report: Report) -> None:
    for name, given in _WITH_METHOD.items():
        if given(step):
            cure = "give it to the steps of that workflow" if kind is StepKind.RUN_WORKFLOW else "leave it out"
            report.add(
                f"{path}.{name}",
                "INVALID_SETTING",
                f"{name} goes with a method, but this step {_CALLS_NONE[kind]}; {cure}",
            )
    for name, given in _WITH_REQUEST.items():
        if kind is not StepKind.RUN_WORKFLOW and given(step):
            report.add(
                f"{path}.{name}",
                "INVALID_SETTING",
                f"{name} goes with a method or with run_workflow, but this step {_CALLS_NONE[kind]}; leave it out",
            )


def _check_parts(step: workflow_pb2.Step, path: str, report: Report) -> None:
    many = [name for name in ("map", "repeat") if step.HasField(name)]
    if len(many) == 2:
        report.add(
            f"{path}.repeat",
            "INVALID_SETTING",
            "a step has map or repeat, not both; put the one into a workflow that the other runs with run_workflow",
        )
    if not step.HasField("approval") or not step.method:
        return
    if many:
        report.add(
            f"{path}.approval",
            "INVALID_SETTING",
            f"an approval is of one request, but with {many[0]} there are many; put it on a step before this one",
        )
    if step.fallback:
        report.add(
            f"{path}.fallback",
            "INVALID_SETTING",
            "a fallback would be called with a request that nobody approved; make it a step of its own, with its own "
            "approval, that on_failure names",
        )
