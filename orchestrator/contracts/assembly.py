"""The domain's graph of a workflow that has been checked: indexes, targets, settings."""

from __future__ import annotations

from baton.v1 import workflow_pb2

from orchestrator.contracts.compiled import CompiledStep
from orchestrator.contracts.graph import Wiring
from orchestrator.contracts.settings import delivery_of, duration_us, failure_match
from orchestrator.contracts.violations import Report
from orchestrator.domain.workflow import FailureBranch, Graph, RetryPolicy, Step, Target


def assemble(
    workflow: workflow_pb2.Workflow,
    steps: dict[str, int],
    wiring: Wiring,
    edges: list[dict[int, str]],
    compiled: list[tuple[CompiledStep, list[RetryPolicy]]],
) -> Graph:
    """Returns the graph of a workflow without violations; `compiled` holds its steps with the policy of each target."""
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
                targets=_targets(step, *compiled[index]),
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
            )
        )
    return Graph(tuple(assembled), has_output=bool(workflow.output_type))


def _targets(
    step: workflow_pb2.Step,
    compiled: CompiledStep,
    policies: list[RetryPolicy],
) -> tuple[Target, ...]:
    own_timeout = duration_us(step.attempt_timeout) if step.HasField("attempt_timeout") else None
    found = [Target(step.method, policies[0], compiled.targets[0].repeatable, own_timeout)]
    for number, fallback in enumerate(step.fallback):
        timeout = duration_us(fallback.attempt_timeout) if fallback.HasField("attempt_timeout") else own_timeout
        found.append(
            Target(
                fallback.method,
                policies[number + 1],
                compiled.targets[number + 1].repeatable,
                timeout,
                failure_match(fallback.codes, fallback.reasons, "", Report()),
            )
        )
    return tuple(found)
