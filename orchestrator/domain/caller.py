"""Who makes a request, as the credential says. No request names a namespace: it comes from here."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from orchestrator.domain.values import value


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal that acts, in its namespace, over a channel such as `grpc` or `cli`."""

    namespace: str
    principal: str
    channel: str
    traceparent: str = ""


@value
class StepClaim:
    """What a step token says: the bearer was called for this attempt, in this epoch."""

    namespace: str
    run_id: UUID
    step: str
    attempt: int
    epoch: int
