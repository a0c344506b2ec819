"""Settings of a workflow: timeouts and retry policies, with their defaults, and the checks that they fit together."""

from __future__ import annotations

from collections.abc import Iterable

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


def check_timeouts(workflow: workflow_pb2.Workflow, report: Report) -> None:
    """Reports every timeout that is longer than one around it, and so could never pass, or than TIMEOUT_LIMIT_US."""
    run = workflow.run_timeout if workflow.HasField("run_timeout") else None
    longest: tuple[str, Duration | None] = ("ten years", Duration(seconds=TIMEOUT_LIMIT_US // 1_000_000))
    if run is not None:
        _check_within("run_timeout", "run_timeout", run, [longest], report)
    for index, step in enumerate(workflow.steps):
        path = f"steps[{index}]"
        around = [("run_timeout", run), longest]
        if step.HasField("step_timeout"):
            _check_within(
                f"{path}.step_timeout",
                "step_timeout",
                step.step_timeout,
                around,
                report,
            )
            around.insert(0, ("step_timeout", step.step_timeout))
        if step.HasField("attempt_timeout"):
            _check_within(
                f"{path}.attempt_timeout",
                "attempt_timeout",
                step.attempt_timeout,
                around,
                report,
            )
        if step.HasField("queue_timeout"):
            _check_within(
                f"{path}.queue_timeout",
                "queue_timeout",
                step.queue_timeout,
                around,
                report,
            )
        for number, fallback in enumerate(step.fallback):
            if fallback.HasField("attempt_timeout"):
                here = f"{path}.fallback[{number}].attempt_timeout"
                _check_within(here, "attempt_timeout", fallback.attempt_timeout, around, report)


def _check_within(
    path: str,
    name: str,
    inner: Duration,
    around: list[tuple[str, Duration | None]],
    report: Report,
) -> None:
    for outer_name, outer in around:
        if outer is not None and duration_us(inner) > duration_us(outer):
            report.add(
                path,
                "INVALID_SETTING",
                f"{name} ({_seconds(duration_us(inner))}) is longer than {outer_name} ({_seconds(duration_us(outer))})",
            )
            return


def _seconds(microseconds: int) -> str:
    return f"{microseconds / 1_000_000:.6f}".rstrip("0").rstrip(".") + "s"
