"""One session of the work stream: what a replica gave this worker, what it is owed, and the stream it is told on.

Rule 1: frames in, frames out; no socket, task, clock or randomness enters here. Instants are seconds of a clock that
rises, and are passed in. Rule 2: handlers are not known here: `sessions.py` says which are to start or to be cancelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.rpc import code_pb2, status_pb2

from baton.worker.states import (
    ASSIGNMENT_TRANSITIONS,
    SESSION_TRANSITIONS,
    STREAM_TRANSITIONS,
    AssignmentEvent,
    AssignmentState,
    SessionEvent,
    SessionState,
    StreamEvent,
    StreamState,
    after,
)
from baton.worker.v1 import work_pb2

Result: TypeAlias = bytes | status_pb2.Status
"""What an assignment ended with: a serialized response, or a status other than OK."""

SILENT_HEARTBEATS = 3
"""Heartbeats after which a stream on which nothing was heard is ended."""

_EAGERNESS = 0.75  # a heartbeat goes out after this part of its time, so that it is there in time
_OUTCOME_OVERHEAD_BYTES = 32
_NAME_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker takes on its streams. `slots` are handlers that run at a time, for all sessions together."""

    slots: int = 100
    sessions: int = 64
    held: int = 20_000
    """Assignments of a session, with and without outcome; more of them end its stream."""
    owed: int = 10_000
    """Outcomes of a session that were not acknowledged; from there on it is offered no credit."""
    owed_bytes: int = 64 * 1024 * 1024
    response_bytes: int = 4 * 1024 * 1024
    frame_items: int = 500
    frame_bytes: int = 1024 * 1024
    progress_seconds: float = 0.1
    progress_characters: int = 1_024
    farewell_seconds: float = 0.5
    """How long a stream that drains waits for Baton to say that it gives no more."""


class ProtocolError(Exception):
    """Baton's frames do not fit the protocol; the stream ends with this code, the name of one of gRPC's."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(code, message)


class Held:
    """One assignment that a session holds. `handler` belongs to whoever runs it."""

    __slots__ = ("assignment", "deadline", "handler", "id", "result", "session", "size", "state", "waits")

    def __init__(self, session: Session, assignment: work_pb2.Assignment, deadline: float) -> None:
        self.id = assignment.id
        self.session = session
        self.assignment: work_pb2.Assignment | None = assignment
        self.deadline = deadline
        self.state = AssignmentState.WAITING
        self.result: Result = b""
        self.size = 0
        self.handler: Any = None
        self.waits = False
        """Whether its handler waits for steps that it delegated."""


class Session:
    """What is between this worker and one replica. It outlives its streams; `stream` is the one that is open."""

    def __init__(self, replica_id: str, limits: Limits) -> None:
        self.replica_id = replica_id
        self.state = SessionState.CONNECTED
        self.rank = 0
        """Place among the sessions with streams, by which credit is shared."""
        self.stream: Stream | None = None
        self.held: dict[int, Held] = {}
        self.forget_time = math.inf
        self.waits = 0
        """Assignments whose handlers wait for steps that they delegated."""
        self._limits = limits
        self._last_id = 0
        self._owed = 0
        self._owed_bytes = 0
        self._unsent: deque[Held] = deque()
        self._unsaid_waits: dict[int, bool] = {}
        self._progress: dict[int, tuple[float, str]] = {}
        self._progress_time = -math.inf

    @property
    def full(self) -> bool:
        """Whether so much is owed that no more should be given."""
        return self._owed >= self._limits.owed or self._owed_bytes >= self._limits.owed_bytes

    @property
    def progress_time(self) -> float:
        """When progress is to be told; never while there is none."""
        return self._progress_time if self._progress else math.inf

    def advance(self, event: SessionEvent) -> None:
        """Takes the session to the state after an event."""
        self.state = after(SESSION_TRANSITIONS, self.state, event)

    def assign(self, assignment: work_pb2.Assignment, now: float) -> Held:
        """Takes an assignment. Errors: ProtocolError."""
        number = assignment.id
        if number <= self._last_id:
            raise ProtocolError(
                "INVALID_ARGUMENT", f"assignment {number} does not follow {self._last_id}; ids of a session rise"
            )
        if len(self.held) >= self._limits.held:
            raise ProtocolError(
                "RESOURCE_EXHAUSTED", f"the session holds {len(self.held)} assignments; give as credit allows"
            )
        self._last_id = number
        held = self.held[number] = Held(self, assignment, now + assignment.timeout_us / 1e6)
        return held

    def owe(self, held: Held, event: AssignmentEvent, result: Result) -> None:
        """Ends an assignment with an outcome, which is kept until it is acknowledged."""
        held.state = after(ASSIGNMENT_TRANSITIONS, held.state, event)
        held.assignment = None
        size = len(result) if isinstance(result, bytes) else result.ByteSize()
        if size > self._limits.response_bytes:
            result = status_pb2.Status(
                code=code_pb2.RESOURCE_EXHAUSTED,
                message=f"the answer has {size} bytes; at most {self._limits.response_bytes} are taken",
            )
            size = result.ByteSize()
        held.result = result
        held.size = size + _OUTCOME_OVERHEAD_BYTES
        self._owed += 1
        self._owed_bytes += held.size
        self._unsent.append(held)
        if self._progress:
            self._progress.pop(held.id, None)
        if self.stream is not None:
            self.stream.wake()

    def acknowledge(self, number: int) -> None:
        """Forgets an outcome. Ids that are not owed are ignored."""
        held = self.held.get(number)
        if held is not None and held.state is AssignmentState.OWED:
            del self.held[number]
            self._owed -= 1
            self._owed_bytes -= held.size
            held.state = after(ASSIGNMENT_TRANSITIONS, held.state, AssignmentEvent.ACKNOWLEDGED)
            held.result = b""

    def drop(self, held: Held) -> None:
        """Forgets one assignment that has no outcome."""
        del self.held[held.id]
        held.state = after(ASSIGNMENT_TRANSITIONS, held.state, AssignmentEvent.SESSION_FORGOTTEN)
        held.assignment = None
        self._progress.pop(held.id, None)
        self._unsaid_waits.pop(held.id, None)

    def forget(self) -> list[Held]:
        """Forgets all that is held; returns what was running."""
        running = [held for held in self.held.values() if held.state is AssignmentState.RUNNING]
        for held in self.held.values():
            held.state = after(ASSIGNMENT_TRANSITIONS, held.state, AssignmentEvent.SESSION_FORGOTTEN)
            held.assignment = None
            held.result = b""
        self.held.clear()
        self._unsent.clear()
        self._progress.clear()
        self._unsaid_waits.clear()
        self._owed = self._owed_bytes = 0
        return running

    def note_wait(self, held: Held, waits: bool) -> None:
        """Notes whether a handler waits for steps that it delegated."""
        held.waits = waits
        self.waits += 1 if waits else -1
        self._unsaid_waits[held.id] = waits
        if self.stream is not None:
            self.stream.wake()

    def note_progress(self, held: Held, percent: float, message: str) -> None:
        """Notes how far an assignment is, in place of what was noted and not told."""
        if held.state is AssignmentState.RUNNING:
            self._progress[held.id] = (percent, message[: self._limits.progress_characters])

    def resend(self) -> None:
        """Lets the next frames carry every outcome that is owed, in the order of their ids, and what waits."""
        self._unsent = deque(held for held in self.held.values() if held.state is AssignmentState.OWED)
        self._unsaid_waits = {held.id: True for held in self.held.values() if held.waits}

    def add_outcomes(self, frame: work_pb2.WorkerFrame) -> int:
        """Moves outcomes into a frame, up to its limits; returns how many."""
        unsent, add = self._unsent, frame.outcomes.add
        count = size = 0
        while unsent and count < self._limits.frame_items:
            held = unsent[0]
            if count and size + held.size > self._limits.frame_bytes:
                break
            unsent.popleft()
            if held.state is not AssignmentState.OWED:
                continue  # acknowledged on a stream before this one
            result = held.result
            if isinstance(result, bytes):
                add(id=held.id, response=result)
            else:
                add(id=held.id, status=result)
            count += 1
            size += held.size
        return count

    def add_waits(self, frame: work_pb2.WorkerFrame, count: int) -> int:
        """Moves what waits, or does no more, into a frame that has `count` items; returns how many."""
        told = list(self._unsaid_waits)[: max(self._limits.frame_items - count, 0)]
        for number in told:
            frame.waits.add(id=number, waits=self._unsaid_waits.pop(number))
        return len(told)

    def add_progress(self, frame: work_pb2.WorkerFrame, count: int, now: float) -> int:
        """Moves progress into a frame that has `count` items, where its time has come; returns how many."""
        room = self._limits.frame_items - count
        if room <= 0 or now < self.progress_time:
            return 0
        told = list(self._progress)[:room]
        for number in told:
            percent, message = self._progress.pop(number)
            frame.progress.add(id=number, percent=percent, message=message)
        if not self._progress:
            self._progress_time = now + self._limits.progress_seconds
        return len(told)


class Stream:
    """One stream of a session. `wake` is called when there may be a frame to send, or the stream has ended; whoever
    carries the stream puts its own in place."""

    def __init__(
        self,
        session: Session,
        opening: work_pb2.BatonOpening,
        answer: work_pb2.WorkerOpening,
        credit: Callable[[Session], int],
        limits: Limits,
        now: float,
    ) -> None:
        self.session = session
        self.state = StreamState.OPENING
        self.wake: Callable[[], None] = _nobody
        self.draining = False
        """Whether the worker drains."""
        self.due = False
        """Whether `wake` was called because of the time, and no frame was asked for since."""
        self.error: ProtocolError | None = None
        """Why the worker ended the stream, where that was Baton's fault."""
        self.resume_seconds = opening.resume_us / 1e6
        self._answer = answer
        self._credit = credit
        self._limits = limits
        self._heartbeat = opening.heartbeat_us / 1e6
        self._heard_time = now
        self._sent_time = now
        self._told_credit = 0
        self._drain_told_time = math.inf
        self._drain_heard = False

    @property
    def next_time(self) -> float:
        """When the stream is to be looked at again though nothing happened."""
        silent_time = self._heard_time + SILENT_HEARTBEATS * self._heartbeat
        if self.due:
            return silent_time
        return min(
            silent_time,
            self._sent_time + _EAGERNESS * self._heartbeat,
            self.session.progress_time,
            self._drain_told_time + self._limits.farewell_seconds if self._drained else math.inf,
        )

    @property
    def _drained(self) -> bool:
        return self._drain_told_time < math.inf and not self.session.held

    def silent(self, now: float) -> bool:
        """Tells whether nothing was heard for too long."""
        return now >= self._heard_time + SILENT_HEARTBEATS * self._heartbeat

    def hear(self, frame: work_pb2.BatonFrame, now: float) -> None:
        """Notes that Baton is there, and whether it drains. Errors: ProtocolError."""
        if frame.HasField("opening"):
            raise ProtocolError("INVALID_ARGUMENT", "only the first frame of a stream has an opening")
        self._heard_time = now
        if frame.drain:
            self._drain_heard = True
            if self.state is not StreamState.OPENING:
                self.advance(StreamEvent.DRAIN_BEGUN)

    def advance(self, event: StreamEvent) -> None:
        """Takes the stream to the state after an event."""
        self.state = after(STREAM_TRANSITIONS, self.state, event)

    def end(self, error: ProtocolError | None = None) -> None:
        """Ends the stream; nothing more is sent on it."""
        if self.state is not StreamState.ENDED:
            self.advance(StreamEvent.STREAM_ENDED)
            self.error = error
            self.wake()

    def next_frame(self, now: float) -> work_pb2.WorkerFrame | None:
        """Returns the next frame to send, None where there is nothing to say now."""
        self.due = False
        if self.state is StreamState.ENDED:
            return None
        frame = work_pb2.WorkerFrame()
        if self.state is StreamState.OPENING:
            self._open(frame, now)
        elif not self._fill(frame, now) and now < self._sent_time + _EAGERNESS * self._heartbeat:
            if self._drained and (self._drain_heard or now >= self._drain_told_time + self._limits.farewell_seconds):
                self.end()
            return None
        self._sent_time = now
        return frame

    def _open(self, frame: work_pb2.WorkerFrame, now: float) -> None:
        frame.opening.CopyFrom(self._answer)
        self._answer.Clear()
        self._told_credit = frame.opening.credit = self._credit(self.session)
        frame.opening.held.extend(self.session.held)
        self.session.resend()
        self.advance(StreamEvent.OPENING_SENT)
        if self.draining:
            # At once: between the opening and a frame of its own, Baton would give work.
            frame.drain = True
            self._drain_told_time = now
        if self._drain_heard or self.draining:
            self.advance(StreamEvent.DRAIN_BEGUN)

    def _fill(self, frame: work_pb2.WorkerFrame, now: float) -> bool:
        """Adds what there is to say; returns whether there was anything."""
        session = self.session
        count = session.add_outcomes(frame)
        count += session.add_waits(frame, count)
        count += session.add_progress(frame, count, now)
        credit = self._credit(session)
        anything = count > 0
        if credit != self._told_credit:
            self._told_credit = frame.credit = credit
            anything = True
        if self.draining and self._drain_told_time == math.inf:
            self._drain_told_time = now
            frame.drain = True
            self.advance(StreamEvent.DRAIN_BEGUN)
            anything = True
        return anything


def _nobody() -> None:
    """Is called in place of whoever sends frames."""


def checked_opening(frame: work_pb2.BatonFrame) -> work_pb2.BatonOpening:
    """Returns the opening of a stream's first frame. Errors: ProtocolError."""
    opening = frame.opening
    if not frame.HasField("opening"):
        raise ProtocolError("INVALID_ARGUMENT", "the first frame of a stream has an opening")
    if not 0 < len(opening.replica_id) <= _NAME_LIMIT:
        raise ProtocolError("INVALID_ARGUMENT", f"opening.replica_id has 1 to {_NAME_LIMIT} characters")
    if opening.heartbeat_us <= 0 or opening.resume_us < 0:
        raise ProtocolError("INVALID_ARGUMENT", "opening.heartbeat_us is above 0, and opening.resume_us not below")
    return opening
