"""Errors on the wire: the one table from reasons to gRPC codes, and errors as google.rpc.Status.

No text of a foreign exception may enter here: what is not a BatonError is told as INTERNAL with an id for the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from uuid import uuid4

import grpc
from baton.v1.contract_report_pb2 import ContractReport
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from orchestrator.domain.errors import BatonError, ContractBreaksWorkflows, FieldFault

ERROR_DOMAIN = "baton"
"""`domain` of every ErrorInfo."""

STATUS_LIMIT_BYTES = 4096
"""Size of a google.rpc.Status. It travels in the trailers, which clients refuse above 8 KiB, encoded in up to 4/3 of
its size and beside its message once more."""

MESSAGE_LIMIT_BYTES = 800
"""Size of a status message, which travels percent-encoded."""

METADATA_LIMIT = 16
METADATA_VALUE_LIMIT = 256
"""Entries of ErrorInfo's metadata, and characters of each."""

CODES: Mapping[str, grpc.StatusCode] = {
    "INVALID_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_FILTER": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_CURSOR": grpc.StatusCode.INVALID_ARGUMENT,
    "CURSOR_EXPIRED": grpc.StatusCode.OUT_OF_RANGE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "DATABASE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "OWNER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "FORWARDING_REFUSED": grpc.StatusCode.UNAUTHENTICATED,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "TOO_MANY_REQUESTS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_READS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "WATCH_TOO_SLOW": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_RUNS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "PAYLOAD_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "WORKER_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "WORKER_UNREACHABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "REFLECTION_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "INVALID_CONTRACT": grpc.StatusCode.INVALID_ARGUMENT,
    "CONTRACT_BREAKS_WORKFLOWS": grpc.StatusCode.FAILED_PRECONDITION,
    "WORKFLOW_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "REVISION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "WORKFLOW_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "RUN_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "RUN_UNREADABLE": grpc.StatusCode.DATA_LOSS,
    "RUN_ENDED": grpc.StatusCode.FAILED_PRECONDITION,
    "INPUT_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "STEP_TOKEN_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "STEP_NOT_RUNNING": grpc.StatusCode.FAILED_PRECONDITION,
    "METHOD_NOT_SERVED": grpc.StatusCode.NOT_FOUND,
    "DELEGATION_CONFLICT": grpc.StatusCode.ALREADY_EXISTS,
    "DELEGATION_LIMIT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SIGNAL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "SIGNAL_LIMIT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "APPROVAL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "APPROVAL_CHANGED": grpc.StatusCode.FAILED_PRECONDITION,
    "APPROVER_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
    "RUN_ACTIVE": grpc.StatusCode.FAILED_PRECONDITION,
    "RUN_SUCCEEDED": grpc.StatusCode.FAILED_PRECONDITION,
    "CHILD_RUN": grpc.StatusCode.FAILED_PRECONDITION,
    "STEP_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STEP_NOT_MENDABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "STEPS_IN_THE_WAY": grpc.StatusCode.FAILED_PRECONDITION,
    "REVISION_INCOMPATIBLE": grpc.StatusCode.FAILED_PRECONDITION,
    "SUBSTITUTE_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "OUTPUT_NEEDED": grpc.StatusCode.FAILED_PRECONDITION,
    "MEND_LIMIT": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SCHEDULE_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "INVALID_SCHEDULE": grpc.StatusCode.INVALID_ARGUMENT,
    "TOO_MANY_SCHEDULES": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "LIMIT_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "NAMESPACE_QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TOO_MANY_LIMITS": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""The gRPC code of each reason in baton.v1.ErrorReason that a call can be answered with."""

DEFAULT_RETRY_DELAY_SECONDS: Mapping[str, float] = {
    "DATABASE_UNAVAILABLE": 1.0,
    "OWNER_UNAVAILABLE": 1.0,
    "SHUTTING_DOWN": 1.0,
    "TOO_MANY_REQUESTS": 1.0,
    "TOO_MANY_READS": 1.0,
    "WATCH_TOO_SLOW": 1.0,
    "TOO_MANY_RUNS": 1.0,
    "NAMESPACE_QUEUE_FULL": 1.0,
}
"""RetryInfo of the reasons that always carry one, where the error itself does not say."""


def is_expected(error: BaseException) -> bool:
    """Tells whether `error` may be told to the caller as it is."""
    return isinstance(error, BatonError) and error.reason in CODES and error.reason != "INTERNAL"


def code_of(error: BaseException) -> int:
    """Returns the number of the gRPC code that `error` leads to."""
    if isinstance(error, asyncio.CancelledError):
        return number_of(grpc.StatusCode.CANCELLED)
    if isinstance(error, BatonError) and is_expected(error):
        return number_of(CODES[error.reason])
    return number_of(grpc.StatusCode.INTERNAL)


def number_of(code: grpc.StatusCode) -> int:
    """Returns the number of a gRPC code."""
    value: tuple[int, str] = code.value
    return value[0]


def new_error_id() -> str:
    """Makes the id under which an INTERNAL error is found in the log."""
    return uuid4().hex


def internal_error(error_id: str) -> BatonError:
    """Makes the error that stands for an exception nobody foresaw."""
    return BatonError("internal error", metadata={"error_id": error_id})


def to_status(error: BatonError) -> Status:
    """Returns the status of an error: ErrorInfo, a BadRequest where it has faults, RetryInfo where waiting helps.

    Faults that do not fit STATUS_LIMIT_BYTES are left out, and `faults_left_out` in the metadata counts them; so are
    broken workflows of a ContractReport, which counts them itself.
    """
    status = Status(code=number_of(CODES[error.reason]), message=cut_utf8(error.message, MESSAGE_LIMIT_BYTES))
    info = ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    for key, value in list(error.metadata.items())[:METADATA_LIMIT]:
        info.metadata[key] = value[:METADATA_VALUE_LIMIT]
    delay = error.retry_delay_seconds
    if delay is None:
        delay = DEFAULT_RETRY_DELAY_SECONDS.get(error.reason)
    after: list[Message] = []
    if delay is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(max(delay, 0.0) * 1_000_000_000))
        after.append(retry)
    room = STATUS_LIMIT_BYTES - status.ByteSize() - sum(_packed(each).ByteSize() + 4 for each in (info, *after)) - 96
    bad_request = _bad_request(error.faults, room)
    left_out = len(error.faults) - len(bad_request.field_violations)
    if left_out:
        info.metadata["faults_left_out"] = str(left_out)
    details = [info, bad_request, *after] if error.faults else [info, *after]
    if isinstance(error, ContractBreaksWorkflows) and isinstance(error.report, ContractReport):
        details.append(_cut_report(error.report, room))
    status.details.extend(_packed(each) for each in details)
    return status


def _bad_request(faults: Sequence[FieldFault], room: int) -> BadRequest:
    """Takes as many faults as `room` bytes hold, in their order."""
    bad_request = BadRequest()
    for fault in faults:
        violation = BadRequest.FieldViolation(
            field=cut_utf8(fault.path, 512), description=cut_utf8(fault.message, 1024), reason=fault.reason
        )
        room -= violation.ByteSize() + 4
        if room < 0:
            break
        bad_request.field_violations.append(violation)
    return bad_request


def _cut_report(report: ContractReport, room: int) -> ContractReport:
    """Takes as many broken revisions, each with as many violations, as `room` bytes hold, in their order."""
    cut = ContractReport()
    cut.CopyFrom(report)
    del cut.broken[:]
    for broken in report.broken:
        taken = cut.broken.add()
        taken.CopyFrom(broken)
        del taken.violations[:]
        if cut.ByteSize() > room:
            del cut.broken[-1]
            break
        for violation in broken.violations:
            taken.violations.append(violation)
            if cut.ByteSize() > room:
                del taken.violations[-1]
                break
    return cut


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def cut_utf8(text: str, limit: int) -> str:
    """Cuts `text` to at most `limit` bytes of UTF-8, with an ellipsis where something is cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode(errors="ignore") + "…"
