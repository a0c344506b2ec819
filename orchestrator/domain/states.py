"""Every state and every legal transition of runs and steps, as data.

Rule 1: no other file decides which transition is legal. Rule 2: nothing but states and the kinds of events enters here:
no time, no retry rule, no graph. Numbers are those of baton.v1.RunState, baton.v1.StepState and of the fields of
baton.v1.RunEvent.kind.
"""

from __future__ import annotations

import enum


class RunState(enum.IntEnum):
    """Where a run is in its life."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5


class StepState(enum.IntEnum):
    """Where a step is in its life."""

    BLOCKED = 1
    READY = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    SKIPPED = 6
    CANCELLED = 7


class EventKind(enum.IntEnum):
    """Kinds of events."""

    RUN_SUBMITTED = 10
    ATTEMPT_STARTED = 11
    DELIVERY_STARTED = 12
    ATTEMPT_FAILED = 13
    FALLBACK_TAKEN = 14
    STEP_SUCCEEDED = 15
    STEP_FAILED = 16
    STEP_SKIPPED = 17
    STEP_CANCELLED = 18
    RUN_SUCCEEDED = 19
    RUN_FAILED = 20
    RUN_CANCELLED = 21


ENDED_RUN = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
ENDED_STEP = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED})

TERMINAL_EVENTS = frozenset({EventKind.RUN_SUCCEEDED, EventKind.RUN_FAILED, EventKind.RUN_CANCELLED})

_LIVE_RUN = frozenset({RunState.PENDING, RunState.RUNNING})
_LIVE_STEP = frozenset({StepState.BLOCKED, StepState.READY, StepState.RUNNING})

RUN_TRANSITIONS: dict[EventKind, tuple[frozenset[RunState], RunState]] = {
    EventKind.ATTEMPT_STARTED: (_LIVE_RUN, RunState.RUNNING),
    EventKind.RUN_SUCCEEDED: (_LIVE_RUN, RunState.SUCCEEDED),
    EventKind.RUN_FAILED: (_LIVE_RUN, RunState.FAILED),
    EventKind.RUN_CANCELLED: (_LIVE_RUN, RunState.CANCELLED),
}
"""Kind of event -> states of the run it may occur in, state after it. Other kinds leave the run's state as it is."""

STEP_TRANSITIONS: dict[EventKind, tuple[frozenset[StepState], StepState]] = {
    EventKind.ATTEMPT_STARTED: (frozenset({StepState.READY}), StepState.RUNNING),
    EventKind.DELIVERY_STARTED: (frozenset({StepState.RUNNING}), StepState.RUNNING),
    EventKind.ATTEMPT_FAILED: (frozenset({StepState.RUNNING}), StepState.READY),
    EventKind.FALLBACK_TAKEN: (frozenset({StepState.READY}), StepState.READY),
    EventKind.STEP_SUCCEEDED: (frozenset({StepState.RUNNING}), StepState.SUCCEEDED),
    EventKind.STEP_FAILED: (frozenset({StepState.READY}), StepState.FAILED),
    EventKind.STEP_SKIPPED: (frozenset({StepState.READY}), StepState.SKIPPED),
    EventKind.STEP_CANCELLED: (_LIVE_STEP, StepState.CANCELLED),
}
"""Kind of event -> states of the step it may occur in, state after it. BLOCKED becomes READY without an event: when the
last of the step's predecessors has ended."""


class IllegalTransition(Exception):
    """An event does not fit the state it met: a fault in the core, or a journal that is not ours."""


def next_run_state(state: RunState, kind: EventKind) -> RunState:
    """Returns the state of a run after an event. Errors: IllegalTransition."""
    rule = RUN_TRANSITIONS.get(kind)
    if rule is None:
        if state in ENDED_RUN:
            raise IllegalTransition(f"{kind.name} after the run has ended as {state.name}")
        return state
    sources, target = rule
    if state not in sources:
        raise IllegalTransition(f"{kind.name} in run state {state.name}")
    return target


def next_step_state(state: StepState, kind: EventKind) -> StepState:
    """Returns the state of a step after an event. Errors: IllegalTransition."""
    sources, target = STEP_TRANSITIONS[kind]
    if state not in sources:
        raise IllegalTransition(f"{kind.name} in step state {state.name}")
    return target
