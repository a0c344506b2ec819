"""Errors: what a caller of Baton can be told. One class for each reason; `rpc` turns them into statuses in one table.

A failure of a run is not an error (see failures.py). Messages are written for the caller: they name the field and the
cure, and never hold the text of a foreign exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One fault of a request: `path` into the request, the `reason` it has, and what is wrong with the cure."""

    path: str
    reason: str
    message: str


class BatonError(Exception):
    """An error with a stable reason, the spelling of baton.v1.ErrorReason without its prefix."""

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        faults: Sequence[FieldFault] = (),
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.faults = tuple(faults)
        self.retry_delay_seconds = retry_delay_seconds


class InvalidRequest(BatonError):
    """A field of the request is not valid."""

    reason = "INVALID_REQUEST"


class InvalidPageToken(BatonError):
    """The page token was not given by this method for this request."""

    reason = "INVALID_PAGE_TOKEN"


class InvalidFilter(BatonError):
    """The filter cannot be read, or names a field that cannot be filtered by."""

    reason = "INVALID_FILTER"


class InvalidCursor(BatonError):
    """The cursor was not given for this run."""

    reason = "INVALID_CURSOR"


class CursorExpired(BatonError):
    """The events after the cursor are gone."""

    reason = "CURSOR_EXPIRED"


class DatabaseUnavailable(BatonError):
    """The database does not answer. Whether a write took effect is not known."""

    reason = "DATABASE_UNAVAILABLE"


class OwnerUnavailable(BatonError):
    """The replica that drives the run cannot be asked at this moment. Whether a request that was on its way to it took
    effect is not known."""

    reason = "OWNER_UNAVAILABLE"


class ForwardingRefused(BatonError):
    """The call says that a replica forwards it, and none did."""

    reason = "FORWARDING_REFUSED"


class ShuttingDown(BatonError):
    """This replica is draining."""

    reason = "SHUTTING_DOWN"


class TooManyRuns(BatonError):
    """As many runs are active as this replica takes."""

    reason = "TOO_MANY_RUNS"


class TooManyRequests(BatonError):
    """The requests that are being served have as many bytes as this replica takes at once."""

    reason = "TOO_MANY_REQUESTS"


class TooManyReads(BatonError):
    """What is read for callers at the moment has as many bytes as this replica holds at once."""

    reason = "TOO_MANY_READS"


class WatchTooSlow(BatonError):
    """Who watches has read nothing of the stream for too long."""

    reason = "WATCH_TOO_SLOW"


class PayloadTooLarge(BatonError):
    """A message is larger than its limit."""

    reason = "PAYLOAD_TOO_LARGE"


class WorkerNotFound(BatonError):
    """No worker of this name."""

    reason = "WORKER_NOT_FOUND"


class WorkerUnreachable(BatonError):
    """The worker's address does not answer."""

    reason = "WORKER_UNREACHABLE"


class ReflectionUnavailable(BatonError):
    """The worker serves no reflection."""

    reason = "REFLECTION_UNAVAILABLE"


class InvalidContract(BatonError):
    """The contract is not a closed, valid set of descriptors, or holds no service."""

    reason = "INVALID_CONTRACT"


class ContractBreaksWorkflows(BatonError):
    """The contract breaks stored workflows or runs in flight, each named in `report`, a baton.v1.ContractReport."""

    reason = "CONTRACT_BREAKS_WORKFLOWS"

    def __init__(
        self,
        message: str,
        *,
        report: object = None,
        metadata: Mapping[str, str] | None = None,
        faults: Sequence[FieldFault] = (),
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, faults=faults, retry_delay_seconds=retry_delay_seconds)
        self.report = report


class WorkflowNotFound(BatonError):
    """No workflow of this name."""

    reason = "WORKFLOW_NOT_FOUND"


class RevisionNotFound(BatonError):
    """The workflow has no such revision."""

    reason = "REVISION_NOT_FOUND"


class WorkflowInvalid(BatonError):
    """The workflow has faults, each named in `faults`."""

    reason = "WORKFLOW_INVALID"


class RunNotFound(BatonError):
    """No run of this id."""

    reason = "RUN_NOT_FOUND"


class RunUnreadable(BatonError):
    """The journal of the run cannot be read: it is damaged, or of a version that this replica does not know."""

    reason = "RUN_UNREADABLE"


class RunEnded(BatonError):
    """The run has ended."""

    reason = "RUN_ENDED"


class InputInvalid(BatonError):
    """The input is not a valid message of the workflow's input type."""

    reason = "INPUT_INVALID"


class RequestIdReused(BatonError):
    """The request_id was used for another request."""

    reason = "REQUEST_ID_REUSED"


class StepTokenInvalid(BatonError):
    """The step token is not one that this server signed."""

    reason = "STEP_TOKEN_INVALID"


class StepNotRunning(BatonError):
    """The attempt that the step token names is not under way."""

    reason = "STEP_NOT_RUNNING"


class MethodNotServed(BatonError):
    """No registered worker serves the method."""

    reason = "METHOD_NOT_SERVED"


class DelegationConflict(BatonError):
    """The key of a delegated step was used with another method or request."""

    reason = "DELEGATION_CONFLICT"


class DelegationLimit(BatonError):
    """The step or the run has as many added steps as it may, or they are nested too deep."""

    reason = "DELEGATION_LIMIT"


class SignalNotFound(BatonError):
    """No step of the run waits for this signal."""

    reason = "SIGNAL_NOT_FOUND"


class SignalLimit(BatonError):
    """As many signals of this name wait to be taken as the run keeps."""

    reason = "SIGNAL_LIMIT"


class ApprovalNotFound(BatonError):
    """The step waits for no decision."""

    reason = "APPROVAL_NOT_FOUND"


class ApprovalChanged(BatonError):
    """Another request waits for a decision than the one that was decided on."""

    reason = "APPROVAL_CHANGED"


class ApproverNotAllowed(BatonError):
    """The caller may not decide on this request."""

    reason = "APPROVER_NOT_ALLOWED"


class RunActive(BatonError):
    """The run has not ended."""

    reason = "RUN_ACTIVE"


class RunSucceeded(BatonError):
    """The run has succeeded; nothing is to be mended."""

    reason = "RUN_SUCCEEDED"


class ChildRun(BatonError):
    """The run belongs to a step of another run, which is to be mended."""

    reason = "CHILD_RUN"


class StepNotFound(BatonError):
    """The run has no such step."""

    reason = "STEP_NOT_FOUND"


class StepNotMendable(BatonError):
    """The step is in a state, or of a kind, in which this cannot be done to it."""

    reason = "STEP_NOT_MENDABLE"


class StepsInTheWay(BatonError):
    """The step cannot begin anew while its run goes on: `metadata` names the steps that have begun since it ended."""

    reason = "STEPS_IN_THE_WAY"


class RevisionIncompatible(BatonError):
    """The run cannot go on with the revision, for each of the reasons in `faults`."""

    reason = "REVISION_INCOMPATIBLE"


class SubstituteInvalid(BatonError):
    """The output that is given for a step is not a valid message of the step's output type."""

    reason = "SUBSTITUTE_INVALID"


class OutputNeeded(BatonError):
    """What reads the output of the step cannot do without it; `faults` tell where."""

    reason = "OUTPUT_NEEDED"


class MendLimit(BatonError):
    """The run has as many events as it may."""

    reason = "MEND_LIMIT"


class ScheduleNotFound(BatonError):
    """No schedule of this name."""

    reason = "SCHEDULE_NOT_FOUND"


class InvalidSchedule(BatonError):
    """The schedule has faults, each named in `faults`."""

    reason = "INVALID_SCHEDULE"


class TooManySchedules(BatonError):
    """The namespace has as many schedules as it may have."""

    reason = "TOO_MANY_SCHEDULES"


class LimitNotFound(BatonError):
    """No limit of this name."""

    reason = "LIMIT_NOT_FOUND"


class NamespaceQueueFull(BatonError):
    """The namespace has as much under way or waiting as this replica takes of one."""

    reason = "NAMESPACE_QUEUE_FULL"


class TooManyLimits(BatonError):
    """The namespace has as many limits as it may have."""

    reason = "TOO_MANY_LIMITS"
