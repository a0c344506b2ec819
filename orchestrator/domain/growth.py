"""How a run grows and waits: the folds of the events by which steps add steps, wait, and are taken back.

What may not enter: decisions. The plain life of a step is folded in run.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain import reopening, retrying
from orchestrator.domain.events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptSuspended,
    CheckpointRecorded,
    IterationStarted,
    RunUndoing,
    SignalReceived,
    StepCancelled,
    StepDelegated,
    StepFailed,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)
from orchestrator.domain.states import ENDED_STEP, StepState, next_step_state
from orchestrator.domain.waits import ApprovalAwaited, ItemsAwaited, RunAwaited, SignalAwaited, StepsAwaited
from orchestrator.domain.workflow import Step, StepRole

if TYPE_CHECKING:
    from orchestrator.domain.run import Run

UNDO_KEY = "undo"
"""Last part of the id of an undo call's step; no delegated step may have it as its key."""


def step_waiting(run: Run, event: StepWaiting) -> list[int]:
    """Begins a wait; the first items of a map become ready."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    step.begin_wait(event.wait, event.time)
    if run.start_time is None:
        run.start_time = event.time
    match event.wait:
        case ItemsAwaited():
            return _add_items(run, event.step, event.wait.count, event.time)
        case RunAwaited():
            step.child_run_id, step.request = event.wait.run_id, event.payload
        case SignalAwaited():
            run.signal_waiters.setdefault(event.wait.signal, []).append(event.step)
    return []


def approval_requested(run: Run, event: ApprovalRequested) -> list[int]:
    """Begins the wait for a person's decision."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    step.begin_wait(ApprovalAwaited(event.request_hash, event.expire_time), event.time)
    step.request = event.payload
    if run.start_time is None:
        run.start_time = event.time
    return []


def _add_items(run: Run, parent: int, count: int, time: int) -> list[int]:
    step = run.steps[parent]
    assert step.spec.map is not None
    if not step.children:  # Otherwise those of the round before, of which some have succeeded.
        first, step.children = len(run.steps), []
        for number in range(count):
            run.add_step(_part(step.spec, first + number, StepRole.ITEM, parent, number))
            step.children.append(first + number)
        step.open_children += count
    ready: list[int] = []
    while step.next_child < len(step.children) and len(ready) < step.spec.map.max_parallel:
        item = step.children[step.next_child]
        step.next_child += 1
        if run.steps[item].state is StepState.BLOCKED:
            ready.append(item)
    for index in ready:
        run.make_ready(index, time)
    return ready


def _part(whole: Step, index: int, role: StepRole, parent: int, number: int) -> Step:
    """Makes the step of one item or iteration: the call of the step that it belongs to."""
    return Step(
        index,
        f"{whole.id}/{number}",
        whole.targets,
        delivery=whole.delivery,
        queue_timeout_us=whole.queue_timeout_us,
        kind=whole.kind,
        undo=whole.undo,
        heartbeat_timeout_us=whole.heartbeat_timeout_us,
        role=role,
        parent=parent,
        number=number,
    )


def iteration_started(run: Run, event: IterationStarted) -> list[int]:
    """Adds the step of the next iteration."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    index = retrying.place_of(run, f"{step.spec.id}/{event.iteration}")
    retrying.add_step(run, _part(step.spec, index, StepRole.ITERATION, event.step, event.iteration))
    if step.children is None:
        step.children = []
    step.children.append(index)
    step.open_children += 1
    run.make_ready(index, event.time)
    run.steps[index].queue_time = event.ready_time
    return [index]


def step_delegated(run: Run, event: StepDelegated) -> list[int]:
    """Adds a delegated step."""
    parent = run.steps[event.parent]
    parent.state = next_step_state(parent.state, event.kind)
    spec = Step(
        event.step,
        f"{parent.spec.id}/{event.key}",
        (event.target,),
        delivery=event.delivery,
        step_timeout_us=event.step_timeout_us,
        role=StepRole.DELEGATED,
        parent=event.parent,
    )
    step = retrying.add_step(run, spec)
    step.request, step.delegated = event.payload, event
    if parent.children is None:
        parent.children = []
    parent.children.append(event.step)
    parent.open_children += 1
    run.make_ready(event.step, event.time)
    return [event.step]


def attempt_suspended(run: Run, event: AttemptSuspended) -> list[int]:
    """Ends an attempt without using one up. Where it awaits none, or one that has ended by now, the step is ready at
    once."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    step.attempts[-1].end_time = event.time
    step.attempts[-1].suspended = True
    step.target_attempts -= 1
    if not event.awaited or any(run.steps[index].state in ENDED_STEP for index in event.awaited):
        run.make_ready(event.step, event.time)
        return [event.step]
    step.begin_wait(StepsAwaited(frozenset(event.awaited)), event.time)
    return []


def signal_received(run: Run, event: SignalReceived) -> list[int]:
    """Keeps a signal until a step takes it."""
    run.signals.setdefault(event.signal, []).append(event.payload)
    if event.request_id:
        run.signal_request_ids.add(event.request_id)
    return []


def approval_decided(run: Run, event: ApprovalDecided) -> list[int]:
    """Ends the wait for a decision."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    step.end_wait(event.time)
    step.decided = event
    step.queue_time = event.time
    return []


def checkpoint_recorded(run: Run, event: CheckpointRecorded) -> list[int]:
    """Keeps the newest checkpoint."""
    step = run.steps[event.step]
    step.state = next_step_state(step.state, event.kind)
    step.checkpoint = event.payload
    return []


def run_undoing(run: Run, event: RunUndoing) -> list[int]:
    """Adds the steps of the undo calls, of which the first is ready."""
    run.undoing = event
    run.undone = []
    run.undoable = 0
    for number, parent in enumerate(event.steps):
        spec = run.steps[parent].spec
        assert spec.undo is not None
        made = run.indexes.get(f"{spec.id}/{UNDO_KEY}") if run.round > 1 else None
        index = len(run.steps) if made is None else made
        undo = Step(
            index,
            f"{spec.id}/{UNDO_KEY}",
            (spec.undo.target,),
            step_timeout_us=spec.undo.timeout_us,
            role=StepRole.UNDO,
            parent=parent,
            number=number,
        )
        if made is None:
            run.add_step(undo)
        else:
            reopening.begin_anew(run, made, undo)
        run.undone.append(index)
    run.make_ready(run.undone[0], event.time)
    return [run.undone[0]]


def child_ended(run: Run, index: int, event: StepSucceeded | StepFailed | StepSkipped | StepCancelled) -> list[int]:
    """A step that belongs to another has ended, and with it perhaps all that others wait for."""
    step = run.steps[index]
    if step.spec.role is StepRole.UNDO:
        following = step.spec.number + 1
        if isinstance(event, StepCancelled) or following == len(run.undone):
            return []
        run.make_ready(run.undone[following], event.time)
        return [run.undone[following]]
    released: list[int] = []
    parent_index = step.spec.parent
    parent = run.steps[parent_index]
    parent.ended_children += 1
    if isinstance(event, StepFailed):
        parent.failed_children += 1
    has_begun = step.ready_time is not None
    if isinstance(parent.wait, ItemsAwaited) and parent.children and has_begun and not isinstance(event, StepCancelled):
        while parent.next_child < len(parent.children):
            item = parent.children[parent.next_child]
            parent.next_child += 1
            if run.steps[item].state is StepState.BLOCKED:
                run.make_ready(item, event.time)
                released.append(item)
                break
    elif isinstance(parent.wait, StepsAwaited) and index in parent.wait.steps:
        parent.end_wait(event.time)
        run.make_ready(parent_index, event.time)
        released.append(parent_index)
    while index >= 0 and run.steps[index].open_children == 0:
        parent_index = run.steps[index].spec.parent
        if parent_index < 0:
            if run.steps[index].state is not StepState.CANCELLED:
                released.extend(run.release(index, event.time))
            break
        parent = run.steps[parent_index]
        parent.open_children -= 1
        if parent.state not in ENDED_STEP:
            break
        index = parent_index
    return released
