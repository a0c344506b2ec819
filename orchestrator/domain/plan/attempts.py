"""Attempts: from a ready step to the outcome of its call, with retries, fallbacks and timeouts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.domain import events as ev
from orchestrator.domain.failures import Code, Failure, Origin, cut_message
from orchestrator.domain.inputs import CallFailed, CallSucceeded, Checkpoint, HeartbeatMissed, StepAdmitted
from orchestrator.domain.plan import ending
from orchestrator.domain.plan.decision import MAX_DELIVERIES, MAX_SENDINGS, NEVER_RETRIED
from orchestrator.domain.plan.times import call_expire_time, queue_expire_time, step_expire_time
from orchestrator.domain.retry import backoff_us
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.step_run import AttemptRecord
from orchestrator.domain.waits import QueueReason
from orchestrator.domain.workflow import Delivery, StepRole

if TYPE_CHECKING:
    from orchestrator.domain.plan.planner import Planner


def admit(plan: Planner, given: StepAdmitted) -> None:
    """Starts the next attempt of a step, or delivers its running one again."""
    step = plan.run.steps[given.step]
    again = step.state is StepState.RUNNING
    if again and (_is_spent(step.attempts[-1], given.handed_over) or _at_most_once(plan, given.step)):
        return
    if not again and (step.state is not StepState.READY or plan.run.paused):
        return
    first_undo = step.spec.role is StepRole.UNDO and not step.attempt
    if not first_undo and not plan.has_room():
        _stop(plan, given.step)
    elif again:
        delivery = step.attempts[-1].deliveries + 1
        sequence, time = plan.stamp()
        expire_time = call_expire_time(plan.run, given.step, time)
        plan.emit(
            ev.DeliveryStarted(
                sequence,
                time,
                given.step,
                step.attempt,
                delivery,
                given.worker,
                given.address,
                expire_time,
                given.handed_over,
            )
        )
    else:
        _start(plan, given)


def _stop(plan: Planner, index: int) -> None:
    """Ends what has no room for another attempt or delivery: the run, or the undo call, after which others are made."""
    if plan.run.state is not RunState.UNDOING:
        ending.fail_run(plan, plan.no_room())
        return
    step = plan.run.steps[index]
    running = step.state is StepState.RUNNING
    failure = replace(plan.no_room(), outcome_unknown=running)
    if running:
        plan.decision.cancelled.append((index, step.attempt))
        _end_attempt(plan, index, failure, None)
    plan.fail_step(index, failure)


def _start(plan: Planner, given: StepAdmitted) -> None:
    step = plan.run.steps[given.step]
    sequence, time = plan.stamp()
    waited_for = given.waited_for
    if plan.run.resume_time > (step.queue_time or time):
        waited_for = QueueReason.PAUSED
    plan.emit(
        ev.AttemptStarted(
            sequence,
            time,
            given.step,
            step.attempt + 1,
            step.target,
            step.spec.targets[step.target].method,
            given.worker,
            given.address,
            step.queue_time or time,
            call_expire_time(plan.run, given.step, time),
            waited_for,
        )
    )


def succeed(plan: Planner, given: CallSucceeded) -> None:
    """Ends a step with the output of its call."""
    if plan.run.is_current(given.step, given.attempt):
        plan.succeed_step(given.step, given.payload)


def fail(plan: Planner, given: CallFailed) -> None:
    """Takes a failed call."""
    if plan.run.is_current(given.step, given.attempt):
        _fail_attempt(plan, given.step, given.failure, given.retry_delay_us, given.jitter_draw)


def circuit_open(plan: Planner, index: int) -> None:
    """Takes a fallback of a step whose endpoints' circuits are all open, where it has one for that."""
    if plan.run.steps[index].state is StepState.READY:
        message = "the circuit of every endpoint is open"
        take_fallback(plan, index, Failure(Code.UNAVAILABLE, "CIRCUIT_OPEN", message, Origin.ORCHESTRATOR))


def unbuildable(plan: Planner, index: int, failure: Failure) -> None:
    """Goes on from a request that cannot be built."""
    if plan.run.steps[index].state is StepState.READY and not take_fallback(plan, index, failure):
        plan.fail_step(index, failure)


def record_checkpoint(plan: Planner, given: Checkpoint) -> None:
    """Keeps what a running attempt leaves for the next one."""
    if plan.run.is_current(given.step, given.attempt) and plan.has_room():
        sequence, time = plan.stamp()
        plan.emit(ev.CheckpointRecorded(sequence, time, given.step, given.attempt, given.payload))


def miss_heartbeat(plan: Planner, given: HeartbeatMissed) -> None:
    """Fails an attempt that gave no sign of life."""
    if plan.run.is_current(given.step, given.attempt):
        message = "the worker gave no sign of life within the heartbeat timeout"
        plan.decision.cancelled.append((given.step, given.attempt))
        failure = timeout_failure("HEARTBEAT_TIMEOUT", message, outcome_unknown=True)
        _fail_attempt(plan, given.step, failure, None, 0.0)


def interrupt(plan: Planner, index: int, cause: str, *, handed_over: bool = False) -> None:
    """Decides on a running attempt of which it is not known what became of its call; `handed_over` where it was cut off
    by a replica that was stopped in good order."""
    record = plan.run.steps[index].attempts[-1]
    if _is_spent(record, handed_over):
        message = f"the call was sent {record.deliveries} times without an answer"
        failure = Failure(Code.INTERNAL, "DELIVERY_LIMIT", message, Origin.ORCHESTRATOR, outcome_unknown=True)
        _fail_attempt(plan, index, failure, None, 0.0)
    elif _at_most_once(plan, index):
        failure = Failure(
            Code.UNKNOWN,
            "OUTCOME_UNKNOWN",
            f"the call was under way when {cause}, and the step is delivered at most once",
            Origin.TRANSPORT,
            outcome_unknown=True,
        )
        _fail_attempt(plan, index, failure, None, 0.0)
    else:
        plan.decision.queued.append(index)


def time_out(plan: Planner, index: int) -> None:
    """Looks which timeout of a ready or running step is over."""
    step = plan.run.steps[index]
    if plan.now >= step_expire_time(plan.run, index):
        running = step.state is StepState.RUNNING
        failure = timeout_failure("STEP_TIMEOUT", "the step's time was over", outcome_unknown=running)
        if running:
            plan.decision.cancelled.append((index, step.attempt))
            _end_attempt(plan, index, failure, None)
        plan.fail_step(index, failure)
    elif step.state is StepState.READY:
        queue_expires = queue_expire_time(plan.run, index)
        if queue_expires is not None and plan.now >= queue_expires:
            failure = timeout_failure("QUEUE_TIMEOUT", "no attempt could start within the queue timeout")
            if not take_fallback(plan, index, failure):
                plan.fail_step(index, failure)
    elif plan.now >= step.attempts[-1].expire_time:
        failure = timeout_failure("ATTEMPT_TIMEOUT", "the attempt's time was over", outcome_unknown=True)
        plan.decision.cancelled.append((index, step.attempt))
        _fail_attempt(plan, index, failure, None, 0.0)


def timeout_failure(reason: str, message: str, *, outcome_unknown: bool = False) -> Failure:
    """Makes the failure of a timeout that is over."""
    return Failure(Code.DEADLINE_EXCEEDED, reason, message, Origin.TIMEOUT, outcome_unknown=outcome_unknown)


def _fail_attempt(plan: Planner, index: int, failure: Failure, retry_delay_us: int | None, jitter_draw: float) -> None:
    """Ends the running attempt and decides between another attempt, a fallback and failing the step."""
    step = plan.run.steps[index]
    target = step.spec.targets[step.target]
    unknown = failure.outcome_unknown and _at_most_once(plan, index)
    if unknown or failure.reason in NEVER_RETRIED:
        _end_attempt(plan, index, failure, None)
        if unknown and failure.reason != "OUTCOME_UNKNOWN":
            message = f"the step is delivered at most once, and its call may have taken effect: {failure.message}"
            message = cut_message(message)
            failure = Failure(failure.code, "OUTCOME_UNKNOWN", message, failure.origin, failure.details, "", True)
        if unknown or not take_fallback(plan, index, failure):
            plan.fail_step(index, failure)
        return
    if target.retry.retryable.matches(failure) and step.target_attempts < target.retry.max_attempts:
        wait_us = max(backoff_us(target.retry, step.target_attempts, jitter_draw), retry_delay_us or 0)
        retry_time = max(plan.now, plan.run.time + 1) + wait_us
        if retry_time < step_expire_time(plan.run, index):
            _end_attempt(plan, index, failure, retry_time)
            plan.decision.queued.append(index)
            return
    _end_attempt(plan, index, failure, None)
    if not take_fallback(plan, index, failure):
        plan.fail_step(index, failure)


def _is_spent(record: AttemptRecord, handed_over: bool) -> bool:
    """Tells whether an attempt was sent as often as it may be; `handed_over` is of the last sending."""
    counted = record.deliveries - record.handed_over - handed_over
    return counted >= MAX_DELIVERIES or record.deliveries >= MAX_SENDINGS


def _end_attempt(plan: Planner, index: int, failure: Failure, retry_time: int | None) -> None:
    sequence, time = plan.stamp()
    plan.emit(ev.AttemptFailed(sequence, time, index, plan.run.steps[index].attempt, failure, retry_time))


def take_fallback(plan: Planner, index: int, failure: Failure) -> bool:
    """Goes on with the next fallback that is for such a failure; False where there is none. A step whose request a
    person approved is called with that and nothing else."""
    step = plan.run.steps[index]
    if step.spec.approval is not None or not plan.has_room():
        return False
    for number in range(step.target + 1, len(step.spec.targets)):
        target = step.spec.targets[number]
        if target.taken_for.matches(failure):
            sequence, time = plan.stamp()
            plan.emit(ev.FallbackTaken(sequence, time, index, number, target.method, failure))
            plan.decision.queued.append(index)
            return True
    return False


def _at_most_once(plan: Planner, index: int) -> bool:
    """Tells whether the step's target in use must not be called again where a call may have taken effect."""
    step = plan.run.steps[index]
    return step.spec.delivery is Delivery.AT_MOST_ONCE and not step.spec.targets[step.target].repeatable
