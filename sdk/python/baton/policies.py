"""Settings of a step as values: retries, delivery, fallbacks, failure branches, times and status codes."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from baton.bindings import whole
from baton.errors import BindError
from baton.methods import method_of, path_of
from baton.v1 import workflow_pb2

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import Descriptor

    from baton.steps import Step

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

Method: TypeAlias = Callable[[Any, Req, Any], Resp | Awaitable[Resp]]
"""Function of a generated servicer, such as `PaymentsServiceServicer.Charge`."""

Seconds: TypeAlias = float | timedelta
"""A time span: seconds, or a timedelta."""

Code: TypeAlias = "grpc.StatusCode | str"
"""A status code: grpc.StatusCode, or its name, such as `UNAVAILABLE`."""


_CODES = workflow_pb2.RetryPolicy.DESCRIPTOR.fields_by_name["codes"].enum_type
_CODE_NUMBERS = {value.name: value.number for value in _CODES.values} if _CODES is not None else {}


class Delivery(enum.Enum):
    """What to do where it is unknown whether a call took effect."""

    AT_LEAST_ONCE = workflow_pb2.DELIVERY_AT_LEAST_ONCE
    """Call again, with the same idempotency key."""
    AT_MOST_ONCE = workflow_pb2.DELIVERY_AT_MOST_ONCE
    """Do not call again: the step fails with the reason OUTCOME_UNKNOWN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failures of an attempt are tried again, how often and after what wait; None leaves the server's default.

    `jitter` is the part of the wait, from 0 to 1, that is taken away at random. With `codes` or `reasons` only those
    are tried again.
    """

    max_attempts: int | None = None
    initial_backoff: Seconds | None = None
    max_backoff: Seconds | None = None
    backoff_multiplier: float | None = None
    jitter: float | None = None
    codes: Iterable[Code] = ()
    reasons: Iterable[str] = ()

    def message(self) -> workflow_pb2.RetryPolicy:
        """Returns the policy as it goes over the wire."""
        if self.max_attempts is not None and self.max_attempts < 1:
            raise BindError(f"Retry.max_attempts counts the first attempt too: at least 1, not {self.max_attempts}")
        policy = workflow_pb2.RetryPolicy(codes=code_numbers(self.codes), reasons=reason_names(self.reasons))
        for name in ("max_attempts", "backoff_multiplier", "jitter"):
            if getattr(self, name) is not None:
                setattr(policy, name, getattr(self, name))
        if self.initial_backoff is not None:
            policy.initial_backoff.CopyFrom(duration(self.initial_backoff, "Retry.initial_backoff", zero=True))
        if self.max_backoff is not None:
            policy.max_backoff.CopyFrom(duration(self.max_backoff, "Retry.max_backoff", zero=True))
        return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRule:
    """Has a person approve a step's exact request before it is called with.

    `approvers` are the principals who may, by default anybody; never who submitted the run. `timeout` limits the wait,
    by default by what is left of the step's time. `description` tells who decides what to know.
    """

    timeout: Seconds | None = None
    approvers: Iterable[str] = ()
    description: str = ""

    def message(self) -> workflow_pb2.ApprovalRule:
        """Returns the rule as it goes over the wire."""
        if isinstance(self.approvers, str):
            raise BindError(f"ApprovalRule.approvers take a list, such as [{self.approvers!r}]")
        rule = workflow_pb2.ApprovalRule(approvers=self.approvers, description=self.description)
        if self.timeout is not None:
            rule.timeout.CopyFrom(duration(self.timeout, "ApprovalRule.timeout"))
        return rule


@dataclass(frozen=True, slots=True)
class Fallback(Generic[Resp]):
    """Another method for a step's output; made by fallback(…)."""

    message: workflow_pb2.Fallback
    input_type: Descriptor
    output_type: Descriptor
    own_request: bool


def fallback(
    method: Method[Req, Resp],
    request: Req | None = None,
    *,
    on: Iterable[Code] = (),
    reasons: Iterable[str] = (),
    retry: Retry | None = None,
    attempt_timeout: Seconds | None = None,
) -> Fallback[Resp]:
    """Returns another method to call when the one before it has failed for good.

    `request` is by default the step's own. `on` and `reasons` say for which failures; with neither, for every one.
    """
    target = method_of(method)
    path = path_of(target)
    message = workflow_pb2.Fallback(method=path, codes=code_numbers(on), reasons=reason_names(reasons))
    if request is not None:
        whole(target.input_type, request, f"the request of {path}").write_request(message)
    if retry is not None:
        message.retry.CopyFrom(retry.message())
    if attempt_timeout is not None:
        message.attempt_timeout.CopyFrom(duration(attempt_timeout, f"attempt_timeout of the fallback {path}"))
    return Fallback(message, target.input_type, target.output_type, own_request=request is None)


@dataclass(frozen=True, slots=True)
class Branch:
    """A way on after a step has failed for good; made by branch(…)."""

    step: Step[Any] | None
    codes: tuple[int, ...]
    reasons: tuple[str, ...]

    def message(self) -> workflow_pb2.FailureBranch:
        """Returns the branch as it goes over the wire."""
        step = self.step.id if self.step is not None else ""
        return workflow_pb2.FailureBranch(step=step, codes=cast("Any", self.codes), reasons=self.reasons)


def branch(step: Step[Any] | None = None, *, codes: Iterable[Code] = (), reasons: Iterable[str] = ()) -> Branch:
    """Returns a way on after a failure: to `step`, which runs only then, or without a step just on.

    Any of `codes` or `reasons` matches; with neither, every failure.
    """
    return Branch(step, tuple(code_numbers(codes)), tuple(reason_names(reasons)))


def duration(value: Seconds, where: str, *, zero: bool = False) -> Duration:
    """Returns a time span as it goes over the wire; raises BindError, naming `where`, unless it is positive."""
    span = value if isinstance(value, timedelta) else timedelta(seconds=value)
    if span < timedelta(0) or (not span and not zero):
        raise BindError(f"{where} must be more than 0, not {value!r}")
    message = Duration()
    message.FromTimedelta(span)
    return message


def code_numbers(codes: Iterable[Code]) -> list[Any]:
    """Returns status codes by number; raises BindError for what is none."""
    if isinstance(codes, str):
        raise BindError(f"codes take a list, such as [{codes!r}]")
    numbers = []
    for code in codes:
        name = code if isinstance(code, str) else code.name
        if name not in _CODE_NUMBERS:
            raise BindError(f"{code!r} is not a status code; they are {', '.join(_CODE_NUMBERS)}")
        numbers.append(_CODE_NUMBERS[name])
    return numbers


def reason_names(reasons: Iterable[str]) -> list[str]:
    """Returns reasons as a list; raises BindError for a single text, which would be taken letter by letter."""
    if isinstance(reasons, str):
        raise BindError(f"reasons take a list, such as [{reasons!r}]")
    return list(reasons)
