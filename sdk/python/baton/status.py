"""From a status to the SDK's errors: ErrorInfo, BadRequest and RetryInfo become one BatonError."""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from baton.errors import (
    BatonError,
    CallTimeout,
    Conflict,
    ContractBreaksWorkflows,
    InvalidRequest,
    NotFound,
    Unavailable,
    Violation,
)
from baton.v1 import contract_report_pb2

_CLASSES: dict[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: CallTimeout,
}

_TOO_LARGE = "PAYLOAD_TOO_LARGE"
_LARGE_REQUEST = re.compile(r"(?:CLIENT: Sent|SERVER: Received) message larger than max \((\d+) vs\. (\d+)\)")
"""What gRPC says of a request that is too large for it to come to Baton."""

_CODES = {int(code.value[0]): code for code in grpc.StatusCode}


def error_of(failed: grpc.aio.AioRpcError) -> BatonError:
    """Returns the typed error for a call that failed."""
    return _error(failed.code(), failed.details() or "no details", _details(failed), "")


def error_of_status(status: status_pb2.Status, place: str) -> BatonError:
    """Returns the typed error for one request of many; `place` is what the paths of its faults start with."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _error(code, status.message or "no details", status.details, place)


def _error(code: grpc.StatusCode, message: str, details: Iterable[any_pb2.Any], place: str) -> BatonError:
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_delay: float | None = None
    report: contract_report_pb2.ContractReport | None = None
    for detail in details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        broken = contract_report_pb2.ContractReport()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations += [
                Violation(each.field.removeprefix(place).removeprefix("."), each.reason, each.description)
                for each in request.field_violations
            ]
        elif detail.Unpack(retry):
            retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(broken):
            report = broken
    large = _LARGE_REQUEST.fullmatch(message)
    if large is not None:
        size, limit = large.groups()
        reason, message = _TOO_LARGE, f"the request has {size} bytes, and no more than {limit} are received"
        metadata = {"size": size, "limit": limit}
    kind = _CLASSES.get(code, BatonError) if report is None else ContractBreaksWorkflows
    error = (InvalidRequest if reason == _TOO_LARGE else kind)(
        code.name,
        reason,
        message,
        metadata=metadata,
        violations=tuple(violations),
        retry_delay=retry_delay,
    )
    if isinstance(error, ContractBreaksWorkflows) and report is not None:
        error.report = report
    return error


def _details(failed: grpc.aio.AioRpcError) -> list:  # type: ignore[type-arg]
    try:
        # from_call reads code, details and trailing metadata only, which the exception of grpc.aio has too.
        status = rpc_status.from_call(failed)  # type: ignore[arg-type]
    except ValueError:  # details that do not belong to the status: some proxy's; the status itself still counts
        return []
    return list(status.details) if status is not None else []
