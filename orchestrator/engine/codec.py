"""Events to and from their stored form: a serialized baton.v1.RunEvent as header, and the payload beside it.

The stored form is the public message, so that what a watcher sees is what the journal holds. Fields may be added to it;
`domain.events.JOURNAL_FORMAT` rises when an old replica could not read what a new one writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.v1 import event_pb2, failure_pb2
from google.protobuf import any_pb2, timestamp_pb2

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.states import EventKind
from orchestrator.domain.workflow import Graph
from orchestrator.engine.ports import JournalRow

TYPE_PREFIX = "type.googleapis.com/"


class UnknownEvent(Exception):
    """The journal holds an event of a kind that this code does not know. It is never skipped."""


def to_timestamp(instant: int) -> timestamp_pb2.Timestamp:
    """Turns microseconds since the epoch into a Timestamp."""
    return timestamp_pb2.Timestamp(seconds=instant // 1_000_000, nanos=instant % 1_000_000 * 1_000)


def set_timestamp(timestamp: timestamp_pb2.Timestamp, instant: int) -> None:
    """Sets a Timestamp, such as a field of a message, to microseconds since the epoch."""
    timestamp.seconds, micros = divmod(instant, 1_000_000)
    timestamp.nanos = micros * 1_000


def from_timestamp(timestamp: timestamp_pb2.Timestamp) -> int:
    """Turns a Timestamp into microseconds since the epoch."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1_000


def to_any(payload: Payload) -> any_pb2.Any:
    """Turns a payload into an Any."""
    return any_pb2.Any(type_url=TYPE_PREFIX + payload.type_name, value=payload.data)


def set_any(message: any_pb2.Any, payload: Payload) -> None:
    """Sets an Any, such as a field of a message, to a payload."""
    message.type_url, message.value = TYPE_PREFIX + payload.type_name, payload.data


def to_failure(failure: Failure) -> failure_pb2.Failure:
    """Turns a failure into its message."""
    return failure_pb2.Failure(
        code=int(failure.code),
        reason=failure.reason,
        message=failure.message,
        origin=int(failure.origin),  # type: ignore[arg-type]
        details=[any_pb2.Any.FromString(detail) for detail in failure.details],
        step=failure.step,
        outcome_unknown=failure.outcome_unknown,
    )


def from_failure(message: failure_pb2.Failure) -> Failure:
    """Turns a message into a failure."""
    return Failure(
        Code(message.code),
        message.reason,
        message.message,
        Origin(message.origin),
        tuple(detail.SerializeToString() for detail in message.details),
        message.step,
        message.outcome_unknown,
    )


def encode(event: Event, graph: Graph) -> JournalRow:
    """Turns an event into its row.

    Submessages are filled in where they are: one that is made apart and copied in costs twice as much.
    """
    message = event_pb2.RunEvent(sequence=event.sequence)
    set_timestamp(message.time, event.time)
    step, attempt, payload = "", 0, None
    match event:
        case ev.AttemptStarted():
            step, attempt = graph.steps[event.step].id, event.attempt
            started = message.attempt_started
            started.target, started.method = event.target, event.method
            started.worker, started.address = event.worker, event.address
            set_timestamp(started.ready_time, event.ready_time)
            set_timestamp(started.expire_time, event.expire_time)
        case ev.StepSucceeded():
            step, attempt, payload = graph.steps[event.step].id, event.attempt, event.payload
            message.step_succeeded.SetInParent()
        case ev.RunSubmitted():
            payload = event.payload
            _encode_submitted(event, message.run_submitted)
        case ev.RunSucceeded():
            payload = event.payload
            message.run_succeeded.SetInParent()
        case ev.StepSkipped():
            step = graph.steps[event.step].id
            message.step_skipped.reason = int(event.reason)  # type: ignore[assignment]
        case ev.StepCancelled():
            step, attempt = graph.steps[event.step].id, event.attempt
            message.step_cancelled.SetInParent()
        case ev.RunFailed():
            message.run_failed.failure.CopyFrom(to_failure(event.failure))
        case ev.RunCancelled():
            message.run_cancelled.reason = event.reason
            message.run_cancelled.principal = event.principal
        case _:
            step, attempt = graph.steps[event.step].id, _encode_rare(event, graph, message)
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
    submitted.labels.extend(event.labels)
    submitted.attributes.update(event.attributes)


def _encode_rare(
    event: ev.DeliveryStarted | ev.AttemptFailed | ev.FallbackTaken | ev.StepFailed,
    graph: Graph,
    message: event_pb2.RunEvent,
) -> int:
    """Fills in what belongs to retries and failures and returns the attempt."""
    match event:
        case ev.DeliveryStarted():
            started = message.delivery_started
            started.delivery, started.worker, started.address = event.delivery, event.worker, event.address
            started.expire_time.CopyFrom(to_timestamp(event.expire_time))
            return event.attempt
        case ev.AttemptFailed():
            message.attempt_failed.failure.CopyFrom(to_failure(event.failure))
            if event.retry_time is not None:
                message.attempt_failed.retry_time.CopyFrom(to_timestamp(event.retry_time))
            return event.attempt
        case ev.FallbackTaken():
            message.fallback_taken.target, message.fallback_taken.method = event.target, event.method
            message.fallback_taken.failure.CopyFrom(to_failure(event.failure))
            return 0
        case ev.StepFailed():
            message.step_failed.failure.CopyFrom(to_failure(event.failure))
            message.step_failed.handled = event.handled
            if event.branch is not None:
                message.step_failed.branch = graph.steps[event.branch].id
            return event.attempt


def decode(row: JournalRow, step_indexes: dict[str, int]) -> Event:
    """Turns a row back into its event. Errors: UnknownEvent."""
    try:
        kind = EventKind(row.kind)
    except ValueError:
        raise UnknownEvent(f"event kind {row.kind}") from None
    message = event_pb2.RunEvent.FromString(row.header)
    payload = Payload(row.payload_type, row.payload) if row.payload is not None else None
    sequence, time = message.sequence, from_timestamp(message.time)
    index = step_indexes[message.step] if message.step else -1
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
            )
        case EventKind.DELIVERY_STARTED:
            sent = message.delivery_started
            return ev.DeliveryStarted(
                sequence,
                time,
                index,
                message.attempt,
                sent.delivery,
                sent.worker,
                sent.address,
                from_timestamp(sent.expire_time),
            )
        case EventKind.ATTEMPT_FAILED:
            failed = message.attempt_failed
            retry_time = from_timestamp(failed.retry_time) if failed.HasField("retry_time") else None
            return ev.AttemptFailed(sequence, time, index, message.attempt, from_failure(failed.failure), retry_time)
        case EventKind.FALLBACK_TAKEN:
            taken = message.fallback_taken
            return ev.FallbackTaken(sequence, time, index, taken.target, taken.method, from_failure(taken.failure))
        case EventKind.STEP_SUCCEEDED:
            return ev.StepSucceeded(sequence, time, index, message.attempt, payload or Payload(row.payload_type, b""))
        case EventKind.STEP_FAILED:
            ended = message.step_failed
            branch = step_indexes[ended.branch] if ended.branch else None
            return ev.StepFailed(
                sequence, time, index, message.attempt, from_failure(ended.failure), ended.handled, branch
            )
        case EventKind.STEP_SKIPPED:
            return ev.StepSkipped(sequence, time, index, ev.SkipReason(message.step_skipped.reason))
        case EventKind.STEP_CANCELLED:
            return ev.StepCancelled(sequence, time, index, message.attempt)
        case EventKind.RUN_SUCCEEDED:
            return ev.RunSucceeded(sequence, time, payload)
        case EventKind.RUN_FAILED:
            return ev.RunFailed(sequence, time, from_failure(message.run_failed.failure))
        case EventKind.RUN_CANCELLED:
            return ev.RunCancelled(sequence, time, message.run_cancelled.reason, message.run_cancelled.principal)


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
    )


def to_message(row: JournalRow, payloads: bool) -> event_pb2.RunEvent:
    """Turns a row into the message that a caller is shown."""
    message = event_pb2.RunEvent.FromString(row.header)
    if payloads and row.payload is not None:
        set_any(message.payload, Payload(row.payload_type, row.payload))
    return message


def indexes(graph: Graph) -> dict[str, int]:
    """Maps the ids of a graph's steps to their indexes."""
    return {step.id: step.index for step in graph.steps}


def total_bytes(rows: Sequence[JournalRow]) -> int:
    """Adds up what rows take in a batch."""
    return sum(len(row.header) + (len(row.payload) if row.payload is not None else 0) + 64 for row in rows)
