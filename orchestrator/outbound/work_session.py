"""Baton's half of a work session: which assignments a worker has, and what is to be said to it next.

A session is what one replica and one worker process have in common; it outlives the streams that carry it. Frames come
in and frames go out: how they travel is in work_stream.py. What may not enter: sockets, tasks, waiting. The protocol is
docs/work-stream.md.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from baton.worker.v1 import work_pb2
from google.rpc import status_pb2

from orchestrator.domain.failures import Code
from orchestrator.engine.worker_ports import Answer, Call, CallListener
from orchestrator.outbound import statuses

_LOG = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""Each side says something at least this often."""

RESUME_SECONDS = 5.0
"""How long after the end of a stream its session can be taken up again."""

FRAME_ITEMS = 500
FRAME_BYTES = 1 << 20
"""Limits of one frame; a single larger assignment has one of its own."""

ACKNOWLEDGE_AT_ONCE = 200
ACKNOWLEDGE_AT_ONCE_BYTES = 1 << 20
"""So many outcomes, or answers of so many bytes, are acknowledged without waiting for something else to say: a worker
that keeps too much of them is given nothing more."""

_STALE_DEADLINES = 4_096


class SessionState(enum.Enum):
    """Where a session stands."""

    WAITING = "waiting"
    """No worker process is known, or it is known no more: nothing is under way."""
    OPEN = "open"
    """A stream carries it."""
    LOST = "lost"
    """Its stream ended; for a while the worker may come back to what it holds."""


class Timer(Protocol):
    """A call that will be made later."""

    def cancel(self) -> None:
        """Makes it never happen."""
        ...


class Scheduler(Protocol):
    """Time, and calls at a time: an event loop is one."""

    def time(self) -> float:
        """Seconds that only rise."""
        ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Calls back at that time."""
        ...


class Assigned:
    """One call that was given to the worker. Implements worker_ports.Sending."""

    __slots__ = ("_session", "call", "deadline", "id", "listener", "waits", "written")

    def __init__(self, session: WorkSession, number: int, call: Call, listener: CallListener, deadline: float) -> None:
        self._session = session
        self.id, self.call, self.listener = number, call, listener
        self.deadline = deadline
        self.written = False
        self.waits = False
        """Whether its handler waits for steps that it delegated, as the worker says."""

    def cancel(self) -> None:
        """See worker_ports.Sending."""
        self._session.cancel(self)


class WorkSession:
    """What one replica and one worker process have in common. `on_change` is called from within the methods
    here when `ready`, `credit` or `waiting` changed.

    `ids` numbers the assignments. A worker knows a session by who speaks, and may still hold assignments of one that is
    over here, when the next begins under the same name: both take their numbers from the same `ids`, so that no outcome
    of then is taken for one of now.
    """

    def __init__(
        self, peer: str, scheduler: Scheduler, on_change: Callable[[], None], ids: Iterator[int] | None = None
    ) -> None:
        self.peer = peer
        self.state = SessionState.WAITING
        self.instance_id = ""
        self.credit = 0
        self.draining = False
        self.waiting = 0
        """Calls whose handlers wait for steps that they delegated: so much of the credit is for them alone."""
        self.on_wait: Callable[[CallListener, bool], None] = _nobody
        """Called when the handler of a call begins or ceases to wait."""
        self.problem = ""
        """What last ended a stream that was not merely lost."""
        self._on_frame: Callable[[], None] = _nothing
        self._end_stream: Callable[[], None] = _nothing
        self._scheduler, self._on_change = scheduler, on_change
        self._ids = ids if ids is not None else itertools.count(1)
        self._pending: dict[int, Assigned] = {}
        self._outbox: deque[Assigned] = deque()
        self._cancelled: list[int] = []
        self._acknowledged: list[int] = []
        self._acknowledged_bytes = 0
        self._deadlines: list[tuple[float, int]] = []
        self._deadline_timer: tuple[float, Timer] | None = None
        self._resume_timer: Timer | None = None
        self._leaving = False
        self._stream = 0

    @property
    def ready(self) -> bool:
        """Whether calls can be given: a stream is open, and neither side leaves."""
        return self.state is SessionState.OPEN and not self.draining and not self._leaving

    @property
    def left(self) -> bool:
        """Whether this side has left and waits for nothing more."""
        return self._leaving and not self._pending and not self._acknowledged

    @property
    def has_calls(self) -> bool:
        """Whether calls are under way."""
        return bool(self._pending)

    # --- what the engine wants

    def give(self, call: Call, listener: CallListener) -> Assigned:
        """Gives a call to the worker, where `ready`."""
        deadline = self._scheduler.time() + call.deadline_seconds
        assigned = Assigned(self, next(self._ids), call, listener, deadline)
        self._pending[assigned.id] = assigned
        self._outbox.append(assigned)
        self._watch_deadline(assigned)
        self._on_frame()
        return assigned

    def cancel(self, assigned: Assigned) -> None:
        """Takes a call back; nothing is heard of it any more."""
        if self._take(assigned.id) is not None and assigned.written:
            self._cancelled.append(assigned.id)
            self._on_frame()

    def leave(self) -> None:
        """Gives nothing from now on, and tells the worker so: the replica drains."""
        self._leaving = True
        self._on_frame()
        self._on_change()

    def close(self) -> None:
        """Ends the session: what is under way is lost."""
        self._give_up()

    # --- the stream

    def opened(self, opening: work_pb2.WorkerOpening, draining: bool = False) -> int:
        """A stream was opened, and the worker has said who it is and what it holds. Returns the stream's number; it
        takes the place of any before it, on which nothing is said any more."""
        self.replace_stream(_nothing, _nothing)
        held = set(opening.held) if opening.instance_id == self.instance_id else set()
        missing = {one.id: one for one in self._pending.values() if one.written and one.id not in held}
        self._cancel_timer()
        self._cancelled = [one for one in opening.held if one not in self._pending or one in missing]
        self._acknowledged.clear()
        self._acknowledged_bytes = 0
        self.instance_id = opening.instance_id
        self.state, self.credit, self.draining = SessionState.OPEN, opening.credit, draining
        self._stream += 1
        self._lose(missing.values())
        for number in [one.id for one in self._pending.values() if one.waits]:
            self._note_wait(number, False)  # Those that still wait are told anew.
        self._on_change()
        return self._stream

    def replace_stream(self, on_frame: Callable[[], None], end: Callable[[], None]) -> None:
        """Says what to call when there is something to say, and when the stream is to end; ends the one before."""
        ended, self._end_stream, self._on_frame = self._end_stream, end, on_frame
        ended()

    def is_current(self, stream: int) -> bool:
        """Tells whether no other stream has taken the place of one."""
        return stream == self._stream

    def stream_ended(self, stream: int) -> None:
        """A stream is gone. The worker has RESUME_SECONDS to come back to what it holds."""
        if self.state is not SessionState.OPEN or stream != self._stream:
            return
        self.state = SessionState.LOST
        self._on_frame = self._end_stream = _nothing
        self._resume_timer = self._scheduler.call_at(self._scheduler.time() + RESUME_SECONDS, self._give_up)
        self._on_change()

    def unreachable(self) -> None:
        """The worker's address takes no connections: whatever process it held is gone, but for one whose stream is
        not known to be."""
        if self.state is SessionState.OPEN:
            return
        self.draining = False
        if self.state is SessionState.LOST:
            self._give_up()

    def received(self, frame: work_pb2.WorkerFrame) -> None:
        """Takes in what the worker says."""
        for outcome in frame.outcomes:
            self._acknowledged.append(outcome.id)
            assigned = self._take(outcome.id)
            if assigned is not None:
                answer = self._answer(assigned, outcome)
                self._acknowledged_bytes += len(answer.payload or b"")
                self._tell(assigned, answer)
            else:
                self._acknowledged_bytes += len(outcome.response)
        for one in frame.progress:
            assigned = self._pending.get(one.id)
            if assigned is not None:
                self._tell_progress(assigned, min(max(0.0, one.percent), 100.0), one.message[:1024])
        changed = [self._note_wait(one.id, one.waits) for one in frame.waits]
        if frame.HasField("credit"):
            self.credit = frame.credit
        if frame.HasField("credit") or any(changed):
            self._on_change()
        if frame.drain and not self.draining:
            self.draining = True
            self._on_change()
            self._on_frame()  # The worker waits to hear that nothing more comes.
        if self._acknowledged and self._must_acknowledge():
            self._on_frame()

    def next_frame(self, beat: bool) -> work_pb2.BatonFrame | None:
        """Takes what is to be said next; with `beat` an empty frame rather than nothing."""
        frame = work_pb2.BatonFrame()
        items = size = 0
        while self._outbox and items < FRAME_ITEMS and size < FRAME_BYTES:
            assigned = self._outbox.popleft()
            if assigned.id in self._pending:
                self._write(assigned, frame)
                items += 1
                size += len(assigned.call.payload) + 256
        if self._acknowledged and (items or self._cancelled or beat or self._must_acknowledge()):
            frame.acknowledged.extend(self._acknowledged)
            self._acknowledged.clear()
            self._acknowledged_bytes = 0
        if self._cancelled:
            frame.cancelled.extend(self._cancelled)
            self._cancelled.clear()
        frame.drain = self._leaving or (self.draining and not self._outbox)
        if beat or items or frame.acknowledged or frame.cancelled or frame.drain:
            return frame
        return None

    @property
    def has_more(self) -> bool:
        """Whether the outbox holds more than went into the last frame."""
        return bool(self._outbox)

    # --- inside

    def _take(self, number: int) -> Assigned | None:
        """Takes a call out of what is under way, where it still is."""
        assigned = self._pending.pop(number, None)
        if assigned is not None and assigned.waits:
            self.waiting -= 1
        return assigned

    def _note_wait(self, number: int, waits: bool) -> bool:
        """Takes note of whether a handler waits; tells whether that is news."""
        assigned = self._pending.get(number)
        if assigned is None or assigned.waits == waits:
            return False
        assigned.waits = waits
        self.waiting += 1 if waits else -1
        self.on_wait(assigned.listener, waits)
        return True

    def _must_acknowledge(self) -> bool:
        many = len(self._acknowledged) >= ACKNOWLEDGE_AT_ONCE
        return many or self._acknowledged_bytes >= ACKNOWLEDGE_AT_ONCE_BYTES or self.draining or self._leaving

    def _write(self, assigned: Assigned, frame: work_pb2.BatonFrame) -> None:
        call = assigned.call
        assigned.written = True
        frame.assignments.add(
            id=assigned.id,
            method=call.method,
            request=call.payload,
            timeout_us=max(int((assigned.deadline - self._scheduler.time()) * 1_000_000), 1),
            run_id=call.run_id,
            step=call.step,
            attempt=call.attempt,
            delivery=call.delivery,
            epoch=call.epoch,
            idempotency_key=call.idempotency_key,
            step_token=call.step_token,
            traceparent=call.traceparent,
        )

    def _answer(self, assigned: Assigned, outcome: work_pb2.Outcome) -> Answer:
        kind = outcome.WhichOneof("result")
        if kind == "response":
            return Answer(outcome.response)
        status = outcome.status if kind == "status" else status_pb2.Status()
        if not 0 < status.code < len(Code):
            status = status_pb2.Status(code=int(Code.INTERNAL), message="The outcome holds no result.")
        call = assigned.call
        left_seconds = assigned.deadline - self._scheduler.time()
        failure, retry_delay_us = statuses.status_failure(
            status, call.deadline_seconds, timed_out=left_seconds <= 0.1 * call.deadline_seconds
        )
        return Answer(
            None,
            failure,
            against_circuit=statuses.is_against_circuit(failure),
            retry_delay_us=retry_delay_us,
        )

    @staticmethod
    def _tell(assigned: Assigned, answer: Answer) -> None:
        try:
            assigned.listener.answered(answer)
        except Exception:
            # One call's fault may not take the stream, and with it all the others.
            _LOG.exception("the answer of a call of %s could not be taken", assigned.call.method)

    @staticmethod
    def _tell_progress(assigned: Assigned, percent: float, message: str) -> None:
        try:
            assigned.listener.progressed(percent, message)
        except Exception:  # as above
            _LOG.exception("the progress of a call of %s could not be taken", assigned.call.method)

    def _give_up(self) -> None:
        self._cancel_timer()
        lost = list(self._pending.values())
        self._outbox.clear()
        self._cancelled.clear()
        self._acknowledged.clear()
        self._acknowledged_bytes = 0
        self.state, self.instance_id, self.credit = SessionState.WAITING, "", 0
        self._lose(lost)
        self._on_change()

    def _lose(self, assigned: Iterable[Assigned]) -> None:
        for one in assigned:
            self._take(one.id)
            self._tell(one, Answer(None, lost=True))

    def _cancel_timer(self) -> None:
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None

    # --- deadlines

    def _watch_deadline(self, assigned: Assigned) -> None:
        heapq.heappush(self._deadlines, (assigned.deadline, assigned.id))
        if len(self._deadlines) > 2 * len(self._pending) + _STALE_DEADLINES:
            self._deadlines = [(one.deadline, one.id) for one in self._pending.values()]
            heapq.heapify(self._deadlines)
        if self._deadline_timer is None or assigned.deadline < self._deadline_timer[0]:
            self._arm()

    def _arm(self) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer[1].cancel()
            self._deadline_timer = None
        while self._deadlines and self._deadlines[0][1] not in self._pending:
            heapq.heappop(self._deadlines)
        if self._deadlines:
            deadline = self._deadlines[0][0]
            self._deadline_timer = (deadline, self._scheduler.call_at(deadline, self._expire))

    def _expire(self) -> None:
        self._deadline_timer = None
        now = self._scheduler.time()
        while self._deadlines and self._deadlines[0][0] <= now:
            assigned = self._pending.get(heapq.heappop(self._deadlines)[1])
            if assigned is not None:
                self.cancel(assigned)
                failure = statuses.timeout_failure(assigned.call.deadline_seconds, outcome_unknown=assigned.written)
                against = statuses.is_against_circuit(failure)
                self._tell(assigned, Answer(None, failure, sent=assigned.written, against_circuit=against))
        self._arm()


def _nobody(_: CallListener, __: bool) -> None:
    """Tells nobody."""


def _nothing() -> None:
    """Says nothing: there is no stream."""
