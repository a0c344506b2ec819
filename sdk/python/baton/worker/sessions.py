"""All sessions of a worker: which handlers run, how credit is shared, which deadlines and streams are over.

As in `session.py`, nothing here waits, reads a clock or runs a handler: calls return what is to start or be cancelled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from google.rpc import code_pb2, status_pb2

from baton.worker.session import Held, Limits, ProtocolError, Result, Session, Stream, checked_opening
from baton.worker.states import (
    ASSIGNMENT_TRANSITIONS,
    AssignmentEvent,
    AssignmentState,
    SessionEvent,
    StreamState,
    after,
)
from baton.worker.v1 import work_pb2

_SWEEP_SECONDS = 0.01  # deadlines that are closer to each other are looked at together

_LATE = status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED, message="the handler did not end in time")
_UNWANTED = status_pb2.Status(code=code_pb2.CANCELLED, message="the outcome is no longer wanted")
_LIVE = (AssignmentState.WAITING, AssignmentState.RUNNING)


class Sessions:
    """The sessions of one worker process. `worker` is its name, `instance_id` this process."""

    def __init__(self, worker: str, instance_id: str, limits: Limits) -> None:
        self.limits = limits
        self._worker = worker
        self.instance_id = instance_id
        self._sessions: dict[str, Session] = {}
        self._connected = 0
        self._waiting: deque[Held] = deque()
        self._stale = 0
        self._running = 0
        self._overrunning = 0
        self._waits = 0
        self._sweep_time = math.inf
        self.draining = False
        """Whether no more assignments are taken."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is owed."""
        return not self._running and not any(session.held for session in self._sessions.values())

    @property
    def running(self) -> int:
        """Handlers that run, with those whose outcome was given for them and those that wait for steps of theirs."""
        return self._running

    @property
    def waiting(self) -> int:
        """Handlers of these that wait for steps that they delegated."""
        return self._waits

    @property
    def streams(self) -> list[Stream]:
        """The streams that are open."""
        return [session.stream for session in self._sessions.values() if session.stream is not None]

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, frame: work_pb2.BatonFrame, now: float, answer: work_pb2.WorkerOpening | None = None) -> Stream:
        """Begins a stream with its first frame, and ends the one that its session had. Errors: ProtocolError.

        `answer` holds what the worker's opening says beside its credit and what it holds.
        """
        opening = checked_opening(frame)
        session = self._sessions.get(opening.replica_id)
        if session is None:
            if len(self._sessions) >= self.limits.sessions:
                raise ProtocolError("RESOURCE_EXHAUSTED", f"the worker has {len(self._sessions)} sessions already")
            session = self._sessions[opening.replica_id] = Session(opening.replica_id, self.limits)
        else:
            session.advance(SessionEvent.STREAM_OPENED)
            session.forget_time = math.inf
            if session.stream is not None:
                session.stream.end()
        told = work_pb2.WorkerOpening(
            worker=self._worker, instance_id=self.instance_id, max_in_flight=self.limits.slots
        )
        if answer is not None:
            told.MergeFrom(answer)
        session.stream = Stream(session, opening, told, self._credit, self.limits, now)
        session.stream.draining = self.draining
        self._rank()
        return session.stream

    def receive(self, stream: Stream, frame: work_pb2.BatonFrame, now: float) -> list[Held]:
        """Takes a frame; returns what is to be cancelled. Errors: ProtocolError, after which the stream is to be ended.

        What is to start is told by `take`.
        """
        session = stream.session
        if session.stream is not stream or stream.state is StreamState.ENDED:
            return []
        stream.hear(frame, now)
        for number in frame.acknowledged:
            session.acknowledge(number)
        for assignment in frame.assignments:
            held = session.assign(assignment, now)
            self._waiting.append(held)
            if held.deadline < self._sweep_time:
                self._sweep_time = max(held.deadline, now + _SWEEP_SECONDS)
        unwanted = (session.held[number] for number in frame.cancelled if number in session.held)
        cancelled = self._end_early(unwanted, AssignmentEvent.CANCELLED, _UNWANTED)
        if frame.acknowledged or frame.drain:
            stream.wake()
        return cancelled

    def take(self) -> list[Held]:
        """Returns the assignments whose handlers are to start now, in the order they were given."""
        started: list[Held] = []
        while self._waiting and self._running - self._waits < self.limits.slots:
            held = self._waiting.popleft()
            if held.state is not AssignmentState.WAITING:
                self._stale -= 1
                continue
            held.state = after(ASSIGNMENT_TRANSITIONS, held.state, AssignmentEvent.HANDLER_STARTED)
            self._running += 1
            started.append(held)
        return started

    def finish(self, held: Held, result: Result) -> bool:
        """Notes that a handler has ended; returns whether another may start."""
        self.wait(held, False)
        self._running -= 1
        if held.state is AssignmentState.RUNNING:
            held.session.owe(held, AssignmentEvent.HANDLER_ENDED, result)
        else:
            self._overrunning -= 1
            self._wake_all()
        return bool(self._waiting)

    def drop(self, held: Held, now: float) -> None:
        """Forgets an assignment that has no outcome and will have none, and ends its stream: Baton hears by the next
        one's opening that it is not held any more."""
        session = held.session
        if held.state is not AssignmentState.RUNNING:
            self.finish(held, b"")  # It was ended without its handler.
            return
        self.wait(held, False)
        self._running -= 1
        session.drop(held)
        if session.stream is not None:
            self.lose(session.stream, now)

    def wait(self, held: Held, waits: bool) -> None:
        """Notes whether a handler waits for steps that it delegated. Meanwhile it needs no slot, and the credit of its
        session is larger by one, so that they can run here. It goes on at once, even where all slots are taken by then.
        """
        waits = waits and held.state is AssignmentState.RUNNING
        if held.waits != waits:
            self._waits += 1 if waits else -1
            held.session.note_wait(held, waits)

    def progress(self, held: Held, percent: float, message: str) -> None:
        """Notes how far a handler is."""
        held.session.note_progress(held, percent, message)

    def lose(self, stream: Stream, now: float) -> None:
        """Notes the end of a stream, whoever ended it. What its session holds stays until it is taken up again."""
        stream.end()
        session = stream.session
        if session.stream is not stream:
            return
        session.stream = None
        if session.held:
            session.advance(SessionEvent.STREAM_ENDED_HOLDING)
            session.forget_time = now + stream.resume_seconds
        else:
            session.advance(SessionEvent.STREAM_ENDED_EMPTY)
            del self._sessions[session.replica_id]
        self._rank()

    def resize(self, slots: int) -> None:
        """Lets other so many handlers run at a time, and shares the credit anew."""
        if slots != self.limits.slots:
            self.limits = replace(self.limits, slots=slots)
            self._wake_all()

    def drain(self) -> None:
        """Takes no more assignments: says so on every stream, and on those that are opened later."""
        self.draining = True
        for stream in self.streams:
            stream.draining = True
            stream.wake()

    def forget_all(self) -> list[Held]:
        """Forgets every session; returns what is to be cancelled."""
        return [held for session in self._sessions.values() for held in self._forget(session)]

    def tick(self, now: float) -> list[Held]:
        """Does what is due: ends silent streams, forgets lost sessions, and returns what is to be cancelled."""
        for stream in self.streams:
            if stream.silent(now):
                stream.end(ProtocolError("DEADLINE_EXCEEDED", "nothing was heard for three heartbeats"))
                self.lose(stream, now)
            elif now >= stream.next_time:
                stream.due = True
                stream.wake()
        cancelled: list[Held] = []
        for session in [each for each in self._sessions.values() if now >= each.forget_time]:
            session.advance(SessionEvent.RESUME_TIME_PASSED)
            del self._sessions[session.replica_id]
            cancelled += self._forget(session)
        if now >= self._sweep_time:
            cancelled += self._sweep(now)
        return cancelled

    @property
    def next_time(self) -> float:
        """When `tick` is to be called, at the latest; infinite while there is nothing to watch."""
        if not self._sessions:
            return math.inf
        times = [self._sweep_time]
        for session in self._sessions.values():
            times.append(session.forget_time if session.stream is None else session.stream.next_time)
        return min(times)

    def _forget(self, session: Session) -> list[Held]:
        self._stale += sum(held.state is AssignmentState.WAITING for held in session.held.values())
        running = session.forget()
        for held in running:
            self.wait(held, False)
        self._overrunning += len(running)
        self._drop_stale()
        return running

    def _sweep(self, now: float) -> list[Held]:
        """Ends what is late, and finds the next deadline."""
        live = [held for each in self._sessions.values() for held in each.held.values() if held.state in _LIVE]
        cancelled = self._end_early(
            (held for held in live if held.deadline <= now), AssignmentEvent.DEADLINE_PASSED, _LATE
        )
        coming = min((held.deadline for held in live if held.state in _LIVE), default=math.inf)
        self._sweep_time = max(coming, now + _SWEEP_SECONDS)
        return cancelled

    def _end_early(self, chosen: Iterable[Held], event: AssignmentEvent, status: status_pb2.Status) -> list[Held]:
        """Gives outcomes in place of handlers; returns those whose handlers run."""
        running: list[Held] = []
        for held in chosen:
            if held.state not in _LIVE:
                continue
            if held.state is AssignmentState.RUNNING:
                running.append(held)
                self.wait(held, False)
            else:
                self._stale += 1
            held.session.owe(held, event, status)
        if running:
            self._overrunning += len(running)
            self._wake_all()
        self._drop_stale()
        return running

    def _drop_stale(self) -> None:
        """Takes out of the queue what ended in it, once that is most of it."""
        if self._stale > len(self._waiting) // 2:
            self._waiting = deque(held for held in self._waiting if held.state is AssignmentState.WAITING)
            self._stale = 0

    def _credit(self, session: Session) -> int:
        """Returns the assignments without outcome that a session may have at a time."""
        slots = self.limits.slots - self._overrunning
        if self.draining or session.full or slots <= 0 or not self._connected:
            return 0
        share, rest = divmod(slots, self._connected)
        return max(1, share + (session.rank < rest)) + session.waits

    def _rank(self) -> None:
        """Shares the credit anew among the sessions with streams."""
        streams = self.streams
        self._connected = len(streams)
        for rank, stream in enumerate(streams):
            stream.session.rank = rank
        self._wake_all()

    def _wake_all(self) -> None:
        for stream in self.streams:
            stream.wake()
