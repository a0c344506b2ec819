"""Strategies for graphs and failures: small, and full of what can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.workflow import (
    Approval,
    Delivery,
    FailureBranch,
    FailureMatch,
    Graph,
    Map,
    Repeat,
    RetryPolicy,
    Signal,
    Step,
    StepKind,
    Target,
    Undo,
)

from .graphs import EVALUATION_FAILED, OUTPUT, Answers, default_retryable, link

CODES = [Code.UNAVAILABLE, Code.INTERNAL, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED]

REASONS = ["DECLINED", "OUTPUT_REJECTED", "CIRCUIT_OPEN", "QUEUE_TIMEOUT", "EVALUATION_FAILED", "OUTCOME_UNKNOWN"]

EVERY_FAILURE = st.just(FailureMatch())

MATCHES = EVERY_FAILURE | st.builds(
    FailureMatch,
    st.frozensets(st.sampled_from(CODES), max_size=2),
    st.frozensets(st.sampled_from(REASONS), max_size=2),
)

FAILURES = st.builds(
    Failure,
    st.sampled_from(CODES),
    st.sampled_from(REASONS),
    st.sampled_from(["", "no", "x" * 2048]),
    st.just(Origin.WORKER),
    outcome_unknown=st.booleans(),
)

TIMEOUTS = st.sampled_from([*[None] * 7, 1, 50_000, 1_000_000])

HOLDS = st.sampled_from([*[True] * 6, False, EVALUATION_FAILED])

SIGNALS = st.sampled_from(["paid", "shipped"])

STEP = st.integers(0, 5)


def now_and_then_failing(*values: int) -> st.SearchStrategy[Any]:
    """Draws one of the values, or seldom a failure."""
    return st.sampled_from([*values, *values, EVALUATION_FAILED])


FAILURE_OF_ONE: st.SearchStrategy[Any] = st.dictionaries(STEP, st.just(EVALUATION_FAILED), max_size=1)

ANSWERS = st.builds(
    Answers,
    st.dictionaries(STEP, HOLDS),
    st.dictionaries(STEP, now_and_then_failing(0, 1, 2, 3, 4, 5)),
    st.dictionaries(STEP, now_and_then_failing(1, 2, 3, 9)),
    st.dictionaries(STEP, now_and_then_failing(0, 1, 100_000, 100_000, 500_000, 3_600_000_000)),
    st.just({}) | FAILURE_OF_ONE,
    st.just({}) | FAILURE_OF_ONE,
    st.sampled_from([OUTPUT, OUTPUT, None, EVALUATION_FAILED]),
)

MAPS = st.builds(Map, st.integers(1, 3), st.integers(0, 3))

REPEATS = st.builds(Repeat, st.integers(2, 4), st.sampled_from([0, 1, 100_000, 2_000_000]))


@st.composite
def targets(draw: Callable[[st.SearchStrategy[Any]], Any], method: str) -> Target:
    """Draws a target."""
    repeatable = draw(st.booleans())
    policy = RetryPolicy(
        draw(st.just(default_retryable(repeatable)) | MATCHES),
        max_attempts=draw(st.integers(1, 3)),
        initial_backoff_us=draw(st.sampled_from([0, 1, 200_000])),
        max_backoff_us=draw(st.sampled_from([0, 300_000])),
        backoff_multiplier=draw(st.sampled_from([1.0, 2.0, 100.0])),
        jitter=draw(st.sampled_from([0.0, 0.2, 1.0])),
    )
    return Target(method, policy, repeatable, draw(TIMEOUTS), draw(MATCHES))


@st.composite
def calls_of(draw: Callable[[st.SearchStrategy[Any]], Any], step: Step) -> Step:
    """Draws the targets of a step that calls a method."""
    return replace(step, targets=tuple(draw(targets(f"M{place}")) for place in range(draw(st.integers(1, 3)))))


@st.composite
def kinds_of(draw: Callable[[st.SearchStrategy[Any]], Any], step: Step) -> Step:
    """Draws what a step does, as contracts allow it: an approval is of a single call without fallbacks, and what does
    not call has neither an undo call nor, unless it runs a workflow, items or iterations."""
    kind = draw(st.sampled_from([StepKind.CALL, StepKind.CALL, StepKind.CALL, *StepKind]))
    step = replace(step, kind=kind)
    if kind is StepKind.CALL:
        step = draw(calls_of(step))
        undo = draw(st.none() | st.builds(Undo, targets("U"), st.sampled_from([1, 1_000_000])))
        step = replace(step, undo=undo)
    elif kind is StepKind.SIGNAL:
        return replace(step, signal=draw(st.builds(Signal, SIGNALS, TIMEOUTS)))
    elif kind is StepKind.SLEEP:
        return step
    match draw(st.sampled_from(["one", "one", "map", "repeat", "approval"])):
        case "map":
            return replace(step, map=draw(MAPS))
        case "repeat":
            return replace(step, repeat=draw(REPEATS))
        case "approval" if kind is StepKind.CALL:
            return replace(step, approval=draw(st.builds(Approval, TIMEOUTS)), targets=step.targets[:1])
    return step


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any], max_steps: int = 6, *, of_all_kinds: bool = True) -> Graph:
    """Draws an acyclic graph whose steps stand in any order.

    The steps are drawn in an order in which each waits only for earlier ones, then renumbered.
    """
    count = draw(st.integers(1, max_steps))
    number = draw(st.permutations(range(count)))
    after: list[list[int]] = [[] for _ in range(count)]
    steps: dict[int, Step] = {}
    for position in range(count):
        index = number[position]
        if position:
            after[index] = [number[before] for before in draw(st.sets(st.integers(0, position - 1), max_size=2))]
        later: st.SearchStrategy[int | None] = st.none()
        if position + 1 < count:
            later |= st.integers(position + 1, count - 1).map(lambda place: number[place])
        step = Step(
            index,
            f"s{index}",
            (),
            has_condition=draw(st.booleans()),
            delivery=draw(st.sampled_from(Delivery)),
            queue_timeout_us=draw(TIMEOUTS),
            step_timeout_us=draw(TIMEOUTS),
            on_failure=tuple(
                draw(
                    st.lists(
                        st.builds(FailureBranch, EVERY_FAILURE | MATCHES, later),
                        min_size=draw(st.integers(0, 1)),
                        max_size=2,
                    )
                )
            ),
        )
        steps[index] = draw(kinds_of(step) if of_all_kinds else calls_of(step))
    return link([steps[index] for index in range(count)], after)


def foreseen(graph: Graph) -> Graph:
    """Returns the graph with a branch for every failure, so that runs of it go on whatever fails."""
    branches = (FailureBranch(FailureMatch(), None),)
    return replace(graph, steps=tuple(replace(step, on_failure=(*step.on_failure, *branches)) for step in graph.steps))


def without_timeouts(graph: Graph) -> Graph:
    """Returns the graph with no timeout of a step, an attempt or a wait, and with iterations enough for any answer."""
    return replace(graph, steps=tuple(_without_timeouts(step) for step in graph.steps))


def _without_timeouts(step: Step) -> Step:
    return replace(
        step,
        queue_timeout_us=None,
        step_timeout_us=None,
        targets=tuple(replace(target, attempt_timeout_us=None) for target in step.targets),
        signal=replace(step.signal, timeout_us=None) if step.signal is not None else None,
        approval=replace(step.approval, timeout_us=None) if step.approval is not None else None,
        repeat=replace(step.repeat, max_iterations=5) if step.repeat is not None else None,
    )
