"""Why steps wait, in words for a person. What may not enter: who is let through (admission.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from baton.v1 import run_pb2

from orchestrator.domain.waits import QueueReason
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.permits import Refusal


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a queue does not move; `kind` is a WaitKind, `until_time` when it is looked at again, `reason` what is
    journaled of it once a step goes on."""

    kind: run_pb2.WaitKind.ValueType
    message: str
    until_time: int | None = None
    reason: QueueReason = QueueReason.PERMIT


FOR_PERMIT = Wait(run_pb2.WAIT_KIND_LIMIT, "waits for a permit of a limit")
"""What a queue waits for that asked for a permit; why there is none is known to the limit's home."""

FOR_DELEGATED = Wait(run_pb2.WAIT_KIND_CHILD_STEPS, "waits for a step that it has delegated, and holds no permit")

DRAINING = Wait(
    run_pb2.WAIT_KIND_OWNER, "this replica is draining; another takes the run over", reason=QueueReason.REPLICA
)


def replica_is_full(limit: int) -> Wait:
    """The replica makes as many calls as it may."""
    text = f"the replica has {limit} calls in flight, its limit"
    return Wait(run_pb2.WAIT_KIND_LIMIT, text, reason=QueueReason.REPLICA)


def endpoints_are_full(method: str, limit: int) -> Wait:
    """Every endpoint has as many calls as it takes."""
    text = f"the endpoints that serve {method} have as many calls in flight as they take, {limit} in all"
    return Wait(run_pb2.WAIT_KIND_LIMIT, text, reason=QueueReason.ENDPOINT)


def endpoint_is_full(endpoint: Endpoint) -> Wait:
    """The one endpoint that can go on with a call has as many others as it takes."""
    text = f"{endpoint.key.address} has as many calls in flight as it takes, {endpoint.max_in_flight}"
    return Wait(run_pb2.WAIT_KIND_LIMIT, text, reason=QueueReason.ENDPOINT)


def none_free(method: str, groups: Sequence[EndpointGroup]) -> Wait:
    """There are endpoints, and none of them can take a call now."""
    able, limit = sum(group.able for group in groups), sum(group.limit for group in groups)
    if not able:
        return none_serving(method, groups)
    if sum(len(group.tripped) for group in groups) == able:
        return all_open([one for group in groups for one in group.tripped])
    return endpoints_are_full(method, limit)


def look_time(wait: Wait, groups: Iterable[EndpointGroup]) -> int | None:
    """When to look again, where nothing else ends a wait for any of `groups` before: a circuit may be tried then, or it
    is over."""
    trials = (one.circuit.until_time for group in groups for one in group.tripped)
    return min((time for time in (wait.until_time, *trials) if time is not None), default=None)


def for_retries(worker: str, ratio: float, per_second: float) -> Wait:
    """A worker failed calls, and as many of them are tried again as its retry budget allows."""
    text = (
        f"calls of worker {worker} failed, and as many are tried again from this replica as its retry budget allows:"
        f" {per_second:g} a second, and {ratio:g} for each other call"
    )
    return Wait(run_pb2.WAIT_KIND_RETRY_BUDGET, text, reason=QueueReason.RETRY_BUDGET)


def none_serving(method: str, groups: Iterable[EndpointGroup]) -> Wait:
    """There are endpoints, and none of them is able."""
    fitting = [one for group in groups for one in group.endpoints]
    names = ", ".join(sorted({one.key.worker for one in fitting}))
    states = {"draining" if one.draining else "NOT_SERVING" for one in fitting}
    text = f"every endpoint that serves {method} (worker {names}) is {' or '.join(sorted(states))}"
    return Wait(run_pb2.WAIT_KIND_WORKER_NOT_SERVING, text, reason=QueueReason.WORKER_NOT_SERVING)


def nobody(method: str, unfit: str) -> Wait:
    """No endpoint can be called; `unfit` tells why those cannot that there are."""
    if unfit:
        text = f"workers serve {method}, but with contracts that this run's revision cannot use: {unfit}"
    else:
        text = f"no registered worker serves {method}; register one with RegisterWorker"
    return Wait(run_pb2.WAIT_KIND_NO_WORKER, text, reason=QueueReason.NO_WORKER)


def all_open(endpoints: Sequence[Endpoint]) -> Wait:
    """Every endpoint that is able has a circuit that lets nothing through."""
    until_times = [time for one in endpoints if (time := one.circuit.until_time) is not None]
    until_time = min(until_times, default=None)
    addresses = ", ".join(sorted(one.key.address for one in endpoints)[:3])
    if until_time is None:
        text = f"the circuit of {addresses} is half-open: one trial call decides"
    else:
        text = f"the circuit of {addresses} is open after failed calls; a trial call follows"
    return Wait(run_pb2.WAIT_KIND_CIRCUIT_OPEN, text, until_time, QueueReason.CIRCUIT_OPEN)


def no_permit(refusal: Refusal, before: int) -> Wait:
    """A limit has no permit left; `before` steps of the same queue are in line before this one."""
    text = refusal.message or "the permit is being asked for"
    place = refusal.ahead + before + 1
    return Wait(run_pb2.WAIT_KIND_LIMIT, f"{text}; the step is number {place} in line", refusal.until_time)


def behind(wait: Wait, before: int) -> Wait:
    """The same for a step with `before` others in line before it."""
    if wait.kind not in (run_pb2.WAIT_KIND_LIMIT, run_pb2.WAIT_KIND_RETRY_BUDGET) or not before:
        return wait
    return replace(wait, message=f"{wait.message}; {before} other steps are in line before it")
