"""Mutants of the safeguards of work streams, on both sides; see mutants.py."""

from __future__ import annotations

from typing import Any

from baton.worker.session import Session
from baton.worker.v1 import work_pb2

from orchestrator.domain.plan import attempts
from orchestrator.domain.run import Run
from orchestrator.engine.endpoints import Endpoint
from orchestrator.outbound import work_session, work_stream
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.outbound.work_session import Assigned, SessionState, WorkSession
from tests.simulation.mutant import Mutant, nothing

_opened, _received, _stream_ended = WorkSession.opened, WorkSession.received, WorkSession.stream_ended


def _take_all_for_held(self: WorkSession, opening: work_pb2.WorkerOpening, draining: bool = False) -> int:
    opening.held.extend(self._pending)
    return _opened(self, opening, draining)


def _cancel_here_alone(self: WorkSession, assigned: Assigned) -> None:
    self._pending.pop(assigned.id, None)


def _answer_each_outcome(self: WorkSession, frame: work_pb2.WorkerFrame) -> None:
    for outcome in frame.outcomes:
        assigned = self._pending.get(outcome.id)
        if assigned is not None:
            self._tell(assigned, self._answer(assigned, outcome))
        self._acknowledged.append(outcome.id)
    del frame.outcomes[:]
    _received(self, frame)


def _acknowledge_nothing(self: WorkSession, frame: work_pb2.WorkerFrame) -> None:
    _received(self, frame)
    self._acknowledged.clear()


def _registered_alone(self: Any) -> int:
    return int(self._registered_max)


def _open_without_what_is_unwanted(self: WorkSession, opening: work_pb2.WorkerOpening, draining: bool = False) -> int:
    stream = _opened(self, opening, draining)
    self._cancelled.clear()
    return stream


def _ready_though_it_drains(self: WorkSession) -> bool:
    return self.state is SessionState.OPEN


def _end_whichever_is_there(self: WorkSession, stream: int) -> None:
    _stream_ended(self, self._stream)


def _call_expire_time_later(run: Run, step: int, start_time: int) -> int:
    return start_time + LONG_ATTEMPT_US


STREAMED = ("streams",)
LONG_ATTEMPT_US = 12_000_000
"""An attempt that takes longer than a worker has to come back, and less than the judge takes for standing still."""

MUTANTS = (
    Mutant(
        "what a worker does not hold is given again",
        [(WorkSession, "opened", _take_all_for_held)],
        parts=STREAMED,
    ),
    Mutant(
        "no worker is given more than its credit",
        [(Endpoint, "max_in_flight", property(_registered_alone))],
        ("slow",),
        parts=("mending", *STREAMED),
    ),
    Mutant(
        "what a worker adds for a call that waits is for who made it",
        [(GrpcWorkerGateway, "lends", nothing)],
        parts=("growth", *STREAMED),
    ),
    Mutant(
        "a worker hears which call was given up",
        [(WorkSession, "cancel", _cancel_here_alone)],
        ("workers",),
        parts=("mending", *STREAMED),
    ),
    Mutant(
        "the first outcome of a call counts",
        [(WorkSession, "received", _answer_each_outcome)],
        ("workers",),
        parts=STREAMED,
    ),
    Mutant(
        "outcomes are acknowledged",
        [(WorkSession, "received", _acknowledge_nothing)],
        parts=STREAMED,
    ),
    Mutant(
        "silence ends a stream",
        [(work_stream, "SILENCE_SECONDS", 1e9)],
        ("away",),
        parts=("mending", *STREAMED),
    ),
    Mutant(
        "a worker that comes back hears what it holds for nobody",
        [(WorkSession, "opened", _open_without_what_is_unwanted)],
        ("workers", "links", "skipped", "redial"),
        parts=("mending", *STREAMED),
    ),
    Mutant(
        "a worker that drains is given nothing",
        [(WorkSession, "ready", property(_ready_though_it_drains))],
        parts=STREAMED,
    ),
    Mutant(
        "who does not come back has given up what it held",
        [(work_session, "RESUME_SECONDS", 1e9)],
        ("plain", "workers"),
        "the time of an attempt, where that is over sooner",
        [(attempts, "call_expire_time", _call_expire_time_later)],
        parts=STREAMED,
    ),
    Mutant(
        "a stream that was replaced does not end the next",
        [(WorkSession, "stream_ended", _end_whichever_is_there)],
        ("redial",),
        parts=STREAMED,
    ),
    Mutant("a worker tells its outcomes again on the next stream", [(Session, "resend", nothing)], parts=STREAMED),
)
"""What is held, given, told and given up on a stream."""
