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
    UNDOING = 6


class StepState(enum.IntEnum):
    """Where a step is in its life."""

    BLOCKED = 1
    READY = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    SKIPPED = 6
    CANCELLED = 7
    WAITING = 8


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
    STEP_WAITING = 22
    STEP_DELEGATED = 23
    ATTEMPT_SUSPENDED = 24
    SIGNAL_RECEIVED = 25
    APPROVAL_DECIDED = 26
    ITERATION_STARTED = 27
    CHECKPOINT_RECORDED = 28
    RUN_UNDOING = 29
    RUN_REOPENED = 30
    RUN_PAUSED = 31
    RUN_RESUMED = 32
    APPROVAL_REQUESTED = 33
    STEP_RETRIED = 34


ENDED_RUN = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
ENDED_STEP = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED})

TERMINAL_EVENTS = frozenset({EventKind.RUN_SUCCEEDED, EventKind.RUN_FAILED, EventKind.RUN_CANCELLED})

_LIVE_STEP = frozenset({StepState.BLOCKED, StepState.READY, StepState.RUNNING, StepState.WAITING})

RUN_TRANSITIONS: dict[EventKind, dict[RunState, RunState]] = {
    EventKind.ATTEMPT_STARTED: {
        RunState.PENDING: RunState.RUNNING,
        RunState.RUNNING: RunState.RUNNING,
        RunState.UNDOING: RunState.UNDOING,
    },
    EventKind.STEP_WAITING: {RunState.PENDING: RunState.RUNNING, RunState.RUNNING: RunState.RUNNING},
    EventKind.APPROVAL_REQUESTED: {RunState.PENDING: RunState.RUNNING, RunState.RUNNING: RunState.RUNNING},
    EventKind.RUN_UNDOING: {RunState.RUNNING: RunState.UNDOING},
    EventKind.RUN_SUCCEEDED: dict.fromkeys((RunState.PENDING, RunState.RUNNING), RunState.SUCCEEDED),
    EventKind.RUN_FAILED: dict.fromkeys((RunState.PENDING, RunState.RUNNING, RunState.UNDOING), RunState.FAILED),
    EventKind.RUN_CANCELLED: dict.fromkeys((RunState.PENDING, RunState.RUNNING, RunState.UNDOING), RunState.CANCELLED),
    EventKind.RUN_REOPENED: dict.fromkeys((RunState.FAILED, RunState.CANCELLED), RunState.RUNNING),
}
"""Kind of event -> state of the run it may occur in -> state after it. Other kinds leave the run's state as it is."""

STEP_TRANSITIONS: dict[EventKind, dict[StepState, StepState]] = {
    EventKind.ATTEMPT_STARTED: {StepState.READY: StepState.RUNNING},
    EventKind.DELIVERY_STARTED: {StepState.RUNNING: StepState.RUNNING},
    EventKind.CHECKPOINT_RECORDED: {StepState.RUNNING: StepState.RUNNING},
    EventKind.STEP_DELEGATED: {StepState.RUNNING: StepState.RUNNING},
    EventKind.ATTEMPT_FAILED: {StepState.RUNNING: StepState.READY},
    EventKind.ATTEMPT_SUSPENDED: {StepState.RUNNING: StepState.WAITING},
    EventKind.FALLBACK_TAKEN: {StepState.READY: StepState.READY},
    EventKind.STEP_WAITING: dict.fromkeys((StepState.READY, StepState.WAITING), StepState.WAITING),
    EventKind.APPROVAL_REQUESTED: {StepState.READY: StepState.WAITING},
    EventKind.ITERATION_STARTED: {StepState.WAITING: StepState.WAITING},
    EventKind.APPROVAL_DECIDED: {StepState.WAITING: StepState.READY},
    EventKind.STEP_SUCCEEDED: dict.fromkeys(sorted(_LIVE_STEP), StepState.SUCCEEDED),
    EventKind.STEP_FAILED: dict.fromkeys((StepState.READY, StepState.WAITING), StepState.FAILED),
    EventKind.STEP_SKIPPED: dict.fromkeys(sorted(_LIVE_STEP), StepState.SKIPPED),
    EventKind.STEP_CANCELLED: dict.fromkeys(sorted(_LIVE_STEP), StepState.CANCELLED),
    EventKind.STEP_RETRIED: {
        StepState.READY: StepState.READY,
        StepState.RUNNING: StepState.RUNNING,
        StepState.WAITING: StepState.WAITING,
        StepState.SUCCEEDED: StepState.BLOCKED,
        StepState.FAILED: StepState.BLOCKED,
        StepState.SKIPPED: StepState.BLOCKED,
    },
}
"""Kind of event -> state of the step it may occur in -> state after it; of STEP_DELEGATED,
that of the step which delegates.

Without an event of its own, BLOCKED becomes READY when the last of the step's predecessors has ended (or, among the
items of a map and the undo calls of a run, when its turn comes), and WAITING becomes READY when a step that a suspended
attempt waits for has ended. A delegated step begins as READY, an iteration too. RUN_REOPENED lets ended steps begin
anew, as BLOCKED or READY; STEP_RETRIED does so to one step and to those that depend on it. BLOCKED and READY become
SUCCEEDED where an output is given in place of the step."""


class IllegalTransition(Exception):
    """An event does not fit the state it met: a fault in the core, or a journal that is not ours."""


def next_run_state(state: RunState, kind: EventKind) -> RunState:
    """Returns the state of a run after an event. Errors: IllegalTransition."""
    rule = RUN_TRANSITIONS.get(kind)
    if rule is None:
        if state in ENDED_RUN:
            raise IllegalTransition(f"{kind.name} after the run has ended as {state.name}")
        return state
    target = rule.get(state)
    if target is None:
        raise IllegalTransition(f"{kind.name} in run state {state.name}")
    return target


def next_step_state(state: StepState, kind: EventKind) -> StepState:
    """Returns the state of a step after an event. Errors: IllegalTransition."""
    target = STEP_TRANSITIONS[kind].get(state)
    if target is None:
        raise IllegalTransition(f"{kind.name} in step state {state.name}")
    return target
