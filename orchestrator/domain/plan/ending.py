"""The end of a run: success, failure and cancellation, and the undo calls before an end without success."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain import events as ev
from orchestrator.domain.failures import Failure, cut_message
from orchestrator.domain.inputs import CancelRequest
from orchestrator.domain.states import ENDED_STEP, RunState, StepState
from orchestrator.domain.workflow import StepRole

if TYPE_CHECKING:
    from orchestrator.domain.plan.planner import Planner


def finish(plan: Planner) -> None:
    """Ends a run in which nothing is left to do."""
    if plan.run.state is RunState.UNDOING:
        _end_undone(plan)
        return
    output = plan.conditions.output()
    if isinstance(output, Failure):
        fail_run(plan, output)
        return
    sequence, time = plan.stamp()
    plan.emit(ev.RunSucceeded(sequence, time, output))


def cancel(plan: Planner, given: CancelRequest) -> None:
    """Ends a run by the wish of a caller. One that is being undone goes on with that."""
    if plan.run.state is RunState.UNDOING:
        return
    _cancel_steps(plan)
    if not _undo(plan, None, given.reason, given.principal):
        sequence, time = plan.stamp()
        plan.emit(ev.RunCancelled(sequence, time, given.reason, given.principal))


def fail_run(plan: Planner, failure: Failure) -> None:
    """Fails a run. Where that happens to one that is being undone, what was not undone yet stays as it is."""
    _cancel_steps(plan)
    if plan.run.state is RunState.UNDOING:
        _end_undone(plan)
    elif not _undo(plan, failure, "", ""):
        sequence, time = plan.stamp()
        plan.emit(ev.RunFailed(sequence, time, failure))


def fail_run_for(plan: Planner, index: int, failure: Failure) -> None:
    """Fails a run because a step failed."""
    name = plan.run.steps[index].spec.id
    message = f"step {name} failed: {failure.message}" if failure.message else f"step {name} failed"
    fail_run(
        plan,
        Failure(
            failure.code,
            failure.reason,
            cut_message(message),
            failure.origin,
            failure.details,
            name,
            failure.outcome_unknown,
        ),
    )


def _undo(plan: Planner, failure: Failure | None, reason: str, principal: str) -> bool:
    """Begins the undo calls; False where there is nothing to undo."""
    undone = _undone_before(plan)
    done = [
        index
        for index, step in enumerate(plan.run.steps)
        if step.spec.is_undone and step.state is StepState.SUCCEEDED and not step.substituted_by and index not in undone
    ]
    if not done:
        return False
    done.sort(key=lambda index: (plan.run.steps[index].end_time or 0, index), reverse=True)
    sequence, time = plan.stamp()
    plan.emit(ev.RunUndoing(sequence, time, failure, reason, principal, tuple(done)))
    return True


def _undone_before(plan: Planner) -> set[int]:
    """Returns the steps that were taken back in a round before, and kept as they were."""
    if plan.run.round == 1:
        return set()
    steps = plan.run.steps
    return {step.spec.parent for step in steps if step.spec.role is StepRole.UNDO and step.state is StepState.SUCCEEDED}


def _end_undone(plan: Planner) -> None:
    undoing = plan.run.undoing
    assert undoing is not None
    sequence, time = plan.stamp()
    if undoing.failure is not None:
        plan.emit(ev.RunFailed(sequence, time, undoing.failure))
    else:
        plan.emit(ev.RunCancelled(sequence, time, undoing.reason, undoing.principal))


def _cancel_steps(plan: Planner) -> None:
    plan.released.clear()
    plan.decision.queued.clear()
    plan.decision.waiting.clear()
    for index, step in enumerate(plan.run.steps):
        if step.state not in ENDED_STEP:
            plan.cancel_step(index)
    plan.released.clear()
