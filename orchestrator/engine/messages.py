"""Values of the domain to and from the messages that carry them: instants, payloads, failures."""

from __future__ import annotations

from baton.v1 import failure_pb2
from google.protobuf import any_pb2, timestamp_pb2

from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin

TYPE_PREFIX = "type.googleapis.com/"


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
