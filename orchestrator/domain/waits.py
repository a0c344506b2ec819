"""What a step can wait for, other than a worker. What may not enter: how a wait begins and ends (plan)."""

from __future__ import annotations

import enum
import hashlib

from orchestrator.domain.values import value


@value
class Sleeping:
    """Waits for an instant."""

    until_time: int


@value
class SignalAwaited:
    """Waits for a signal, until `expire_time`."""

    signal: str
    expire_time: int


@value
class ApprovalAwaited:
    """Waits for a person's decision on the request with this hash, until `expire_time`."""

    request_hash: str
    expire_time: int


@value
class ItemsAwaited:
    """Waits for the steps of so many items."""

    count: int


@value
class IterationsAwaited:
    """Waits for the steps of its iterations."""


@value
class RunAwaited:
    """Waits for the end of a child run."""

    run_id: str
    workflow: str
    revision: str


@value
class StepsAwaited:
    """A suspended attempt waits for one of these steps, by index, to end."""

    steps: frozenset[int]


Wait = Sleeping | SignalAwaited | ApprovalAwaited | ItemsAwaited | IterationsAwaited | RunAwaited | StepsAwaited


class QueueReason(enum.IntEnum):
    """What a queued step waited for last before an attempt of it started, with the numbers of baton.v1.QueueReason."""

    NOTHING = 0
    NO_WORKER = 1
    WORKER_NOT_SERVING = 2
    CIRCUIT_OPEN = 3
    PERMIT = 4
    ENDPOINT = 5
    REPLICA = 6
    PAUSED = 7
    RETRY_BUDGET = 8


def request_hash(method: str, request: bytes) -> str:
    """Returns what an approval is bound to: SHA-256 over method and serialized request, as 64 hex digits."""
    return hashlib.sha256(method.encode() + b"\0" + request).hexdigest()
