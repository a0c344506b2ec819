"""Tables of values for the small functions of the core, and the faults of a journal that is not ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.domain.events import RunFailed, RunSubmitted, StepCancelled, StepFailed
from orchestrator.domain.failures import MESSAGE_LIMIT_BYTES, Code, Failure, Origin, cut_message
from orchestrator.domain.inputs import CallFailed, StepAdmitted
from orchestrator.domain.plan import decide
from orchestrator.domain.retry import backoff_us
from orchestrator.domain.run import Run, SequenceGap
from orchestrator.domain.states import IllegalTransition
from orchestrator.domain.workflow import Delivery, FailureMatch, Graph, RetryPolicy, Step, Target

from .graphs import Answers, FixedConditions

SECOND = 1_000_000

DAY = 86_400 * SECOND


@pytest.mark.parametrize(
    ("failed_attempts", "draw", "expected"),
    [
        (1, 0.0, 200_000),
        (2, 0.0, 400_000),
        (3, 0.0, 800_000),
        (8, 0.0, 25_600_000),
        (9, 0.0, 30 * SECOND),
        (1000, 0.0, 30 * SECOND),
        (1, 1.0, 160_000),
        (1, 0.5, 180_000),
        (9, 1.0, 24 * SECOND),
    ],
)
def test_backoff_of_the_default_policy(failed_attempts: int, draw: float, expected: int) -> None:
    assert backoff_us(RetryPolicy(FailureMatch()), failed_attempts, draw) == expected


@pytest.mark.parametrize(
    ("initial", "largest", "multiplier", "jitter", "failed_attempts", "draw", "expected"),
    [
        (SECOND, DAY, 1.0, 0.0, 999, 1.0, SECOND),
        (SECOND, DAY, 1.5, 0.0, 3, 0.0, 2_250_000),
        (SECOND, DAY, 2.0, 1.0, 1, 1.0, 0),
        (2 * SECOND, SECOND, 2.0, 0.0, 1, 0.0, SECOND),
        (SECOND, 0, 2.0, 0.2, 1, 0.0, 0),
        # The largest policy that the API takes: the power is beyond what a float holds.
        (DAY, DAY, 100.0, 0.0, 1000, 0.0, DAY),
        (1, DAY, 100.0, 1.0, 1000, 0.5, DAY // 2),
        # No wait stays no wait, however often it is multiplied.
        (0, DAY, 2.0, 0.2, 1, 0.0, 0),
        (0, DAY, 100.0, 0.2, 1000, 0.0, 0),
    ],
)
def test_backoff(
    initial: int, largest: int, multiplier: float, jitter: float, failed_attempts: int, draw: float, expected: int
) -> None:
    policy = RetryPolicy(FailureMatch(), 1000, initial, largest, multiplier, jitter)
    assert backoff_us(policy, failed_attempts, draw) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("", 5, ""),
        ("short", 5, "short"),
        ("longer", 5, "lo…"),
        ("longer", 3, "…"),
        ("ééé", 6, "ééé"),
        # The cut falls inside a letter, which goes as a whole.
        ("éééé", 6, "é…"),
        ("a😀😀", 8, "a😀…"),
        ("a😀😀", 7, "a…"),
        # What UTF-8 cannot hold is replaced, cut or not.
        ("a\ud800b", 10, "a?b"),
        ("a\ud800bcdef", 6, "a?b…"),
    ],
)
def test_cut_message(text: str, limit: int, expected: str) -> None:
    cut = cut_message(text, limit)
    assert cut == expected
    assert len(cut.encode()) <= limit


def test_a_message_is_cut_at_2048_bytes() -> None:
    assert cut_message("x" * MESSAGE_LIMIT_BYTES) == "x" * 2_048
    assert cut_message("x" * 2_049) == "x" * 2_045 + "…"


@pytest.mark.parametrize(
    ("codes", "reasons", "code", "reason", "matches"),
    [
        (set(), set(), Code.INTERNAL, "", True),
        ({Code.INTERNAL}, set(), Code.INTERNAL, "ANY", True),
        ({Code.INTERNAL}, set(), Code.UNKNOWN, "ANY", False),
        (set(), {"DECLINED"}, Code.UNKNOWN, "DECLINED", True),
        (set(), {"DECLINED"}, Code.UNKNOWN, "", False),
        ({Code.INTERNAL}, {"DECLINED"}, Code.UNKNOWN, "DECLINED", True),
        ({Code.INTERNAL}, {"DECLINED"}, Code.INTERNAL, "", True),
    ],
)
def test_which_failures_match(codes: set[Code], reasons: set[str], code: Code, reason: str, matches: bool) -> None:
    match = FailureMatch(frozenset(codes), frozenset(reasons))
    assert match.matches(Failure(code, reason, "", Origin.WORKER)) is matches


def submitted(sequence: int) -> RunSubmitted:
    """Returns a submission at a place in the journal."""
    return RunSubmitted(sequence, sequence, "", "r", 9, "", "", "", (), {}, "", "", None)


def new_run() -> Run:
    """Returns a run of one step that has not been submitted."""
    return Run(Graph((Step(0, "a", (Target("m", RetryPolicy(FailureMatch()), False),)),)))


def test_a_journal_with_a_gap_is_refused() -> None:
    run = new_run()
    run.apply(submitted(1))
    with pytest.raises(SequenceGap):
        run.apply(StepCancelled(3, 3, 0, 0))


def test_a_journal_that_does_not_begin_with_the_submission_is_refused() -> None:
    with pytest.raises(SequenceGap):
        new_run().apply(StepCancelled(1, 1, 0, 0))


def test_a_second_submission_is_refused() -> None:
    run = new_run()
    run.apply(submitted(1))
    with pytest.raises(SequenceGap):
        run.apply(submitted(2))


def test_a_step_ends_once() -> None:
    run = new_run()
    run.apply(submitted(1))
    run.apply(StepCancelled(2, 2, 0, 0))
    with pytest.raises(IllegalTransition):
        run.apply(StepCancelled(3, 3, 0, 0))


@pytest.mark.parametrize("outcome_unknown", [False, True])
def test_what_the_core_adds_to_a_message_stays_within_the_limit(outcome_unknown: bool) -> None:
    step = replace(new_run().graph.steps[0], delivery=Delivery.AT_MOST_ONCE)
    run = Run(Graph((step,)))
    conditions = FixedConditions(Answers(), run)
    run.apply(submitted(1))
    decide(run, StepAdmitted(0, "w", "w:1"), 2, conditions)
    failure = Failure(Code.NOT_FOUND, "GONE", "é" * 1_024, Origin.WORKER, outcome_unknown=outcome_unknown)
    decision = decide(run, CallFailed(0, 1, failure, None, 0.0), 3, conditions)
    messages = [event.failure.message for event in decision.events if isinstance(event, StepFailed | RunFailed)]
    assert len(messages) == 2
    assert all(len(message.encode()) <= MESSAGE_LIMIT_BYTES for message in messages)
    assert messages[1].startswith("step a failed: ")
    assert messages[1].endswith("…")
