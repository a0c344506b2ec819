"""Strategies for graphs and failures: small, and full of what can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.workflow import Delivery, FailureBranch, FailureMatch, Graph, RetryPolicy, Step, Target

from .graphs import EVALUATION_FAILED, default_retryable, link

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

TIMEOUTS = st.sampled_from([None, None, None, 1, 50_000, 1_000_000])

ANSWERS = st.sampled_from([True, True, False, EVALUATION_FAILED])


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
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any], max_steps: int = 6) -> Graph:
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
        steps[index] = Step(
            index,
            f"s{index}",
            tuple(draw(targets(f"M{place}")) for place in range(draw(st.integers(1, 3)))),
            has_condition=draw(st.booleans()),
            delivery=draw(st.sampled_from(Delivery)),
            queue_timeout_us=draw(TIMEOUTS),
            step_timeout_us=draw(TIMEOUTS),
            on_failure=tuple(draw(st.lists(st.builds(FailureBranch, MATCHES, later), max_size=3))),
        )
    return link([steps[index] for index in range(count)], after)


def without_timeouts(graph: Graph) -> Graph:
    """Returns the graph with no timeout of a step or an attempt."""
    return replace(
        graph,
        steps=tuple(
            replace(
                step,
                queue_timeout_us=None,
                step_timeout_us=None,
                targets=tuple(replace(target, attempt_timeout_us=None) for target in step.targets),
            )
            for step in graph.steps
        ),
    )
