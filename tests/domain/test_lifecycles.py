"""The page docs/lifecycles.md shows the tables of states as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from orchestrator.domain.states import (
    ENDED_RUN,
    ENDED_STEP,
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_EVENTS,
    EventKind,
    IllegalTransition,
    RunState,
    StepState,
    next_run_state,
    next_step_state,
)

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    generator = runpy.run_path(str(DOCS / "generate_lifecycles.py"))
    expected = generator["page"]().rstrip("\n") + "\n"
    assert (DOCS / "lifecycles.md").read_text() == expected, "run: python docs/generate_lifecycles.py"


@pytest.mark.parametrize("kind", sorted(set(EventKind) - {EventKind.RUN_REOPENED}))
@pytest.mark.parametrize("state", sorted(ENDED_RUN))
def test_nothing_may_follow_the_end_of_a_run(state: RunState, kind: EventKind) -> None:
    with pytest.raises(IllegalTransition):
        next_run_state(state, kind)


@pytest.mark.parametrize("kind", sorted(set(STEP_TRANSITIONS) - {EventKind.STEP_RETRIED}))
@pytest.mark.parametrize("state", sorted(ENDED_STEP))
def test_nothing_may_follow_the_end_of_a_step(state: StepState, kind: EventKind) -> None:
    with pytest.raises(IllegalTransition):
        next_step_state(state, kind)


def test_a_run_that_did_not_succeed_may_be_reopened() -> None:
    assert set(RUN_TRANSITIONS[EventKind.RUN_REOPENED]) == ENDED_RUN - {RunState.SUCCEEDED}


def test_a_step_that_ended_by_itself_may_begin_anew() -> None:
    rule = STEP_TRANSITIONS[EventKind.STEP_RETRIED]
    assert {state for state in ENDED_STEP if rule.get(state) is StepState.BLOCKED} == ENDED_STEP - {StepState.CANCELLED}


def test_every_kind_of_event_has_its_place() -> None:
    ending = {kind for kind, rule in RUN_TRANSITIONS.items() if ENDED_RUN & set(rule.values())}
    assert ending == TERMINAL_EVENTS
    changes_no_state = {
        EventKind.RUN_SUBMITTED,
        EventKind.SIGNAL_RECEIVED,
        EventKind.RUN_PAUSED,
        EventKind.RUN_RESUMED,
    }
    assert set(EventKind) == changes_no_state | set(RUN_TRANSITIONS) | set(STEP_TRANSITIONS)


def test_every_state_can_be_reached() -> None:
    steps = {target for rule in STEP_TRANSITIONS.values() for target in rule.values()}
    assert steps | {StepState.BLOCKED} == set(StepState)
    runs = {target for rule in RUN_TRANSITIONS.values() for target in rule.values()}
    assert runs | {RunState.PENDING} == set(RunState)
