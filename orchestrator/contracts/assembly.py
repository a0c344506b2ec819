"""The domain's graph of a workflow that has been checked: indexes, targets, settings."""

from __future__ import annotations

from dataclasses import dataclass

from baton.v1 import workflow_pb2

from orchestrator.contracts.compiled import CompiledStep
from orchestrator.contracts.graph import Wiring
from orchestrator.contracts.kinds import kind_of
from orchestrator.contracts.settings import (
    UNDO_ATTEMPT_TIMEOUT_US,
    UNDO_TIMEOUT_US,
    delivery_of,
    duration_us,
    failure_match,
)
from orchestrator.contracts.violations import Report
from orchestrator.domain.workflow import (
    Approval,
    FailureBranch,
    Graph,
    Map,
    Repeat,
    RetryPolicy,
    Signal,
    Step,
    Target,
    Undo,
)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A compiled step with the retry policy of each of its targets, and of its undo call."""

    step: CompiledStep
    policies: list[RetryPolicy]
    undo_policy: RetryPolicy | None = None


def assemble(
    workflow: workflow_pb2.Workflow,
    steps: dict[str, int],
    wiring: Wiring,
    edges: list[dict[int, str]],
    compiled: list[Assembled],
) -> Graph:
    """Returns the graph of a workflow without violations."""
    successors: list[list[int]] = [[] for _ in edges]
    for index, found in enumerate(edges):
        for before in found:
            successors[before].append(index)
    assembled = []
    for index, step in enumerate(workflow.steps):
        assembled.append(
            Step(
                index=index,
                id=step.id,
                targets=_targets(step, compiled[index]),
                predecessors=tuple(sorted(edges[index])),
                successors=tuple(successors[index]),
                has_condition=bool(step.when),
                delivery=delivery_of(step),
                queue_timeout_us=duration_us(step.queue_timeout) if step.HasField("queue_timeout") else None,
                step_timeout_us=duration_us(step.step_timeout) if step.HasField("step_timeout") else None,
                on_failure=tuple(
                    FailureBranch(
                        failure_match(branch.codes, branch.reasons, "", Report()),
                        steps[branch.step] if branch.step else None,
                    )
                    for branch in step.on_failure
                ),
                handles=tuple(sorted(wiring.handles[index])),
                kind=kind_of(step),
                map=_map(step),
                repeat=_repeat(step),
                signal=_signal(step),
                approval=_approval(step),
                undo=_undo(step, compiled[index]),
                heartbeat_timeout_us=(
                    duration_us(step.heartbeat_timeout) if step.HasField("heartbeat_timeout") else None
                ),
            )
        )
    return Graph(tuple(assembled))


def _targets(step: workflow_pb2.Step, compiled: Assembled) -> tuple[Target, ...]:
    targets, policies = compiled.step.targets, compiled.policies
    if not targets:
        return ()
    own_timeout = duration_us(step.attempt_timeout) if step.HasField("attempt_timeout") else None
    found = [Target(step.method, policies[0], targets[0].repeatable, own_timeout)]
    for number, fallback in enumerate(step.fallback):
        timeout = duration_us(fallback.attempt_timeout) if fallback.HasField("attempt_timeout") else own_timeout
        found.append(
            Target(
                fallback.method,
                policies[number + 1],
                targets[number + 1].repeatable,
                timeout,
                failure_match(fallback.codes, fallback.reasons, "", Report()),
            )
        )
    return tuple(found)


def _map(step: workflow_pb2.Step) -> Map | None:
    if not step.HasField("map"):
        return None
    return Map(step.map.max_parallel or Map().max_parallel, step.map.max_failed)


def _repeat(step: workflow_pb2.Step) -> Repeat | None:
    if not step.HasField("repeat"):
        return None
    return Repeat(step.repeat.max_iterations or Repeat().max_iterations, duration_us(step.repeat.interval))


def _signal(step: workflow_pb2.Step) -> Signal | None:
    if not step.HasField("wait_signal"):
        return None
    given = step.wait_signal
    return Signal(given.signal, duration_us(given.timeout) if given.HasField("timeout") else None)


def _approval(step: workflow_pb2.Step) -> Approval | None:
    if not step.HasField("approval"):
        return None
    given = step.approval
    timeout_us = duration_us(given.timeout) if given.HasField("timeout") else None
    return Approval(timeout_us, tuple(given.approvers), given.description)


def _undo(step: workflow_pb2.Step, compiled: Assembled) -> Undo | None:
    target, policy, given = compiled.step.undo, compiled.undo_policy, step.undo
    if target is None or policy is None:
        return None
    attempt_us = duration_us(given.attempt_timeout) if given.HasField("attempt_timeout") else UNDO_ATTEMPT_TIMEOUT_US
    timeout_us = duration_us(given.undo_timeout) if given.HasField("undo_timeout") else UNDO_TIMEOUT_US
    return Undo(Target(target.method, policy, target.repeatable, attempt_us), timeout_us)
