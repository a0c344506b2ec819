"""What is kept of ended steps and runs until their spans are made: names, states and times.

What may not enter: payloads, which would be held in memory for as long as a collector is slow, and what still changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from orchestrator.domain.events import SkipReason
from orchestrator.domain.failures import Failure
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.step_run import AttemptRecord, StepRun, WaitRecord
from orchestrator.domain.workflow import Graph, Step, StepRole


class Place(NamedTuple):
    """A step in the life that it began in, or one attempt of it; 0 is none."""

    step: str
    life: int
    attempt: int


class EndedStep(NamedTuple):
    """A step that has ended. Its span belongs under `parent`, None for the run; `adder` is what has added it, None for
    a step of the workflow. Its attempts and waits are those of its life, to which no more are added; there were
    `earlier_attempts`. The lives are those that it and its predecessors began in; of the latter none where all are 1.
    Times as in StepRun."""

    graph: Graph
    spec: Step
    life: int
    parent: Place | None
    adder: Place | None
    predecessor_lives: Sequence[int]
    state: StepState
    skip_reason: SkipReason | None
    ready_time: int | None
    queue_time: int | None
    end_time: int
    target: int
    earlier_attempts: int
    attempts: Sequence[AttemptRecord]
    waited: Sequence[WaitRecord] | None
    child_run_id: str
    failure: Failure | None


class EndedRun(NamedTuple):
    """A round of a run that has ended, with what led to the run."""

    state: RunState
    start_time: int
    end_time: int
    failure: Failure | None
    request_id: str
    parent_run_id: str
    parent_step: str
    forked_run_id: str
    forked_step: str


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
        None if run.end_time is None else _run(run, run.end_time),
    )


def _run(run: Run, end_time: int) -> EndedRun:
    return EndedRun(
        run.state,
        run.round_time,
        end_time,
        run.failure,
        run.request_id,
        run.parent_run_id,
        run.parent_step,
        run.forked_run_id,
        run.forked_step,
    )


def _adder(run: Run, step: StepRun) -> Place | None:
    """What has added a step: another step, or the attempt of it that delegated."""
    if step.spec.parent < 0:
        return None
    parent = run.steps[step.spec.parent]
    return Place(parent.spec.id, parent.life, 0 if step.delegated is None else step.delegated.parent_attempt)


def _parent(run: Run, step: StepRun, adder: Place | None, end_time: int) -> Place | None:
    """The innermost span that a step's lies in: what has added it may have ended before. An undo call belongs under the
    run. Only times are compared: the run in memory may have gone on."""
    if adder is None or step.spec.role is StepRole.UNDO:
        return None
    index = step.spec.parent
    parent = run.steps[index]
    if adder.attempt and _lasts(parent.attempts[adder.attempt - 1].end_time, end_time):
        return adder
    while index >= 0:
        parent = run.steps[index]
        if _lasts(parent.end_time, end_time):
            return Place(parent.spec.id, parent.life, 0)
        index = parent.spec.parent
    return None


def _lasts(end_time: int | None, until_time: int) -> bool:
    return end_time is None or end_time > until_time


def _step(run: Run, index: int) -> EndedStep | None:
    step = run.steps[index]
    if step.end_time is None:
        return None
    adder = _adder(run, step)
    return EndedStep(
        run.graph,
        step.spec,
        step.life,
        _parent(run, step, adder, step.end_time),
        adder,
        [run.steps[before].life for before in step.spec.predecessors] if run.life > 1 else (),
        step.state,
        step.skip_reason,
        step.ready_time,
        step.queue_time,
        step.end_time,
        step.target,
        step.earlier_attempts,
        step.attempts[step.earlier_attempts :] if step.earlier_attempts else step.attempts,
        step.waited,
        step.child_run_id,
        step.failure,
    )
