"""Errors that the SDK raises. Nothing here imports grpc: what turns an RPC's status into one of these is status.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any

    from baton.v1 import contract_report_pb2, failure_pb2, run_pb2


class BindError(TypeError):
    """A workflow function does not say something that can be recorded; the text names the field and the cure."""


class UnknownFieldError(BindError, AttributeError):
    """A message has no field of this name; the text gives the closest one."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a request: `path` into what was sent, a stable `reason`, and what is wrong with its cure."""

    path: str
    reason: str
    message: str

    def __str__(self) -> str:
        told = not self.path or self.message.startswith((f"{self.path}:", f"{self.path},"))
        where = "" if told else f"{self.path}: "
        return f"{where}{self.message}" + (f" [{self.reason}]" if self.reason else "")


class BatonError(Exception):
    """A call to Baton was answered with an error.

    `code` is the name of the gRPC status code, `reason` the stable reason without prefix (empty where none was sent),
    `metadata` its details, `violations` every fault found in the request, and `retry_delay` the seconds after which the
    server asks to be called again, if it does.
    """

    def __init__(
        self,
        code: str,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_delay: float | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = violations
        self.retry_delay = retry_delay
        super().__init__(code, reason, message)

    def __str__(self) -> str:
        kind = f"{self.code} ({self.reason})" if self.reason else self.code
        only = self.violations[0] if len(self.violations) == 1 else None
        told_below = only is not None and self.message in (only.message, f"{only.path}: {only.message}")
        lines = [kind if told_below else f"{kind}: {self.message}"]
        lines += [f"  {violation}" for violation in self.violations]
        if self.metadata:
            lines.append("  " + ", ".join(f"{key}={value}" for key, value in sorted(self.metadata.items())))
        return "\n".join(lines)


class InvalidRequest(BatonError):
    """INVALID_ARGUMENT, OUT_OF_RANGE or PAYLOAD_TOO_LARGE: the request is not valid; `violations` name each fault."""


class NotFound(BatonError):
    """NOT_FOUND: no worker, workflow, revision, run or limit of this name."""


class Conflict(BatonError):
    """ALREADY_EXISTS, ABORTED or FAILED_PRECONDITION: what is there already forbids the call."""


class ContractBreaksWorkflows(Conflict):
    """The contract of a worker breaks stored workflows or runs in flight; `report` names the first of them."""

    report: contract_report_pb2.ContractReport

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {line}" for line in report_lines(self.report))])


def report_summary(report: contract_report_pb2.ContractReport) -> str:
    """Returns what a contract breaks in a few words."""
    if not report.broken_count:
        return "no stored workflow and no run in flight"
    revisions = "1 revision" if report.broken_count == 1 else f"{report.broken_count} revisions"
    runs = "1 run" if report.runs_in_flight == 1 else f"{report.runs_in_flight} runs"
    return f"{revisions} with {runs} in flight"


def report_lines(report: contract_report_pb2.ContractReport) -> list[str]:
    """Returns what a contract breaks as lines for a person: each revision, and below it, indented, why."""
    lines = []
    for broken in report.broken:
        newest = "the newest revision" if broken.newest else "an older revision"
        name = broken.workflow or "an inline workflow"
        lines.append(f"{name} {broken.revision} ({newest}, {broken.runs_in_flight} in flight)")
        lines += [f"  {each.path}: {each.message}" for each in broken.violations]
        if broken.violation_count > len(broken.violations):
            lines.append(f"  and {broken.violation_count - len(broken.violations)} more")
    if report.broken_count > len(report.broken):
        lines.append(f"and {report.broken_count - len(report.broken)} more revisions")
    if report.unchecked_count:
        lines.append(f"not looked at: {report.unchecked_count} revisions with runs in flight")
    return lines


class Unavailable(BatonError):
    """UNAVAILABLE, or RESOURCE_EXHAUSTED otherwise: Baton cannot take the call now, and retries did not help."""


class CallTimeout(BatonError):
    """DEADLINE_EXCEEDED: no answer within the time of the call."""


class RunNotSucceeded(Exception):
    """A run ended without success. `run` is its last view, `failure` says why."""

    def __init__(self, run: run_pb2.Run) -> None:
        self.run = run
        super().__init__(run.run_id)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.run.run_id

    @property
    def failure(self) -> failure_pb2.Failure:
        """Why the run did not succeed, as data."""
        return self.run.failure

    @property
    def step(self) -> str:
        """Id of the step that failed; empty where the run itself did."""
        return self.run.failure.step

    @property
    def code(self) -> str:
        """Name of the status code, such as `FAILED_PRECONDITION`."""
        return _code_name(self.run.failure)

    @property
    def reason(self) -> str:
        """Stable reason, such as `CARD_DECLINED`."""
        return self.run.failure.reason

    @property
    def trace_id(self) -> str:
        """W3C trace id of the run."""
        return self.run.trace_id

    def __str__(self) -> str:
        where = f" at step {self.step}" if self.step else ""
        why = f"{self.code} ({self.reason})" if self.reason else self.code
        trace = f" [trace {self.trace_id}]" if self.trace_id else ""
        return f"run {self.run_id} {self._ended}{where}: {why}: {self.failure.message}{trace}"

    _ended = "did not succeed"


class RunFailed(RunNotSucceeded):
    """The run FAILED."""

    _ended = "failed"


class RunCancelled(RunNotSucceeded):
    """The run was CANCELLED."""

    _ended = "was cancelled"


class StepFailed(Exception):
    """A step that a handler delegated has failed for good, or was cancelled. `failure` says why, as data.

    A handler that lets it pass fails with the same code, reason, message and details.
    """

    def __init__(self, step: str, failure: failure_pb2.Failure) -> None:
        self.step = step
        """Id of the delegated step."""
        self.failure = failure
        super().__init__(step, failure)

    @property
    def code(self) -> str:
        """Name of the status code, such as `FAILED_PRECONDITION`."""
        return _code_name(self.failure)

    @property
    def reason(self) -> str:
        """Stable reason, such as `CARD_DECLINED`."""
        return self.failure.reason

    @property
    def message(self) -> str:
        """What happened, for a person."""
        return self.failure.message

    @property
    def details(self) -> tuple[Any, ...]:
        """Details of the worker's status, unchanged."""
        return tuple(self.failure.details)

    def __str__(self) -> str:
        why = f"{self.code} ({self.reason})" if self.reason else self.code
        return f"step {self.step} failed: {why}: {self.message}"


class WaitTimeout(TimeoutError):
    """The run had not ended when the time to wait for it was over. It goes on; wait again by `run_id`."""

    def __init__(self, run_id: str, timeout_seconds: float) -> None:
        self.run_id = run_id
        self.timeout_seconds = timeout_seconds
        super().__init__(f"run {run_id} has not ended within {timeout_seconds:g} s; it goes on")


@dataclass(eq=False)
class Failure(Exception):
    """Raised by a worker's handler to fail its call with a status that workflows can branch on.

    `code` is a status code by name or grpc.StatusCode, `reason` a stable UPPER_SNAKE_CASE word, `message` a sentence
    for a person. They reach the caller as google.rpc.ErrorInfo with the service as its domain.
    """

    code: object
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.code, self.reason, self.message)

    def __str__(self) -> str:
        return f"{getattr(self.code, 'name', self.code)} ({self.reason}): {self.message}"


def _code_name(failure: failure_pb2.Failure) -> str:
    codes = failure.DESCRIPTOR.fields_by_name["code"].enum_type
    known = codes.values_by_number.get(failure.code) if codes is not None else None
    return known.name if known is not None else "UNKNOWN"
