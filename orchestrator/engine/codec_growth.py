"""The stored form of the rarer events: retries and failures, and how runs grow, wait and are taken back.

See codec.py, which has those of a plain step's life.
"""

from __future__ import annotations

from baton.v1 import event_pb2

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code
from orchestrator.domain.run import Run
from orchestrator.domain.states import EventKind
from orchestrator.domain.waits import (
    ApprovalAwaited,
    ItemsAwaited,
    IterationsAwaited,
    RunAwaited,
    SignalAwaited,
    Sleeping,
    StepsAwaited,
    Wait,
)
from orchestrator.domain.workflow import Delivery, FailureMatch, RetryPolicy, Target
from orchestrator.engine.messages import from_failure, from_timestamp, set_timestamp, to_failure

Encoded = tuple[str, int, Payload | None]
"""Step and attempt of a row, and its payload."""


def encode(event: Event, run: Run, message: event_pb2.RunEvent) -> Encoded:
    """Fills in an event and returns what stands beside it."""
    match event:
        case ev.DeliveryStarted() | ev.AttemptFailed() | ev.FallbackTaken() | ev.StepFailed():
            return _encode_failure(event, run, message)
        case ev.StepWaiting():
            _encode_wait(event.wait, message.step_waiting)
            return run.steps[event.step].spec.id, 0, event.payload
        case ev.ApprovalRequested():
            asked = message.approval_requested
            asked.request_hash, asked.method, asked.description = event.request_hash, event.method, event.description
            asked.approvers.extend(event.approvers)
            set_timestamp(asked.expire_time, event.expire_time)
            return run.steps[event.step].spec.id, 0, event.payload
        case ev.StepDelegated():
            _encode_delegated(event, run, message.step_delegated)
            return run.steps[event.step].spec.id, 0, event.payload
        case ev.AttemptSuspended():
            message.attempt_suspended.awaited.extend(_key(run, index) for index in event.awaited)
            message.attempt_suspended.SetInParent()
            return run.steps[event.step].spec.id, event.attempt, None
        case ev.ApprovalDecided():
            decided = message.approval_decided
            decided.approved, decided.principal, decided.reason = event.approved, event.principal, event.reason
            decided.request_hash = event.request_hash
            return run.steps[event.step].spec.id, 0, None
        case ev.IterationStarted():
            message.iteration_started.iteration = event.iteration
            set_timestamp(message.iteration_started.ready_time, event.ready_time)
            return run.steps[event.step].spec.id, 0, None
        case ev.CheckpointRecorded():
            message.checkpoint_recorded.SetInParent()
            return run.steps[event.step].spec.id, event.attempt, event.payload
        case ev.StepRetried():
            retried = message.step_retried
            retried.principal, retried.reason = event.principal, event.reason
            retried.reset.extend(run.steps[index].spec.id for index in event.reset)
            return run.steps[event.step].spec.id, 0, None
        case _:
            return "", 0, _encode_of_run(event, run, message)


def _encode_failure(
    event: ev.DeliveryStarted | ev.AttemptFailed | ev.FallbackTaken | ev.StepFailed,
    run: Run,
    message: event_pb2.RunEvent,
) -> Encoded:
    step = run.steps[event.step].spec.id
    match event:
        case ev.DeliveryStarted():
            started = message.delivery_started
            started.delivery, started.worker, started.address = event.delivery, event.worker, event.address
            set_timestamp(started.expire_time, event.expire_time)
            started.handed_over = event.handed_over
            return step, event.attempt, None
        case ev.AttemptFailed():
            message.attempt_failed.failure.CopyFrom(to_failure(event.failure))
            if event.retry_time is not None:
                set_timestamp(message.attempt_failed.retry_time, event.retry_time)
            return step, event.attempt, None
        case ev.FallbackTaken():
            message.fallback_taken.target, message.fallback_taken.method = event.target, event.method
            message.fallback_taken.failure.CopyFrom(to_failure(event.failure))
            return step, 0, None
        case ev.StepFailed():
            message.step_failed.failure.CopyFrom(to_failure(event.failure))
            message.step_failed.handled = event.handled
            if event.branch is not None:
                message.step_failed.branch = run.steps[event.branch].spec.id
            return step, event.attempt, None


def _encode_wait(wait: Wait, message: event_pb2.StepWaiting) -> None:
    match wait:
        case Sleeping():
            set_timestamp(message.sleeping.until_time, wait.until_time)
        case SignalAwaited():
            message.signal.signal = wait.signal
            set_timestamp(message.signal.expire_time, wait.expire_time)
        case ItemsAwaited():
            message.items.count = wait.count
            message.items.SetInParent()
        case IterationsAwaited():
            message.iterations.SetInParent()
        case RunAwaited():
            message.run.run_id, message.run.workflow, message.run.revision = wait.run_id, wait.workflow, wait.revision
        case StepsAwaited() | ApprovalAwaited():
            raise ValueError("this wait has an event of its own")


def _encode_delegated(event: ev.StepDelegated, run: Run, message: event_pb2.StepDelegated) -> None:
    message.parent, message.parent_attempt = run.steps[event.parent].spec.id, event.parent_attempt
    message.key, message.method = event.key, event.target.method
    message.contract_digest, message.detached = event.contract_digest, event.detached
    message.repeatable = event.target.repeatable
    message.at_most_once = event.delivery is Delivery.AT_MOST_ONCE
    message.attempt_timeout_us = event.target.attempt_timeout_us or 0
    message.step_timeout_us = event.step_timeout_us or 0
    retry, rule = event.target.retry, message.retry
    rule.codes.extend(sorted(int(code) for code in retry.retryable.codes))
    rule.reasons.extend(sorted(retry.retryable.reasons))
    rule.max_attempts, rule.backoff_multiplier, rule.jitter = retry.max_attempts, retry.backoff_multiplier, retry.jitter
    rule.initial_backoff_us, rule.max_backoff_us = retry.initial_backoff_us, retry.max_backoff_us


def _key(run: Run, index: int) -> str:
    return run.steps[index].spec.id.rpartition("/")[2]


def _encode_of_run(event: Event, run: Run, message: event_pb2.RunEvent) -> Payload | None:
    match event:
        case ev.SignalReceived():
            received = message.signal_received
            received.signal, received.principal, received.request_id = event.signal, event.principal, event.request_id
            return event.payload
        case ev.RunUndoing():
            undoing = message.run_undoing
            if event.failure is not None:
                undoing.failure.CopyFrom(to_failure(event.failure))
            undoing.reason, undoing.principal = event.reason, event.principal
            undoing.steps.extend(run.steps[index].spec.id for index in event.steps)
        case ev.RunReopened():
            reopened = message.run_reopened
            reopened.round, reopened.revision = event.round, event.revision
            reopened.principal, reopened.reason = event.principal, event.reason
            reopened.reset.extend(event.reset)
            set_timestamp(reopened.expire_time, event.expire_time)
            return event.payload
        case ev.RunPaused():
            message.run_paused.principal, message.run_paused.reason = event.principal, event.reason
            message.run_paused.SetInParent()
        case ev.RunResumed():
            message.run_resumed.principal = event.principal
            message.run_resumed.SetInParent()
        case _:
            raise ValueError(f"no stored form of {event.kind.name}")
    return None


def decode(kind: EventKind, message: event_pb2.RunEvent, index: int, payload: Payload | None, run: Run) -> Event:
    """Turns the message of one of these events back; `index` is its step's."""
    sequence, time = message.sequence, from_timestamp(message.time)
    match kind:
        case EventKind.STEP_WAITING:
            return ev.StepWaiting(sequence, time, index, _decode_wait(message.step_waiting), payload)
        case EventKind.APPROVAL_REQUESTED:
            asked = message.approval_requested
            expire_time = from_timestamp(asked.expire_time)
            return ev.ApprovalRequested(
                sequence,
                time,
                index,
                asked.request_hash,
                expire_time,
                _required(payload),
                asked.method,
                tuple(asked.approvers),
                asked.description,
            )
        case EventKind.STEP_DELEGATED:
            return _decode_delegated(message, index, _required(payload), run)
        case EventKind.ATTEMPT_SUSPENDED:
            awaited = tuple(run.indexes[f"{message.step}/{key}"] for key in message.attempt_suspended.awaited)
            return ev.AttemptSuspended(sequence, time, index, message.attempt, awaited)
        case EventKind.APPROVAL_DECIDED:
            decided = message.approval_decided
            return ev.ApprovalDecided(
                sequence,
                time,
                index,
                decided.approved,
                decided.principal,
                decided.reason,
                decided.request_hash,
            )
        case EventKind.ITERATION_STARTED:
            started = message.iteration_started
            return ev.IterationStarted(sequence, time, index, started.iteration, from_timestamp(started.ready_time))
        case EventKind.CHECKPOINT_RECORDED:
            return ev.CheckpointRecorded(sequence, time, index, message.attempt, _required(payload))
        case EventKind.STEP_RETRIED:
            retried = message.step_retried
            reset = tuple(run.indexes[step] for step in retried.reset)
            return ev.StepRetried(sequence, time, index, reset, retried.principal, retried.reason)
        case _:
            return _decode_of_run(kind, message, payload, run)


def _decode_of_run(kind: EventKind, message: event_pb2.RunEvent, payload: Payload | None, run: Run) -> Event:
    sequence, time = message.sequence, from_timestamp(message.time)
    match kind:
        case EventKind.SIGNAL_RECEIVED:
            received = message.signal_received
            return ev.SignalReceived(
                sequence, time, received.signal, received.principal, received.request_id, _required(payload)
            )
        case EventKind.RUN_UNDOING:
            undoing = message.run_undoing
            return ev.RunUndoing(
                sequence,
                time,
                from_failure(undoing.failure) if undoing.HasField("failure") else None,
                undoing.reason,
                undoing.principal,
                tuple(run.indexes[step] for step in undoing.steps),
            )
        case EventKind.RUN_REOPENED:
            reopened = message.run_reopened
            return ev.RunReopened(
                sequence,
                time,
                reopened.round,
                tuple(reopened.reset),
                reopened.revision,
                from_timestamp(reopened.expire_time),
                reopened.principal,
                reopened.reason,
                payload,
            )
        case EventKind.RUN_PAUSED:
            return ev.RunPaused(sequence, time, message.run_paused.principal, message.run_paused.reason)
        case EventKind.RUN_RESUMED:
            return ev.RunResumed(sequence, time, message.run_resumed.principal)
        case _:
            raise ValueError(f"no stored form of {kind.name}")


def _required(payload: Payload | None) -> Payload:
    # A journal that is read without payloads has none; the type is of no use without them.
    return payload if payload is not None else Payload("", b"")


def _decode_wait(message: event_pb2.StepWaiting) -> Wait:
    match message.WhichOneof("kind"):
        case "sleeping":
            return Sleeping(from_timestamp(message.sleeping.until_time))
        case "signal":
            return SignalAwaited(message.signal.signal, from_timestamp(message.signal.expire_time))
        case "items":
            return ItemsAwaited(message.items.count)
        case "iterations":
            return IterationsAwaited()
        case "run":
            return RunAwaited(message.run.run_id, message.run.workflow, message.run.revision)
    raise ValueError("a wait of no kind")


def _decode_delegated(message: event_pb2.RunEvent, index: int, payload: Payload, run: Run) -> ev.StepDelegated:
    told = message.step_delegated
    rule = told.retry
    retry = RetryPolicy(
        FailureMatch(frozenset(Code(code) for code in rule.codes), frozenset(rule.reasons)),
        rule.max_attempts,
        rule.initial_backoff_us,
        rule.max_backoff_us,
        rule.backoff_multiplier,
        rule.jitter,
    )
    return ev.StepDelegated(
        message.sequence,
        from_timestamp(message.time),
        index,
        run.indexes[told.parent],
        told.parent_attempt,
        told.key,
        Target(told.method, retry, told.repeatable, told.attempt_timeout_us or None),
        told.contract_digest,
        told.detached,
        Delivery.AT_MOST_ONCE if told.at_most_once else Delivery.AT_LEAST_ONCE,
        told.step_timeout_us or None,
        payload,
    )
