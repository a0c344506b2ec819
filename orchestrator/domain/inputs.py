"""Inputs: all that can happen to a run, as values for `plan.decide`. What may not enter: anything the core does."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Failure
from orchestrator.domain.values import value
from orchestrator.domain.workflow import Delivery, Target


@value
class Submission:
    """A run was submitted. `expire_time` is when it fails unless it has ended."""

    workflow: str
    revision: str
    expire_time: int
    principal: str
    channel: str
    workspace: str
    labels: tuple[str, ...]
    attributes: Mapping[str, str]
    traceparent: str
    request_id: str
    payload: Payload | None
    parent_run_id: str = ""
    parent_step: str = ""
    depth: int = 0
    forked_run_id: str = ""
    forked_step: str = ""
    kept: tuple[tuple[int, Payload], ...] = ()
    """Steps of the run that this one is forked from which are taken over, with their outputs."""
    priority: int = 0


@value
class StepAdmitted:
    """A queued step was given to an endpoint: its next attempt starts, or its running attempt is delivered again.
    `waited_for` is a QueueReason; `handed_over`: it was cut off by a replica that was stopped in good order."""

    step: int
    worker: str
    address: str
    waited_for: int = 0
    handed_over: bool = False


@value
class CircuitOpen:
    """Every endpoint of a queued step's method has an open circuit. A step with a fallback for that takes it."""

    step: int


@value
class RequestUnbuildable:
    """The request of a queued step could not be built from its bindings."""

    step: int
    failure: Failure


@value
class CallSucceeded:
    """A call answered with an output that `expect` accepts."""

    step: int
    attempt: int
    payload: Payload


@value
class CallFailed:
    """A call failed. `retry_delay_us` is the worker's own wish; `jitter_draw` a random number from 0 to 1."""

    step: int
    attempt: int
    failure: Failure
    retry_delay_us: int | None
    jitter_draw: float


@value
class CallLost:
    """What carried a call to its worker is gone for good: what became of the call is not known."""

    step: int
    attempt: int


@value
class Resumption:
    """The run was rebuilt from its journal by a new owner: outcomes of attempts under way are not known. `handed_over`
    where the owner before was stopped in good order: it cut them off itself."""

    handed_over: bool = False


@value
class TimeoutPassed:
    """A moment came at which a timeout of a step may be over; `decide` looks which."""

    step: int


@value
class RunTimeoutPassed:
    """A moment came at which the run's time may be over."""


@value
class Abandonment:
    """The run cannot go on for a reason outside its workflow, such as events that the database refuses."""

    failure: Failure


@value
class CancelRequest:
    """A caller wants the run to end."""

    reason: str
    principal: str


PARENT_ENDED = "its parent ended"
"""Reason that a run is cancelled for whose step that runs it should have done that."""


@value
class Delegation:
    """A running attempt wants a step to be added to its run. That it may is checked before (plan.delegation_limit)."""

    parent: int
    attempt: int
    key: str
    target: Target
    contract_digest: str
    detached: bool
    delivery: Delivery
    step_timeout_us: int | None
    payload: Payload


@value
class CallSuspended:
    """An attempt ended without outcome: it waits for one of the steps that it delegated under the keys `awaited`."""

    step: int
    attempt: int
    awaited: tuple[str, ...]


@value
class Signal:
    """A signal arrived."""

    signal: str
    principal: str
    request_id: str
    payload: Payload


@value
class Decided:
    """A person decided on the request of a step, which has this hash."""

    step: int
    request_hash: str
    approved: bool
    principal: str
    reason: str


@value
class ChildRunEnded:
    """The child run of a step ended: with a payload where it succeeded, with a failure otherwise."""

    step: int
    run_id: str
    failure: Failure | None
    payload: Payload | None


@value
class HeartbeatMissed:
    """A running attempt gave no sign of life within its heartbeat timeout."""

    step: int
    attempt: int


@value
class Checkpoint:
    """A running attempt leaves something for the attempt after it."""

    step: int
    attempt: int
    payload: Payload


@value
class Substitution:
    """A caller ends a step: with an output in its place, or as skipped where there is no payload."""

    step: int
    payload: Payload | None
    principal: str


@value
class Reopening:
    """A caller wants an ended run to go on: what failed, was cancelled or taken back begins anew, and the steps of
    `again`. With `undo`, none of that: the undo calls of these steps are made again. `substitution` ends a step of
    those that begin anew."""

    again: tuple[int, ...]
    undo: tuple[int, ...]
    substitution: Substitution | None
    revision: str
    expire_time: int
    principal: str
    reason: str
    payload: Payload | None


@value
class StepRetry:
    """A caller wants a step of a run that goes on to be tried: now, where its next attempt is to come later, or anew,
    where it has ended and nothing that depends on it has done anything. `substitution` ends it in place of that."""

    step: int
    substitution: Substitution | None
    principal: str
    reason: str


@value
class PauseRequest:
    """A caller wants no attempt to start."""

    principal: str
    reason: str


@value
class ResumeRequest:
    """A caller wants attempts to start again."""

    principal: str


Input = (
    Submission
    | StepAdmitted
    | CircuitOpen
    | RequestUnbuildable
    | CallSucceeded
    | CallFailed
    | CallLost
    | Resumption
    | TimeoutPassed
    | RunTimeoutPassed
    | Abandonment
    | CancelRequest
    | Delegation
    | CallSuspended
    | Signal
    | Decided
    | ChildRunEnded
    | Checkpoint
    | HeartbeatMissed
    | Substitution
    | Reopening
    | StepRetry
    | PauseRequest
    | ResumeRequest
)
