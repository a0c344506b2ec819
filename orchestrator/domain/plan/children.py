"""Steps that belong to others: the items of a map, the iterations of a repeat, and what a running step delegates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain import events as ev
from orchestrator.domain.failures import Code, Failure, Origin, cut_message
from orchestrator.domain.inputs import CallFailed, CallSuspended, Delegation
from orchestrator.domain.plan import attempts, waits
from orchestrator.domain.plan.decision import MAX_ADDED, MAX_DELEGATED, MAX_DEPTH, MAX_ITEMS
from orchestrator.domain.plan.times import NEVER, step_expire_time
from orchestrator.domain.retrying import place_of
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, RunState, StepState
from orchestrator.domain.waits import ItemsAwaited, IterationsAwaited
from orchestrator.domain.workflow import StepRole

if TYPE_CHECKING:
    from orchestrator.domain.plan.planner import Planner


AWAITS_NOTHING = Failure(
    Code.ABORTED,
    "SUSPENDED",
    "the attempt was suspended for steps that it has not delegated, or that had ended before it began",
    Origin.WORKER,
)
"""What became of an attempt that was suspended for nothing."""


# --- map


def begin_map(plan: Planner, index: int) -> None:
    """Begins the items of a ready map."""
    count, step = plan.conditions.count_items(index), plan.run.steps[index]
    if isinstance(count, Failure):
        plan.fail_step(index, count)
    elif count > MAX_ITEMS:
        message = f"the map has {count} items; the limit is {MAX_ITEMS}"
        plan.fail_step(index, Failure(Code.RESOURCE_EXHAUSTED, "ITEM_LIMIT", message, Origin.ORCHESTRATOR))
    elif not plan.has_room(0 if step.children else count, undo=step.spec.undo is not None):
        plan.fail_step(index, plan.no_room())
    else:
        waits.wait(plan, index, ItemsAwaited(count))
        if step.ended_children == len(step.children or ()):
            plan.succeed_step(index, None)


def _item_ended(plan: Planner, parent: int, failure: Failure | None) -> None:
    step = plan.run.steps[parent]
    assert step.spec.map is not None
    assert step.children is not None
    if step.failed_children > step.spec.map.max_failed:
        message = f"{step.failed_children} of {len(step.children)} items failed"
        if failure is not None and failure.message:
            message = cut_message(f"{message}; the last: {failure.message}")
        code = failure.code if failure is not None else Code.UNKNOWN
        unknown = failure is not None and failure.outcome_unknown
        plan.fail_step(parent, Failure(code, "ITEMS_FAILED", message, Origin.ORCHESTRATOR, outcome_unknown=unknown))
    elif step.ended_children == len(step.children):
        plan.succeed_step(parent, None)


# --- repeat


def begin_repeat(plan: Planner, index: int) -> None:
    """Begins the first iteration of a ready repeat."""
    waits.wait(plan, index, IterationsAwaited())
    _iterate(plan, index, 0)


def _iterate(plan: Planner, index: int, wait_us: int) -> None:
    step = plan.run.steps[index]
    iteration = len(step.children or ()) + 1
    if not plan.has_room(1, undo=step.spec.undo is not None):
        plan.fail_step(index, plan.no_room())
        return
    sequence, time = plan.stamp()
    if wait_us and time + wait_us >= step_expire_time(plan.run, index):
        message = "the next iteration would begin after the time of the step or the run: give it more time"
        plan.fail_step(index, attempts.timeout_failure("DEADLINE_UNREACHABLE", message))
        return
    plan.emit(ev.IterationStarted(sequence, time, index, iteration, time + wait_us))


def _iteration_ended(plan: Planner, parent: int, index: int, failure: Failure | None) -> None:
    step = plan.run.steps[parent]
    assert step.spec.repeat is not None
    assert step.children is not None
    if failure is not None:
        plan.fail_step(parent, failure)
        return
    done = plan.conditions.is_done(parent, index)
    if isinstance(done, Failure):
        plan.fail_step(parent, done)
    elif done:
        plan.succeed_step(parent, None)
    elif len(step.children) >= step.spec.repeat.max_iterations:
        message = f"the condition did not hold after {len(step.children)} iterations"
        plan.fail_step(parent, Failure(Code.FAILED_PRECONDITION, "REPEAT_LIMIT", message, Origin.ORCHESTRATOR))
    else:
        _iterate(plan, parent, step.spec.repeat.interval_us)


# --- delegation


def find_delegated(run: Run, parent: int, key: str) -> int | None:
    """Returns the step that `parent` has delegated under `key`."""
    index = run.indexes.get(f"{run.steps[parent].spec.id}/{key}")
    return None if index in run.dropped else index


def delegation_limit(run: Run, parent: int) -> str:
    """Says which limit another delegated step would exceed; empty where it would none."""
    if len(run.steps[parent].children or ()) >= MAX_DELEGATED:
        return f"a step delegates at most {MAX_DELEGATED} steps"
    if len(run.steps) - len(run.graph.steps) >= MAX_ADDED:
        return f"at most {MAX_ADDED} steps are added to a run while it runs"
    depth, index = 1, parent
    while index >= 0:
        depth, index = depth + 1, run.steps[index].spec.parent
    if depth > MAX_DEPTH:
        return f"steps belong to each other at most {MAX_DEPTH} deep"
    return ""


def delegate(plan: Planner, given: Delegation) -> None:
    """Adds a step that a running one delegates, but for a key that it has delegated under already."""
    run = plan.run
    if not run.is_current(given.parent, given.attempt) or find_delegated(run, given.parent, given.key) is not None:
        return
    if delegation_limit(run, given.parent) or not plan.has_room(1):
        return
    sequence, time = plan.stamp()
    plan.emit(
        ev.StepDelegated(
            sequence,
            time,
            place_of(run, f"{run.steps[given.parent].spec.id}/{given.key}"),
            given.parent,
            given.attempt,
            given.key,
            given.target,
            given.contract_digest,
            given.detached,
            given.delivery,
            _narrowed_timeout_us(run, given, time),
            given.payload,
        )
    )


def _narrowed_timeout_us(run: Run, given: Delegation, time: int) -> int | None:
    """Returns the timeout of a delegated step: at most what is left of its parent's time, which binds it even after the
    parent has ended."""
    limit = step_expire_time(run, given.parent)
    if limit in (run.expire_time, NEVER):
        return given.step_timeout_us
    left_us = max(limit - time, 1)
    return left_us if given.step_timeout_us is None else min(given.step_timeout_us, left_us)


def suspend(plan: Planner, given: CallSuspended) -> None:
    """Ends an attempt that waits for steps that it has delegated. It goes on at once where one of them ended meanwhile;
    where all had ended before it began, or none is known, it has failed: else it would be called again for ever."""
    run = plan.run
    if not run.is_current(given.step, given.attempt):
        return
    found = [find_delegated(run, given.step, key) for key in given.awaited]
    awaited = tuple(index for index in found if index is not None)
    start_time = run.steps[given.step].attempts[-1].start_time
    if all((run.steps[index].end_time or NEVER) < start_time for index in awaited):
        attempts.fail(plan, CallFailed(given.step, given.attempt, AWAITS_NOTHING, None, 0.0))
        return
    sequence, time = plan.stamp()
    plan.emit(ev.AttemptSuspended(sequence, time, given.step, given.attempt, awaited))
    if run.steps[given.step].state is StepState.WAITING:
        plan.decision.waiting.append(given.step)


# --- what the end of one means for the other


def child_ended(plan: Planner, index: int, failure: Failure | None) -> None:
    """Goes on with the step that an ended one belongs to."""
    spec = plan.run.steps[index].spec
    parent = plan.run.steps[spec.parent]
    match spec.role:
        case StepRole.ITEM:
            if parent.state is StepState.WAITING:
                _item_ended(plan, spec.parent, failure)
        case StepRole.ITERATION:
            if parent.state is StepState.WAITING:
                _iteration_ended(plan, spec.parent, index, failure)
        case _:
            pass


def fails_the_run(run: Run, index: int) -> bool:
    """Tells whether the failure of a step, for which it has no branch, is the run's: not where its parent hears of
    it, nor while undo calls are made."""
    step = run.steps[index]
    if run.state is RunState.UNDOING:
        return False
    if step.spec.role is StepRole.WORKFLOW:
        return True
    return step.delegated is not None and step.delegated.detached


def cancel_children(plan: Planner, index: int, *, detached: bool) -> None:
    """Cancels what belongs to a step that ends. Without `detached` what was handed over goes on: by the step, and by
    those of its steps that have ended before it."""
    _cancel_below(plan, index, detached=detached)
    steps = plan.run.steps
    plan.decision.queued = [queued for queued in plan.decision.queued if steps[queued].state not in ENDED_STEP]


def _cancel_below(plan: Planner, index: int, *, detached: bool) -> None:
    for child in plan.run.steps[index].children or ():
        step = plan.run.steps[child]
        ended = step.state in ENDED_STEP
        handed_over = ended or (step.delegated is not None and step.delegated.detached)
        if detached or not handed_over:
            if step.open_children:
                _cancel_below(plan, child, detached=True)
            if not ended:
                plan.cancel_step(child)
