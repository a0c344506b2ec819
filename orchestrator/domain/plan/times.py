"""When the times of steps are over. The run's time binds every step but undo calls; a step's time binds what belongs to
it."""

from __future__ import annotations

from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, RunState, StepState
from orchestrator.domain.step_run import StepRun
from orchestrator.domain.waits import ApprovalAwaited, SignalAwaited, Sleeping
from orchestrator.domain.workflow import StepRole

NEVER = (1 << 63) - 1
"""An instant that does not come."""


def step_expire_time(run: Run, index: int) -> int:
    """Returns when a step that has been ready fails unless it has ended: by its own timeout, by that of the step it
    belongs to, or by the run's."""
    step = run.steps[index]
    own = _own_expire_time(step)
    if step.spec.parent < 0:
        return min(run.expire_time, own)
    if step.spec.role is StepRole.UNDO:
        return own
    return min(step_expire_time(run, step.spec.parent), own)


def _own_expire_time(step: StepRun) -> int:
    timeout = step.spec.step_timeout_us
    return NEVER if timeout is None or step.ready_time is None else step.ready_time + timeout


def overdue_step(run: Run, index: int, now: int) -> int:
    """Returns the outermost of the open steps that a step belongs to whose own time is over; the step itself where none
    is. The time of a step goes before that of its parts, so that they do not fail one by one."""
    found, parent = index, run.steps[index].spec.parent
    while parent >= 0:
        step = run.steps[parent]
        if step.state not in ENDED_STEP and now >= _own_expire_time(step):
            found = parent
        parent = step.spec.parent
    return found


def attempt_expire_time(run: Run, index: int, time: int) -> int:
    """Returns when an attempt that starts at `time` is over by its own timeout, or the run's."""
    step = run.steps[index]
    timeout = step.spec.targets[step.target].attempt_timeout_us
    limit = NEVER if run.state is RunState.UNDOING else run.expire_time
    return limit if timeout is None else min(limit, time + timeout)


def call_expire_time(run: Run, index: int, time: int) -> int:
    """Returns the deadline of a call that starts at `time`. A redelivery has the attempt's whole time again: while no
    replica drove the run, no worker worked on it."""
    return min(step_expire_time(run, index), attempt_expire_time(run, index, time))


def redelivery_expire_time(run: Run, index: int, now: int) -> int:
    """Returns until when a running step that was queued at `now` for redelivery may wait for it."""
    return max(run.steps[index].attempts[-1].expire_time, attempt_expire_time(run, index, now))


def queue_expire_time(run: Run, index: int) -> int | None:
    """Returns when a queued step fails unless an attempt has started; None without a queue timeout."""
    step = run.steps[index]
    timeout = step.spec.queue_timeout_us
    if timeout is None or step.queue_time is None:
        return None
    return step.queue_time + timeout


def next_due_time(run: Run) -> int:
    """Returns the first time at which something is to happen to a run of which nothing is under way."""
    times = [run.expire_time]
    for index, step in enumerate(run.steps):
        if step.state in ENDED_STEP:
            continue
        if step.spec.step_timeout_us is not None and step.ready_time is not None:
            times.append(step_expire_time(run, index))
        if step.state is StepState.READY:
            times += [time for time in (queue_expire_time(run, index),) if time is not None]
            times += [] if run.paused or step.queue_time is None else [step.queue_time]
        elif step.state is StepState.WAITING:
            times += [time for time in (wait_due_time(run, index),) if time is not None]
    return min(times)


def wait_due_time(run: Run, index: int) -> int | None:
    """Returns when a waiting step is to be looked at: its wait is over, or has failed. None where time ends nothing."""
    wait = run.steps[index].wait
    match wait:
        case Sleeping():
            return wait.until_time
        case SignalAwaited() | ApprovalAwaited():
            return wait.expire_time
    return None
