"""Settings of a workflow: timeouts and retry policies, with their defaults, and the checks that they fit together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from baton.v1 import workflow_pb2
from google.protobuf.duration_pb2 import Duration

from orchestrator.contracts.violations import Report
from orchestrator.domain.failures import Code
from orchestrator.domain.plan import NEVER_RETRIED
from orchestrator.domain.workflow import (
    OUTPUT_REJECTED,
    REPEATABLE_CODES,
    SAFE_CODES,
    Delivery,
    FailureMatch,
    RetryPolicy,
)

TIMEOUT_LIMIT_US = 10 * 365 * 86_400 * 1_000_000
"""Longest timeout: gRPC cannot carry deadlines of some hundred years, nor timestamps the year 10,000."""

UNDO_ATTEMPTS = 10
UNDO_ATTEMPT_TIMEOUT_US = 60 * 1_000_000
UNDO_TIMEOUT_US = 3_600 * 1_000_000
"""Defaults of an undo call."""

_DEFAULT = RetryPolicy(FailureMatch())


def duration_us(duration: Duration) -> int:
    """Returns a duration in whole microseconds, cut towards zero."""
    return int(duration.seconds) * 1_000_000 + int(duration.nanos / 1_000)


def delivery_of(step: workflow_pb2.Step) -> Delivery:
    """Returns what a step does where it is unknown whether a call took effect."""
    return Delivery.AT_MOST_ONCE if step.delivery == workflow_pb2.DELIVERY_AT_MOST_ONCE else Delivery.AT_LEAST_ONCE


def failure_match(codes: Iterable[int], reasons: Iterable[str], path: str, report: Report) -> FailureMatch:
    """Returns which failures are meant, reporting codes and reasons that no failure has."""
    known: set[Code] = set()
    for index, number in enumerate(codes):
        if number in Code.__members__.values() and number != Code.OK:
            known.add(Code(number))
        else:
            report.add(
                f"{path}.codes[{index}]",
                "INVALID_SETTING",
                f"no failure has the code {number}",
            )
    given = list(reasons)
    for index, reason in enumerate(given):
        if not reason:
            report.add(
                f"{path}.reasons[{index}]",
                "INVALID_SETTING",
                "no failure has an empty reason; leave it out, or without any codes and reasons every failure is meant",
            )
    return FailureMatch(frozenset(known), frozenset(given))


def retry_policy(given: workflow_pb2.RetryPolicy | None, repeatable: bool, path: str, report: Report) -> RetryPolicy:
    """Returns the retry policy with its defaults; those of what is tried again follow `repeatable`."""
    if given is None:
        return RetryPolicy(_default_match(repeatable))
    match = failure_match(given.codes, given.reasons, path, report)
    for index, reason in enumerate(given.reasons):
        if reason in NEVER_RETRIED:
            report.add(
                f"{path}.reasons[{index}]",
                "INVALID_SETTING",
                f"{reason} is never tried again; leave it out, and branch on it with on_failure",
            )
    policy = RetryPolicy(
        retryable=match if given.codes or given.reasons else _default_match(repeatable),
        max_attempts=given.max_attempts if given.HasField("max_attempts") else _DEFAULT.max_attempts,
        initial_backoff_us=(
            duration_us(given.initial_backoff) if given.HasField("initial_backoff") else _DEFAULT.initial_backoff_us
        ),
        max_backoff_us=duration_us(given.max_backoff) if given.HasField("max_backoff") else _DEFAULT.max_backoff_us,
        backoff_multiplier=(
            given.backoff_multiplier if given.HasField("backoff_multiplier") else _DEFAULT.backoff_multiplier
        ),
        jitter=given.jitter if given.HasField("jitter") else _DEFAULT.jitter,
    )
    if policy.max_backoff_us < policy.initial_backoff_us:
        report.add(
            f"{path}.max_backoff",
            "INVALID_SETTING",
            f"max_backoff ({_seconds(policy.max_backoff_us)}) is less than "
            f"initial_backoff ({_seconds(policy.initial_backoff_us)})",
        )
    return policy


def _default_match(repeatable: bool) -> FailureMatch:
    if repeatable:
        return FailureMatch(REPEATABLE_CODES, frozenset({OUTPUT_REJECTED}))
    return FailureMatch(SAFE_CODES)


def undo_retry_policy(given: workflow_pb2.RetryPolicy | None, path: str, report: Report) -> RetryPolicy:
    """Returns the retry policy of an undo call: without anything else, 10 attempts of every failure."""
    if given is None:
        return RetryPolicy(FailureMatch(), max_attempts=UNDO_ATTEMPTS)
    policy = retry_policy(given, False, path, report)
    return replace(
        policy,
        retryable=policy.retryable if given.codes or given.reasons else FailureMatch(),
        max_attempts=policy.max_attempts if given.HasField("max_attempts") else UNDO_ATTEMPTS,
    )


def check_timeouts(workflow: workflow_pb2.Workflow, report: Report) -> None:
    """Reports every timeout that is longer than one around it, and so could never pass, or than TIMEOUT_LIMIT_US."""
    longest = Around("ten years", Duration(seconds=TIMEOUT_LIMIT_US // 1_000_000))
    run = [longest]
    if workflow.HasField("run_timeout"):
        check_within("run_timeout", "run_timeout", workflow.run_timeout, [longest], report)
        run = [Around("run_timeout", workflow.run_timeout), longest]
    for index, step in enumerate(workflow.steps):
        path = f"steps[{index}]"
        if step.HasField("step_timeout"):
            check_within(f"{path}.step_timeout", "step_timeout", step.step_timeout, run, report)
        around = around_step(workflow, step)
        for name, timeout in _timeouts_within(step):
            check_within(f"{path}.{name}", name.rpartition(".")[2], timeout, around, report)
        if step.HasField("heartbeat_timeout"):
            attempt = [Around("attempt_timeout", step.attempt_timeout)] if step.HasField("attempt_timeout") else []
            here = f"{path}.heartbeat_timeout"
            check_within(here, "heartbeat_timeout", step.heartbeat_timeout, [*attempt, *around], report)
        if step.HasField("undo"):
            _check_undo(step.undo, f"{path}.undo", longest, report)


def around_step(workflow: workflow_pb2.Workflow, step: workflow_pb2.Step) -> list[Around]:
    """Returns the timeouts around what a step does."""
    longest = Around("ten years", Duration(seconds=TIMEOUT_LIMIT_US // 1_000_000))
    own = [Around("step_timeout", step.step_timeout)] if step.HasField("step_timeout") else []
    run = [Around("run_timeout", workflow.run_timeout)] if workflow.HasField("run_timeout") else []
    return [*own, *run, longest]


def _timeouts_within(step: workflow_pb2.Step) -> Iterable[tuple[str, Duration]]:
    if step.HasField("attempt_timeout"):
        yield "attempt_timeout", step.attempt_timeout
    if step.HasField("queue_timeout"):
        yield "queue_timeout", step.queue_timeout
    for number, fallback in enumerate(step.fallback):
        if fallback.HasField("attempt_timeout"):
            yield f"fallback[{number}].attempt_timeout", fallback.attempt_timeout
    if step.wait_signal.HasField("timeout"):
        yield "wait_signal.timeout", step.wait_signal.timeout
    if step.approval.HasField("timeout"):
        yield "approval.timeout", step.approval.timeout
    if step.repeat.HasField("interval"):
        yield "repeat.interval", step.repeat.interval


def _check_undo(undo: workflow_pb2.Undo, path: str, longest: Around, report: Report) -> None:
    """The time of the run does not apply to what is called when it has ended."""
    if undo.HasField("undo_timeout"):
        check_within(f"{path}.undo_timeout", "undo_timeout", undo.undo_timeout, [longest], report)
    if undo.HasField("attempt_timeout"):
        own = undo.undo_timeout if undo.HasField("undo_timeout") else Duration(seconds=UNDO_TIMEOUT_US // 1_000_000)
        around = [Around("undo_timeout", own), longest]
        check_within(f"{path}.attempt_timeout", "attempt_timeout", undo.attempt_timeout, around, report)


@dataclass(frozen=True, slots=True)
class Around:
    """A timeout around another one."""

    name: str
    duration: Duration


def check_within(path: str, name: str, inner: Duration, around: Iterable[Around], report: Report) -> None:
    """Reports a time that is longer than the first of those around it that it is longer than."""
    for outer in around:
        if duration_us(inner) > duration_us(outer.duration):
            report.add(
                path,
                "INVALID_SETTING",
                f"{name} ({_seconds(duration_us(inner))}) is longer than {outer.name} "
                f"({_seconds(duration_us(outer.duration))})",
            )
            return


def _seconds(microseconds: int) -> str:
    return f"{microseconds / 1_000_000:.6f}".rstrip("0").rstrip(".") + "s"
