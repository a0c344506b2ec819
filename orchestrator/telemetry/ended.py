"""What is kept of ended steps and runs until their spans are made: names, states and times.

What may not enter: payloads, which would be held in memory for as long as a collector is slow, and what still changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from orchestrator.domain.events import SkipReason
from orchestrator.domain.failures import Failure
from orchestrator.domain.run import AttemptRecord, Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.workflow import Graph, Step, StepRole


class EndedStep(NamedTuple):
    """A step that has ended; `parent` is the id of the step that its span belongs under, "" for the run. Its attempts
    are those of its round, to which no more are added. The rounds are those that it, its parent and its predecessors
    began in; of the latter none where all are 1. Times as in StepRun."""

    graph: Graph
    spec: Step
    round: int
    parent: str
    parent_round: int
    predecessor_rounds: Sequence[int]
    state: StepState
    skip_reason: SkipReason | None
    ready_time: int | None
    queue_time: int | None
    end_time: int
    target: int
    attempts: Sequence[AttemptRecord]
    failure: Failure | None


class EndedRun(NamedTuple):
    """A run that has ended."""

    state: RunState
    create_time: int
    end_time: int
    failure: Failure | None


class Ended(NamedTuple):
    """What one commit ended of a run: `steps` by their indices, and the run itself or None."""

    namespace: str
    run_id: UUID
    traceparent: str
    workflow: str
    revision: str
    round: int
    steps: Sequence[EndedStep]
    run: EndedRun | None

    def least_spans(self) -> int:
        """Spans that this becomes, without waits between attempts."""
        return sum(1 + len(step.attempts) for step in self.steps) + (self.run is not None)


def ended(namespace: str, run_id: UUID, run: Run, indices: Sequence[int]) -> Ended:
    """Keeps the steps at `indices`, of which those that have not ended are left out, and the run where it has."""
    return Ended(
        namespace,
        run_id,
        run.traceparent,
        run.workflow,
        run.revision,
        run.round,
        [step for index in indices if (step := _step(run, index)) is not None],
        None if run.end_time is None else EndedRun(run.state, run.create_time, run.end_time, run.failure),
    )


def _parent(run: Run, spec: Step) -> str:
    """An undo call belongs under the run: it is made long after the step that it takes back has ended."""
    if spec.parent < 0 or spec.role is StepRole.UNDO:
        return ""
    return run.steps[spec.parent].spec.id


def _step(run: Run, index: int) -> EndedStep | None:
    step = run.steps[index]
    if step.end_time is None:
        return None
    parent = _parent(run, step.spec)
    return EndedStep(
        run.graph,
        step.spec,
        step.round,
        parent,
        run.steps[step.spec.parent].round if parent else run.round,
        [run.steps[before].round for before in step.spec.predecessors] if run.round > 1 else (),
        step.state,
        step.skip_reason,
        step.ready_time,
        step.queue_time,
        step.end_time,
        step.target,
        step.attempts[step.earlier_attempts :] if step.earlier_attempts else step.attempts,
        step.failure,
    )
