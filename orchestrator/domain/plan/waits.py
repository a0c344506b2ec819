"""Waits for what is not a worker: time, a signal, a person's approval, a child run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain import events as ev
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin, cut_message
from orchestrator.domain.inputs import ChildRunEnded, Decided, Signal
from orchestrator.domain.plan.attempts import timeout_failure
from orchestrator.domain.plan.decision import MAX_KEPT_SIGNALS, MAX_RUN_DEPTH
from orchestrator.domain.plan.times import step_expire_time
from orchestrator.domain.waits import ApprovalAwaited, RunAwaited, SignalAwaited, Sleeping, Wait, request_hash
from orchestrator.domain.workflow import StepKind

if TYPE_CHECKING:
    from orchestrator.domain.plan.planner import Planner

EMPTY = Payload("google.protobuf.Empty", b"")


def begin(plan: Planner, index: int) -> None:
    """Begins the wait of a step that calls no method."""
    match plan.run.steps[index].spec.kind:
        case StepKind.SLEEP:
            _begin_sleep(plan, index)
        case StepKind.SIGNAL:
            _begin_signal(plan, index)
        case StepKind.RUN_WORKFLOW:
            _begin_child_run(plan, index)


def wait(plan: Planner, index: int, for_what: Wait, payload: Payload | None = None) -> None:
    """Lets a step wait."""
    sequence, time = plan.stamp()
    plan.emit(ev.StepWaiting(sequence, time, index, for_what, payload))
    plan.decision.waiting.append(index)


def _begin_child_run(plan: Planner, index: int) -> None:
    """Begins a child run; one that is an iteration of a repeat with an interval sleeps before it."""
    step = plan.run.steps[index]
    if step.wait is None and step.queue_time is not None and step.queue_time > plan.stamp()[1]:
        wait(plan, index, Sleeping(step.queue_time))
        return
    if plan.run.depth >= MAX_RUN_DEPTH:
        message = f"runs run each other at most {MAX_RUN_DEPTH} deep"
        plan.fail_step(index, Failure(Code.RESOURCE_EXHAUSTED, "DELEGATION_LIMIT", message, Origin.ORCHESTRATOR))
        return
    found = plan.conditions.child_run(index, plan.now)
    if isinstance(found, Failure):
        plan.fail_step(index, found)
    else:
        wait(plan, index, *found)


def _begin_sleep(plan: Planner, index: int) -> None:
    until_time = plan.conditions.wake_time(index, max(plan.now, plan.run.time + 1))
    if isinstance(until_time, Failure):
        plan.fail_step(index, until_time)
    elif until_time >= step_expire_time(plan.run, index):
        message = "the sleep would end after the time of the step or the run: give the run more time, or sleep less"
        plan.fail_step(index, timeout_failure("DEADLINE_UNREACHABLE", message))
    else:
        wait(plan, index, Sleeping(until_time))


def _begin_signal(plan: Planner, index: int) -> None:
    step = plan.run.steps[index]
    assert step.spec.signal is not None
    name = step.spec.signal.name
    wait(plan, index, SignalAwaited(name, _expire_time(plan, index, step.spec.signal.timeout_us)))
    kept = plan.run.signals.get(name)
    if kept:
        plan.succeed_step(index, kept[0])


def begin_approval(plan: Planner, index: int) -> None:
    """Asks a person to decide on the request of a ready step."""
    step = plan.run.steps[index]
    approval, method = step.spec.approval, step.spec.targets[0].method
    assert approval is not None
    request = plan.conditions.request(index)
    if isinstance(request, Failure):
        plan.fail_step(index, request)
        return
    shown = request_hash(method, request.data)
    expire_time = _expire_time(plan, index, approval.timeout_us)
    sequence, time = plan.stamp()
    plan.emit(
        ev.ApprovalRequested(
            sequence, time, index, shown, expire_time, request, method, approval.approvers, approval.description
        )
    )
    plan.decision.waiting.append(index)


def _expire_time(plan: Planner, index: int, timeout_us: int | None) -> int:
    limit = step_expire_time(plan.run, index)
    return limit if timeout_us is None else min(limit, max(plan.now, plan.run.time + 1) + timeout_us)


def time_out(plan: Planner, index: int) -> None:
    """Looks whether a waiting step has waited long enough, or too long."""
    step = plan.run.steps[index]
    if isinstance(step.wait, Sleeping) and plan.now >= step.wait.until_time:
        if step.spec.kind is StepKind.SLEEP:
            plan.succeed_step(index, EMPTY)
        else:
            begin(plan, index)
    elif plan.now >= step_expire_time(plan.run, index):
        plan.fail_step(index, timeout_failure("STEP_TIMEOUT", "the step's time was over"))
    elif isinstance(step.wait, SignalAwaited) and plan.now >= step.wait.expire_time:
        plan.fail_step(index, timeout_failure("SIGNAL_TIMEOUT", f"no signal {step.wait.signal} came in time"))
    elif isinstance(step.wait, ApprovalAwaited) and plan.now >= step.wait.expire_time:
        plan.fail_step(index, timeout_failure("APPROVAL_EXPIRED", "nobody decided on the request in time"))


def signal(plan: Planner, given: Signal) -> None:
    """Keeps a signal, and gives it to the first step that waits for it."""
    run = plan.run
    if given.request_id and given.request_id in run.signal_request_ids:
        return
    if len(run.signals.get(given.signal, ())) >= MAX_KEPT_SIGNALS or not plan.has_room():
        return
    sequence, time = plan.stamp()
    plan.emit(ev.SignalReceived(sequence, time, given.signal, given.principal, given.request_id, given.payload))
    waiters = run.signal_waiters.get(given.signal)
    if waiters:
        plan.succeed_step(waiters[0], run.signals[given.signal][0])


def approve(plan: Planner, given: Decided) -> None:
    """Takes a person's decision, where it is on the very request that waits for one."""
    step = plan.run.steps[given.step]
    if not isinstance(step.wait, ApprovalAwaited) or step.wait.request_hash != given.request_hash:
        return
    if plan.now >= step.wait.expire_time:
        return
    sequence, time = plan.stamp()
    plan.emit(
        ev.ApprovalDecided(
            sequence, time, given.step, given.approved, given.principal, given.reason, given.request_hash
        )
    )
    if given.approved:
        plan.decision.queued.append(given.step)
        return
    message = cut_message(f"{given.principal} denied the request" + (f": {given.reason}" if given.reason else ""))
    plan.fail_step(given.step, Failure(Code.PERMISSION_DENIED, "APPROVAL_DENIED", message, Origin.ORCHESTRATOR))


def child_run_ended(plan: Planner, given: ChildRunEnded) -> None:
    """Ends a step with the end of its child run."""
    step = plan.run.steps[given.step]
    if not isinstance(step.wait, RunAwaited) or step.wait.run_id != given.run_id:
        return
    if given.failure is None:
        plan.succeed_step(given.step, given.payload or EMPTY)
        return
    failure = given.failure
    message = cut_message(f"run {given.run_id}: {failure.message}")
    plan.fail_step(
        given.step,
        Failure(failure.code, failure.reason, message, failure.origin, failure.details, "", failure.outcome_unknown),
    )
