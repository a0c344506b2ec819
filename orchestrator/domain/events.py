"""Events: the facts of a run, in the past tense, numbered without gaps from 1. The journal is a list of these.

Steps are named by their index in the graph. What may not enter: decisions, and anything that is not a fact.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

from orchestrator.domain.failures import Failure
from orchestrator.domain.states import EventKind
from orchestrator.domain.values import value
from orchestrator.domain.waits import Wait
from orchestrator.domain.workflow import Delivery, Target

JOURNAL_FORMAT = 2
"""Format of the events that this code writes. A replica takes over only runs in formats that it knows."""

READABLE_FORMATS = frozenset({1, 2})
"""Formats that this code reads; format 1 lacks the events from STEP_WAITING on."""


@value
class Payload:
    """A serialized message with its full type name."""

    type_name: str
    data: bytes


class SkipReason(enum.IntEnum):
    """Why a step was not run, with the numbers of baton.v1.SkipReason."""

    CONDITION = 1
    BRANCH_NOT_TAKEN = 2
    REQUESTED = 3


@value
class RunSubmitted:
    """The run was accepted. `parent_run_id` and `parent_step` name the step that runs it, "" for none; `depth` counts
    the runs above it. `forked_run_id` and `forked_step` tell where it was forked, "" for nowhere."""

    kind: ClassVar[EventKind] = EventKind.RUN_SUBMITTED
    sequence: int
    time: int
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
    priority: int = 0


@value
class AttemptStarted:
    """An attempt was admitted to an endpoint; the call is made once this is durable. `waited_for` is a QueueReason."""

    kind: ClassVar[EventKind] = EventKind.ATTEMPT_STARTED
    sequence: int
    time: int
    step: int
    attempt: int
    target: int
    method: str
    worker: str
    address: str
    ready_time: int
    expire_time: int
    waited_for: int = 0


@value
class DeliveryStarted:
    """The call of an attempt is sent again, with the same idempotency key; `handed_over` where the sending before was
    cut off by a replica that was stopped in good order."""

    kind: ClassVar[EventKind] = EventKind.DELIVERY_STARTED
    sequence: int
    time: int
    step: int
    attempt: int
    delivery: int
    worker: str
    address: str
    expire_time: int
    handed_over: bool = False


@value
class AttemptFailed:
    """An attempt ended without success; `retry_time` is when the next one of the same target is due."""

    kind: ClassVar[EventKind] = EventKind.ATTEMPT_FAILED
    sequence: int
    time: int
    step: int
    attempt: int
    failure: Failure
    retry_time: int | None


@value
class FallbackTaken:
    """A step goes on with another target."""

    kind: ClassVar[EventKind] = EventKind.FALLBACK_TAKEN
    sequence: int
    time: int
    step: int
    target: int
    method: str
    failure: Failure


@value
class StepSucceeded:
    """A step ended with an output. None is kept for a step with items or iterations, which have their own."""

    kind: ClassVar[EventKind] = EventKind.STEP_SUCCEEDED
    sequence: int
    time: int
    step: int
    attempt: int
    payload: Payload | None
    substituted_by: str = ""


@value
class StepFailed:
    """A step failed for good. With `handled` the run goes on, by the step `branch` where there is one."""

    kind: ClassVar[EventKind] = EventKind.STEP_FAILED
    sequence: int
    time: int
    step: int
    attempt: int
    failure: Failure
    handled: bool
    branch: int | None


@value
class StepSkipped:
    """A step was not run. `skipped_by` is who wished that, where somebody did."""

    kind: ClassVar[EventKind] = EventKind.STEP_SKIPPED
    sequence: int
    time: int
    step: int
    reason: SkipReason
    skipped_by: str = ""


@value
class StepCancelled:
    """A step ended because its run did, or the step that it belongs to."""

    kind: ClassVar[EventKind] = EventKind.STEP_CANCELLED
    sequence: int
    time: int
    step: int
    attempt: int


@value
class RunSucceeded:
    """The run ended with success."""

    kind: ClassVar[EventKind] = EventKind.RUN_SUCCEEDED
    sequence: int
    time: int
    payload: Payload | None


@value
class RunFailed:
    """The run failed."""

    kind: ClassVar[EventKind] = EventKind.RUN_FAILED
    sequence: int
    time: int
    failure: Failure


@value
class RunCancelled:
    """The run was cancelled."""

    kind: ClassVar[EventKind] = EventKind.RUN_CANCELLED
    sequence: int
    time: int
    reason: str
    principal: str


@value
class StepWaiting:
    """A step waits for something other than a worker. The payload is the input of a child run."""

    kind: ClassVar[EventKind] = EventKind.STEP_WAITING
    sequence: int
    time: int
    step: int
    wait: Wait
    payload: Payload | None = None


@value
class ApprovalRequested:
    """A step waits, until `expire_time`, for a person's decision on its request, which is the payload: for one of the
    `approvers`, or where there are none for anybody but who submitted the run."""

    kind: ClassVar[EventKind] = EventKind.APPROVAL_REQUESTED
    sequence: int
    time: int
    step: int
    request_hash: str
    expire_time: int
    payload: Payload
    method: str = ""
    approvers: tuple[str, ...] = ()
    description: str = ""


@value
class StepDelegated:
    """A running step added a step to its run: `step` is the new one's index. The payload is its request."""

    kind: ClassVar[EventKind] = EventKind.STEP_DELEGATED
    sequence: int
    time: int
    step: int
    parent: int
    parent_attempt: int
    key: str
    target: Target
    contract_digest: str
    detached: bool
    delivery: Delivery
    step_timeout_us: int | None
    payload: Payload


@value
class AttemptSuspended:
    """An attempt ended without outcome; another follows when one of the `awaited` steps has ended."""

    kind: ClassVar[EventKind] = EventKind.ATTEMPT_SUSPENDED
    sequence: int
    time: int
    step: int
    attempt: int
    awaited: tuple[int, ...]


@value
class SignalReceived:
    """A signal arrived. `request_id` is its idempotency key in its run, "" for none."""

    kind: ClassVar[EventKind] = EventKind.SIGNAL_RECEIVED
    sequence: int
    time: int
    signal: str
    principal: str
    request_id: str
    payload: Payload


@value
class ApprovalDecided:
    """A person decided on the request of a step, which has this hash."""

    kind: ClassVar[EventKind] = EventKind.APPROVAL_DECIDED
    sequence: int
    time: int
    step: int
    approved: bool
    principal: str
    reason: str
    request_hash: str = ""


@value
class IterationStarted:
    """A repeating step calls once more, in a step that is added for it."""

    kind: ClassVar[EventKind] = EventKind.ITERATION_STARTED
    sequence: int
    time: int
    step: int
    iteration: int
    ready_time: int


@value
class CheckpointRecorded:
    """A running attempt left something for the attempt after it."""

    kind: ClassVar[EventKind] = EventKind.CHECKPOINT_RECORDED
    sequence: int
    time: int
    step: int
    attempt: int
    payload: Payload


@value
class RunUndoing:
    """The run will not succeed, and the undo calls of `steps` are made in that order before it ends: as FAILED with
    `failure`, as CANCELLED without."""

    kind: ClassVar[EventKind] = EventKind.RUN_UNDOING
    sequence: int
    time: int
    failure: Failure | None
    reason: str
    principal: str
    steps: tuple[int, ...]


@value
class RunReopened:
    """An ended run goes on in another round, in which the steps of `reset` begin anew: by their ids, as the event may
    change their places. What follows for the steps that belong to them is the fold's (reopening.py). The payload is a
    new input."""

    kind: ClassVar[EventKind] = EventKind.RUN_REOPENED
    sequence: int
    time: int
    round: int
    reset: tuple[str, ...]
    revision: str
    expire_time: int
    principal: str
    reason: str
    payload: Payload | None


@value
class StepRetried:
    """Somebody wants a step of a run that goes on to be tried. With `reset` these steps begin anew, the step itself and
    all that depend on it, none of which has done anything; without, each attempt of the step, and of those that belong
    to it, which waits for its time is due now (retrying.py)."""

    kind: ClassVar[EventKind] = EventKind.STEP_RETRIED
    sequence: int
    time: int
    step: int
    reset: tuple[int, ...]
    principal: str
    reason: str


@value
class RunPaused:
    """No attempt starts until the run is resumed."""

    kind: ClassVar[EventKind] = EventKind.RUN_PAUSED
    sequence: int
    time: int
    principal: str
    reason: str


@value
class RunResumed:
    """Attempts start again."""

    kind: ClassVar[EventKind] = EventKind.RUN_RESUMED
    sequence: int
    time: int
    principal: str


Event = (
    RunSubmitted
    | AttemptStarted
    | DeliveryStarted
    | AttemptFailed
    | FallbackTaken
    | StepSucceeded
    | StepFailed
    | StepSkipped
    | StepCancelled
    | RunSucceeded
    | RunFailed
    | RunCancelled
    | StepWaiting
    | ApprovalRequested
    | StepDelegated
    | AttemptSuspended
    | SignalReceived
    | ApprovalDecided
    | IterationStarted
    | CheckpointRecorded
    | RunUndoing
    | RunReopened
    | StepRetried
    | RunPaused
    | RunResumed
)
