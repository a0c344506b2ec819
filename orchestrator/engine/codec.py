"""Events to and from their stored form: a serialized baton.v1.RunEvent as header, and the payload beside it.

The stored form is the public message, so that what a watcher sees is what the journal holds. Fields may be added to it;
`domain.events.JOURNAL_FORMAT` rises when an old replica could not read what a new one writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.v1 import event_pb2

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.run import Run
from orchestrator.domain.states import EventKind
from orchestrator.engine import codec_growth
from orchestrator.engine.messages import (
    from_failure,
    from_timestamp,
    set_any,
    set_timestamp,
    to_failure,
)
from orchestrator.engine.ports import JournalRow


class UnknownEvent(Exception):
    """The journal holds an event of a kind that this code does not know. It is never skipped."""


def encode(event: Event, run: Run) -> JournalRow:
    """Turns an event into its row.

    Submessages are filled in where they are: one that is made apart and copied in costs twice as much.
    """
    message, steps = event_pb2.RunEvent(sequence=event.sequence), run.steps
    set_timestamp(message.time, event.time)
    step, attempt, payload = "", 0, None
    match event:
        case ev.AttemptStarted():
            step, attempt = steps[event.step].spec.id, event.attempt
            started = message.attempt_started
            started.target, started.method = event.target, event.method
            started.worker, started.address = event.worker, event.address
            set_timestamp(started.ready_time, event.ready_time)
            set_timestamp(started.expire_time, event.expire_time)
            if event.waited_for:
                started.waited_for = int(event.waited_for)  # type: ignore[assignment]
        case ev.StepSucceeded():
            step, attempt, payload = steps[event.step].spec.id, event.attempt, event.payload
            message.step_succeeded.SetInParent()
            if event.substituted_by:
                message.step_succeeded.substituted_by = event.substituted_by
        case ev.RunSubmitted():
            payload = event.payload
            _encode_submitted(event, message.run_submitted)
        case ev.RunSucceeded():
            payload = event.payload
            message.run_succeeded.SetInParent()
        case ev.StepSkipped():
            step = steps[event.step].spec.id
            message.step_skipped.reason = int(event.reason)  # type: ignore[assignment]
            message.step_skipped.skipped_by = event.skipped_by
        case ev.StepCancelled():
            step, attempt = steps[event.step].spec.id, event.attempt
            message.step_cancelled.SetInParent()
        case ev.RunFailed():
            message.run_failed.failure.CopyFrom(to_failure(event.failure))
        case ev.RunCancelled():
            message.run_cancelled.reason = event.reason
            message.run_cancelled.principal = event.principal
        case _:
            step, attempt, payload = codec_growth.encode(event, run, message)
    if step:
        message.step, message.attempt = step, attempt
    return JournalRow(
        event.sequence,
        event.kind,
        step,
        attempt,
        event.time,
        message.SerializeToString(),
        payload.data if payload is not None else None,
        payload.type_name if payload is not None else "",
    )


def _encode_submitted(event: ev.RunSubmitted, submitted: event_pb2.RunSubmitted) -> None:
    submitted.workflow, submitted.revision = event.workflow, event.revision
    submitted.principal, submitted.channel, submitted.workspace = event.principal, event.channel, event.workspace
    submitted.traceparent, submitted.request_id = event.traceparent, event.request_id
    set_timestamp(submitted.expire_time, event.expire_time)
    submitted.priority = event.priority
    submitted.labels.extend(event.labels)
    submitted.attributes.update(event.attributes)
    if event.parent_run_id:
        submitted.parent_run_id, submitted.parent_step = event.parent_run_id, event.parent_step
        submitted.depth = event.depth
    if event.forked_run_id:
        submitted.forked_run_id, submitted.forked_step = event.forked_run_id, event.forked_step


def decode(row: JournalRow, run: Run) -> Event:
    """Turns the row that follows in a run back into its event. Errors: UnknownEvent."""
    try:
        kind = EventKind(row.kind)
    except ValueError:
        raise UnknownEvent(f"event kind {row.kind}") from None
    message = event_pb2.RunEvent.FromString(row.header)
    payload = Payload(row.payload_type, row.payload) if row.payload is not None else None
    sequence, time = message.sequence, from_timestamp(message.time)
    index = run.indexes.get(message.step, len(run.steps)) if message.step else -1
    match kind:
        case EventKind.RUN_SUBMITTED:
            return _decode_submitted(message, payload)
        case EventKind.ATTEMPT_STARTED:
            started = message.attempt_started
            return ev.AttemptStarted(
                sequence,
                time,
                index,
                message.attempt,
                started.target,
                started.method,
                started.worker,
                started.address,
                from_timestamp(started.ready_time),
                from_timestamp(started.expire_time),
                started.waited_for,
            )
        case EventKind.DELIVERY_STARTED:
            return _decode_delivery(message, time, index)
        case EventKind.ATTEMPT_FAILED:
            failed = message.attempt_failed
            retry_time = from_timestamp(failed.retry_time) if failed.HasField("retry_time") else None
            return ev.AttemptFailed(sequence, time, index, message.attempt, from_failure(failed.failure), retry_time)
        case EventKind.FALLBACK_TAKEN:
            taken = message.fallback_taken
            return ev.FallbackTaken(sequence, time, index, taken.target, taken.method, from_failure(taken.failure))
        case EventKind.STEP_SUCCEEDED:
            if payload is None and row.payload_type:
                payload = Payload(row.payload_type, b"")
            return ev.StepSucceeded(
                sequence, time, index, message.attempt, payload, message.step_succeeded.substituted_by
            )
        case EventKind.STEP_FAILED:
            ended = message.step_failed
            branch = run.indexes[ended.branch] if ended.branch else None
            return ev.StepFailed(
                sequence, time, index, message.attempt, from_failure(ended.failure), ended.handled, branch
            )
        case EventKind.STEP_SKIPPED:
            skipped = message.step_skipped
            return ev.StepSkipped(sequence, time, index, ev.SkipReason(skipped.reason), skipped.skipped_by)
        case EventKind.STEP_CANCELLED:
            return ev.StepCancelled(sequence, time, index, message.attempt)
        case EventKind.RUN_SUCCEEDED:
            return ev.RunSucceeded(sequence, time, payload)
        case EventKind.RUN_FAILED:
            return ev.RunFailed(sequence, time, from_failure(message.run_failed.failure))
        case EventKind.RUN_CANCELLED:
            return ev.RunCancelled(sequence, time, message.run_cancelled.reason, message.run_cancelled.principal)
        case _:
            return codec_growth.decode(kind, message, index, payload, run)


def _decode_submitted(message: event_pb2.RunEvent, payload: Payload | None) -> ev.RunSubmitted:
    submitted = message.run_submitted
    return ev.RunSubmitted(
        message.sequence,
        from_timestamp(message.time),
        submitted.workflow,
        submitted.revision,
        from_timestamp(submitted.expire_time),
        submitted.principal,
        submitted.channel,
        submitted.workspace,
        tuple(submitted.labels),
        dict(submitted.attributes),
        submitted.traceparent,
        submitted.request_id,
        payload,
        submitted.parent_run_id,
        submitted.parent_step,
        submitted.depth,
        submitted.forked_run_id,
        submitted.forked_step,
        submitted.priority,
    )


def _decode_delivery(message: event_pb2.RunEvent, time: int, index: int) -> ev.DeliveryStarted:
    sent = message.delivery_started
    return ev.DeliveryStarted(
        message.sequence,
        time,
        index,
        message.attempt,
        sent.delivery,
        sent.worker,
        sent.address,
        from_timestamp(sent.expire_time),
        sent.handed_over,
    )


def to_message(row: JournalRow, payloads: bool) -> event_pb2.RunEvent:
    """Turns a row into the message that a caller is shown."""
    message = event_pb2.RunEvent.FromString(row.header)
    if payloads and row.payload is not None:
        set_any(message.payload, Payload(row.payload_type, row.payload))
    return message


ROW_BYTES = 64
"""What a row takes in a batch beside its header and payload, roughly."""


def total_bytes(rows: Sequence[JournalRow]) -> int:
    """Adds up what rows take in a batch."""
    return sum(len(row.header) + (len(row.payload) if row.payload is not None else 0) + ROW_BYTES for row in rows)
