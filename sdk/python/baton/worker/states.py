"""Every state and every legal transition of work streams, their sessions and assignments, as a worker sees them.

Rule 1: no other file decides which transition is legal. Rule 2: nothing but states and events enters here: no frame, no
time, no limit. The drawings in docs/work-stream.md are made from these tables.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar


class StreamState(enum.IntEnum):
    """Where one stream is in its life."""

    OPENING = 1
    OPEN = 2
    DRAINING = 3
    ENDED = 4


class StreamEvent(enum.IntEnum):
    """What happens to a stream. It is drained by either side, and ends for many reasons."""

    OPENING_SENT = 1
    DRAIN_BEGUN = 2
    STREAM_ENDED = 3


class SessionState(enum.IntEnum):
    """Where a session is in its life."""

    CONNECTED = 1
    LOST = 2
    FORGOTTEN = 3


class SessionEvent(enum.IntEnum):
    """What happens to a session. A stream that ends while nothing is held takes its session with it."""

    STREAM_OPENED = 1
    STREAM_ENDED_HOLDING = 2
    STREAM_ENDED_EMPTY = 3
    RESUME_TIME_PASSED = 4


class AssignmentState(enum.IntEnum):
    """Where an assignment is in its life: OWED has an outcome that Baton has not acknowledged."""

    WAITING = 1
    RUNNING = 2
    OWED = 3
    FORGOTTEN = 4


class AssignmentEvent(enum.IntEnum):
    """What happens to an assignment."""

    HANDLER_STARTED = 1
    HANDLER_ENDED = 2
    DEADLINE_PASSED = 3
    CANCELLED = 4
    ACKNOWLEDGED = 5
    SESSION_FORGOTTEN = 6


State = TypeVar("State", StreamState, SessionState, AssignmentState)
Event = TypeVar("Event", StreamEvent, SessionEvent, AssignmentEvent)

STREAM_TRANSITIONS: Mapping[StreamEvent, Mapping[StreamState, StreamState]] = {
    StreamEvent.OPENING_SENT: {StreamState.OPENING: StreamState.OPEN},
    StreamEvent.DRAIN_BEGUN: {
        StreamState.OPEN: StreamState.DRAINING,
        StreamState.DRAINING: StreamState.DRAINING,
    },
    StreamEvent.STREAM_ENDED: {
        StreamState.OPENING: StreamState.ENDED,
        StreamState.OPEN: StreamState.ENDED,
        StreamState.DRAINING: StreamState.ENDED,
    },
}
"""Event -> state of the stream before it -> state after it. Any other pair is a fault."""

SESSION_TRANSITIONS: Mapping[SessionEvent, Mapping[SessionState, SessionState]] = {
    SessionEvent.STREAM_OPENED: {
        SessionState.CONNECTED: SessionState.CONNECTED,
        SessionState.LOST: SessionState.CONNECTED,
    },
    SessionEvent.STREAM_ENDED_HOLDING: {SessionState.CONNECTED: SessionState.LOST},
    SessionEvent.STREAM_ENDED_EMPTY: {SessionState.CONNECTED: SessionState.FORGOTTEN},
    SessionEvent.RESUME_TIME_PASSED: {SessionState.LOST: SessionState.FORGOTTEN},
}
"""Event -> state of the session before it -> state after it. The first stream begins a session CONNECTED."""

ASSIGNMENT_TRANSITIONS: Mapping[AssignmentEvent, Mapping[AssignmentState, AssignmentState]] = {
    AssignmentEvent.HANDLER_STARTED: {AssignmentState.WAITING: AssignmentState.RUNNING},
    AssignmentEvent.HANDLER_ENDED: {AssignmentState.RUNNING: AssignmentState.OWED},
    AssignmentEvent.DEADLINE_PASSED: {
        AssignmentState.WAITING: AssignmentState.OWED,
        AssignmentState.RUNNING: AssignmentState.OWED,
    },
    AssignmentEvent.CANCELLED: {
        AssignmentState.WAITING: AssignmentState.OWED,
        AssignmentState.RUNNING: AssignmentState.OWED,
    },
    AssignmentEvent.ACKNOWLEDGED: {AssignmentState.OWED: AssignmentState.FORGOTTEN},
    AssignmentEvent.SESSION_FORGOTTEN: {
        AssignmentState.WAITING: AssignmentState.FORGOTTEN,
        AssignmentState.RUNNING: AssignmentState.FORGOTTEN,
        AssignmentState.OWED: AssignmentState.FORGOTTEN,
    },
}
"""Event -> state of the assignment before it -> state after it. An assignment begins WAITING when it arrives."""


class IllegalTransition(Exception):
    """An event does not fit the state it met: a fault in the worker's own bookkeeping."""


def after(table: Mapping[Event, Mapping[State, State]], state: State, event: Event) -> State:
    """Returns the state after an event. Errors: IllegalTransition."""
    following = table[event].get(state)
    if following is None:
        raise IllegalTransition(f"{event.name} in state {state.name}")
    return following
