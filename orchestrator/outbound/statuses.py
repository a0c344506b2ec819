"""What a worker's gRPC status says, as a Failure. No calls are made here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from orchestrator.domain.failures import Code, Failure, Origin, cut_message

DETAILS_LIMIT_BYTES = 16 * 1024
"""Total of a failure's details that is kept; more are left out."""

RETRY_DELAY_LIMIT_US = 3_600_000_000
"""Longest wait that a worker's RetryInfo can ask for."""

UNKNOWN_OUTCOME_CODES = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL}
)
"""Codes that gRPC itself gives too, so that without details they do not tell what the method did."""

_DETAILS_KEY = "grpc-status-details-bin"
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")

# Texts by which grpc tells of a lost connection, and of an answer that it did not take. They decide only what a failure
# is called, never whether its outcome is known.
_LOST_CONNECTION = re.compile(
    r"Stream removed|Socket closed|Connection reset|Broken pipe|GOAWAY|failed to connect|recvmsg|sendmsg|"
    r"keepalive|Endpoint closing|Transport closed|RST_STREAM|connection attempt|tcp handshaker",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max|received metadata size exceeds", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A status other than OK, as it came. `metadata` are the trailers; `timed_out`: the call's own time was over."""

    code: Code
    text: str
    metadata: tuple[tuple[str, str | bytes], ...]
    address: str
    deadline_seconds: float
    timed_out: bool


def to_failure(status: WorkerStatus) -> tuple[Failure, int | None]:
    """Returns the failure that `status` means, and the wait in microseconds that its RetryInfo asks for, if any."""
    rich = _rich_status(status)
    if rich is not None:
        return _worker_failure(status, rich.details), _retry_delay_us(rich)
    if status.code is Code.DEADLINE_EXCEEDED and status.timed_out:
        return timeout_failure(status.deadline_seconds, outcome_unknown=True), None
    if status.code is Code.RESOURCE_EXHAUSTED and _TOO_LARGE.search(status.text):
        return _too_large_failure(status), None
    if status.code is Code.UNAVAILABLE and _LOST_CONNECTION.search(status.text):
        return lost_failure(status.address), None
    return _worker_failure(status, ()), None


def status_failure(status: Status, deadline_seconds: float, *, timed_out: bool) -> tuple[Failure, int | None]:
    """Returns what `to_failure` does, of a status that came in a message and not as the end of a call."""
    if status.code == Code.DEADLINE_EXCEEDED and timed_out and not status.details:
        return timeout_failure(deadline_seconds, outcome_unknown=True), None
    worker_status = WorkerStatus(Code(status.code), status.message, (), "", deadline_seconds, timed_out)
    return _worker_failure(worker_status, status.details), _retry_delay_us(status)


def is_against_circuit(failure: Failure) -> bool:
    """Tells whether the failure speaks against the endpoint, and not only against the call.

    UNAVAILABLE and DEADLINE_EXCEEDED do, whoever gave them: a lost connection, a timeout, a proxy in front of the
    worker, or the worker that says so of itself. With details they are the worker's considered answer, and it works.
    UNKNOWN and INTERNAL never do: they are what a fault in one method looks like, and must not stop the others.
    """
    if failure.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        return False
    return failure.origin is not Origin.WORKER or failure.outcome_unknown


def timeout_failure(deadline_seconds: float, *, outcome_unknown: bool) -> Failure:
    """Returns the failure of a call that was not answered in time."""
    return Failure(
        code=Code.DEADLINE_EXCEEDED,
        reason="ATTEMPT_TIMEOUT",
        message=f"The worker did not answer within {max(deadline_seconds, 0.0):.3g} s.",
        origin=Origin.TIMEOUT,
        outcome_unknown=outcome_unknown,
    )


def lost_failure(address: str) -> Failure:
    """Returns the failure of a call whose connection was lost before the answer came."""
    return Failure(
        code=Code.UNAVAILABLE,
        reason=Code.UNAVAILABLE.name,
        message=f"The connection to {address} was lost before the answer came.",
        origin=Origin.TRANSPORT,
        outcome_unknown=True,
    )


def connect_failure(message: str) -> Failure:
    """Returns the failure of a call that was not made because the worker could not be reached."""
    return Failure(code=Code.UNAVAILABLE, reason="CONNECT_FAILED", message=message, origin=Origin.TRANSPORT)


def _too_large_failure(status: WorkerStatus) -> Failure:
    return Failure(
        code=Code.RESOURCE_EXHAUSTED,
        reason="PAYLOAD_TOO_LARGE",
        message=f"The answer of {status.address} is larger than the limit and was not taken.",
        origin=Origin.ORCHESTRATOR,
        outcome_unknown=True,
    )


def _worker_failure(status: WorkerStatus, details: Iterable[Any]) -> Failure:
    parts: list[bytes] = []
    reason = ""
    for detail in details:
        reason = reason or _reason(detail)
        parts.append(detail.SerializeToString())
    return Failure(
        code=status.code,
        reason=reason or status.code.name,
        message=cut_message(status.text) or f"The worker answered {status.code.name} without a text.",
        origin=Origin.WORKER,
        details=tuple(parts) if sum(map(len, parts)) <= DETAILS_LIMIT_BYTES else (),
        outcome_unknown=not parts and status.code in UNKNOWN_OUTCOME_CODES,
    )


def _rich_status(status: WorkerStatus) -> Status | None:
    """Returns the google.rpc.Status among the trailers if it has details and speaks of the same code."""
    for key, value in status.metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                rich = Status.FromString(value)
            except DecodeError:
                return None
            return rich if rich.details and rich.code == status.code else None
    return None


def _reason(detail: Any) -> str:
    info = ErrorInfo()
    if not detail.Is(ErrorInfo.DESCRIPTOR) or not _unpack(detail, info):
        return ""
    return info.reason if _REASON.fullmatch(info.reason) else ""


def _retry_delay_us(rich: Status) -> int | None:
    info = RetryInfo()
    for detail in rich.details:
        if detail.Is(RetryInfo.DESCRIPTOR) and _unpack(detail, info) and info.HasField("retry_delay"):
            delay_us: int = info.retry_delay.seconds * 1_000_000 + info.retry_delay.nanos // 1_000
            return min(max(delay_us, 0), RETRY_DELAY_LIMIT_US)
    return None


def _unpack(detail: Any, into: ErrorInfo | RetryInfo) -> bool:
    try:
        return detail.Unpack(into)
    except DecodeError:
        return False
