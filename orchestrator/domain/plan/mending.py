"""Mending: what callers do to a run that has ended, or stands in the way of its end: reopen, substitute, pause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.domain import events as ev
from orchestrator.domain.events import SkipReason
from orchestrator.domain.failures import Failure
from orchestrator.domain.inputs import PauseRequest, Reopening, ResumeRequest, StepRetry, Substitution
from orchestrator.domain.plan import children, decision
from orchestrator.domain.reopening import dependents, taken_back
from orchestrator.domain.retrying import steps_that_open, waiting_for_their_time, would_forget_undo
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, RunState, StepState
from orchestrator.domain.step_run import StepRun
from orchestrator.domain.workflow import Graph, Step, StepRole

if TYPE_CHECKING:
    from orchestrator.domain.plan.planner import Planner

MENDABLE = frozenset({RunState.FAILED, RunState.CANCELLED})
"""States of a run that can be reopened."""

_LEFT_OPEN = frozenset({StepState.FAILED, StepState.CANCELLED})


def steps_begun_anew(run: Run, graph: Graph, again: Iterable[int] = ()) -> tuple[str, ...]:
    """Returns the ids of the steps that begin anew where an ended run is reopened with `graph`, its own or that of
    another revision: what failed, was cancelled or was taken back, the steps of `again`, and all that depends on them.

    A failure that a branch was taken for is an end like any other. A delegated step that was handed over begins anew
    without its parent, unless the revision is another. A step that ended without an output begins anew where another
    revision does not foresee that.
    """
    taken = taken_back(run)
    begun, handed_over = set(again), set()
    for index, step in enumerate(run.steps):
        if index in run.dropped:
            continue
        root = _root(run, index)
        unhandled = step.state in _LEFT_OPEN and not _is_handled(run, index)
        if (index == root and unhandled) or index in taken:
            begun.add(root)
        elif step.is_handed_over and step.state in _LEFT_OPEN:
            parent = run.steps[step.spec.parent]
            if graph is run.graph and parent.state is StepState.SUCCEEDED:
                handed_over.add(index)
                begun.update(run.graph.steps[root].successors)
            else:
                begun.add(root)
    if graph is not run.graph:
        begun.update(_without_a_way_on(run, graph))
    begun = dependents(run.graph, begun)
    if graph is not run.graph:
        begun |= _begun_in(graph, run.graph, begun)
    kept = {index for index in handed_over if _root(run, index) not in begun}
    return tuple(run.steps[index].spec.id for index in sorted(begun | kept))


def _without_a_way_on(run: Run, graph: Graph) -> set[int]:
    """Returns steps that were skipped or failed, and whose readers count on an output in another graph: there, they
    have no condition, or their failure leads elsewhere."""
    found = set()
    names = {step.id: step for step in graph.steps}
    for before in run.graph.steps:
        step, spec = run.steps[before.index], names.get(before.id)
        if spec is None:
            continue
        if step.state is StepState.SKIPPED:
            unforeseen = not (spec.has_condition or spec.handles)
        elif step.failure is not None:
            unforeseen = _way_on(run.graph, before, step.failure) != _way_on(graph, spec, step.failure)
        else:
            unforeseen = False
        if unforeseen:
            found.add(before.index)
    return found


def _way_on(graph: Graph, spec: Step, failure: Failure) -> tuple[bool, str]:
    """Tells whether a step has a branch for its failure, and the id of the step that it leads to, if any."""
    branch = next((one for one in spec.on_failure if one.match.matches(failure)), None)
    leads_to = branch.step if branch is not None else None
    return branch is not None, graph.steps[leads_to].id if leads_to is not None else ""


def _begun_in(graph: Graph, before: Graph, begun: set[int]) -> set[int]:
    """Returns steps of the graph before that depend, in another graph, on what begins anew or is new there."""
    known = {step.id: step.index for step in before.steps}
    fresh = [step.index for step in graph.steps if known.get(step.id, -1) in begun or step.id not in known]
    return {known[graph.steps[index].id] for index in dependents(graph, fresh) if graph.steps[index].id in known}


def _root(run: Run, index: int) -> int:
    """Returns the step of the workflow that a step is, or belongs to."""
    while run.steps[index].spec.parent >= 0:
        index = run.steps[index].spec.parent
    return index


def _is_handled(run: Run, index: int) -> bool:
    step = run.steps[index]
    failure = step.failure
    return failure is not None and any(branch.match.matches(failure) for branch in step.spec.on_failure)


def steps_kept_by_fork(run: Run, again: Iterable[int]) -> list[int]:
    """Returns the steps of the workflow that a run takes over which is forked from `run` and runs the steps of `again`:
    those that succeeded, and depend on none of these, nor on one that did not succeed or was taken back."""
    taken = {_root(run, index) for index in taken_back(run)}
    left = [
        index
        for index, one in enumerate(run.steps[: len(run.graph.steps)])
        if one.state not in (StepState.SUCCEEDED, StepState.SKIPPED) or index in taken or one.open_children
    ]
    again = dependents(run.graph, [*again, *left])
    return [
        spec.index
        for spec in run.graph.steps
        if spec.index not in again and run.steps[spec.index].state is StepState.SUCCEEDED
    ]


def reopen(plan: Planner, given: Reopening) -> None:
    """Lets an ended run go on in another round."""
    run = plan.run
    graph = run.graph if given.revision == run.revision or run.next_graph is None else run.next_graph
    undoing = run.undoing
    reset = () if given.undo else steps_begun_anew(run, graph, given.again)
    if not _has_room(run, reset) or (given.undo and undoing is None):
        return
    sequence, time = plan.stamp()
    plan.emit(
        ev.RunReopened(
            sequence,
            time,
            run.round + 1,
            reset,
            given.revision,
            given.expire_time,
            given.principal,
            given.reason,
            given.payload,
        )
    )
    plan.conditions.reopened()
    if given.undo and undoing is not None:
        again = tuple(run.moved[index] for index in given.undo)
        sequence, time = plan.stamp()
        plan.emit(ev.RunUndoing(sequence, time, undoing.failure, undoing.reason, undoing.principal, again))
    if given.substitution is not None:
        substitute(plan, given.substitution)


def _has_room(run: Run, reset: Iterable[str]) -> bool:
    """Tells whether a round in which these steps begin anew has room to its end; see Planner.has_room."""
    begun = {run.indexes[name] for name in reset}
    ends = sum(_root(run, index) in begun for index in range(len(run.steps)))
    ends += sum(step.spec.is_undone for step in run.steps) + len(begun)
    return run.sequence + 4 + decision.EVENTS_OF_AN_END * ends <= decision.MAX_EVENTS


# --- runs that go on


def in_the_way(run: Run, index: int) -> list[int]:
    """Returns the steps that keep an ended step of a run that goes on from beginning anew: what it handed over and is
    not over yet, and those that depend on it and have done something: called, waited, asked, or ended with an output.
    """
    found = {other for other in dependents(run.graph, (index,)) - {index} if _has_begun(run.steps[other])}
    to_follow = [index]
    while to_follow:
        for child in run.steps[to_follow.pop()].children or ():
            if run.steps[child].state not in ENDED_STEP:
                found.add(child)
            to_follow.append(child)
    return sorted(found)


def _has_begun(step: StepRun) -> bool:
    if step.state in (StepState.RUNNING, StepState.WAITING, StepState.SUCCEEDED):
        return True
    return step.attempt > step.earlier_attempts or bool(step.children or step.request or step.child_run_id)


def steps_retried(run: Run, index: int) -> tuple[int, ...]:
    """Returns the steps of the workflow that begin anew with an ended one of a run that goes on."""
    return (index, *sorted(dependents(run.graph, (index,)) - {index}))


def retry_step(plan: Planner, given: StepRetry) -> None:
    """Lets a step of a run that goes on be tried now, or begin anew."""
    run = plan.run
    step, opened = run.steps[given.step], 0
    reset: tuple[int, ...] = ()
    if step.state in ENDED_STEP:
        is_part = step.spec.role is not StepRole.WORKFLOW
        if is_part or run.state is RunState.UNDOING or in_the_way(run, given.step):
            return
        if would_forget_undo(run, given.step):
            return
        reset = steps_retried(run, given.step)
        opened = len(reset) + len(steps_that_open(run, given.step))
    elif given.substitution is not None or not waiting_for_their_time(run, given.step, plan.stamp()[1]):
        return
    if not plan.has_room(opened, undo=True):
        return
    sequence, time = plan.stamp()
    plan.emit(ev.StepRetried(sequence, time, given.step, reset, given.principal, given.reason))
    if reset:
        plan.conditions.begun_anew(reset)
    if given.substitution is not None:
        substitute(plan, given.substitution)


def substitute(plan: Planner, given: Substitution) -> None:
    """Ends a step by the wish of a caller, with an output or without."""
    step = plan.run.steps[given.step]
    its_turn_comes = step.spec.role is StepRole.UNDO and step.state is StepState.BLOCKED
    if step.state in ENDED_STEP or its_turn_comes:
        return
    if step.state is StepState.RUNNING:
        plan.decision.cancelled.append((given.step, step.attempt))
    if given.payload is not None:
        plan.succeed_step(given.step, given.payload, given.principal)
        return
    if step.open_children:
        children.cancel_children(plan, given.step, detached=True)
    plan.skip_step(given.step, SkipReason.REQUESTED, given.principal)


def pause(plan: Planner, given: PauseRequest) -> None:
    """Lets no attempt start from here on."""
    if not plan.run.paused and plan.has_room():
        sequence, time = plan.stamp()
        plan.emit(ev.RunPaused(sequence, time, given.principal, given.reason))


def resume(plan: Planner, given: ResumeRequest) -> None:
    """Lets attempts start again."""
    if not plan.run.paused:
        return
    sequence, time = plan.stamp()
    plan.emit(ev.RunResumed(sequence, time, given.principal))
    plan.decision.queued.extend(i for i, step in enumerate(plan.run.steps) if step.state is StepState.READY)
