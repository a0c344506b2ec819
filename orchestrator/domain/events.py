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

JOURNAL_FORMAT = 1
"""Format of the events that this code writes. A replica takes over only runs in formats that it knows."""


@value
class Payload:
    """A serialized message with its full type name."""

    type_name: str
    data: bytes


class SkipReason(enum.IntEnum):
    """Why a step was not run, with the numbers of baton.v1.SkipReason."""

    CONDITION = 1
    BRANCH_NOT_TAKEN = 2


@value
class RunSubmitted:
    """The run was accepted."""

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


@value
class AttemptStarted:
    """An attempt was admitted to an endpoint; the call is made once this is durable."""

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


@value
class DeliveryStarted:
    """The call of an attempt is sent again, with the same idempotency key."""

    kind: ClassVar[EventKind] = EventKind.DELIVERY_STARTED
    sequence: int
    time: int
    step: int
    attempt: int
    delivery: int
    worker: str
    address: str
    expire_time: int


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
    """A step ended with an output."""

    kind: ClassVar[EventKind] = EventKind.STEP_SUCCEEDED
    sequence: int
    time: int
    step: int
    attempt: int
    payload: Payload


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
    """A step was not run."""

    kind: ClassVar[EventKind] = EventKind.STEP_SKIPPED
    sequence: int
    time: int
    step: int
    reason: SkipReason


@value
class StepCancelled:
    """A step ended because the run did."""

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
)
