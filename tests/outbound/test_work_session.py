"""Baton's half of a work session, frame by frame and without sockets: a clock and timers that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from baton.worker.v1 import work_pb2
from google.rpc import error_details_pb2, status_pb2

from orchestrator.domain.failures import Code, Origin
from orchestrator.engine.worker_ports import Answer
from orchestrator.outbound.work_session import (
    ACKNOWLEDGE_AT_ONCE,
    ACKNOWLEDGE_AT_ONCE_BYTES,
    FRAME_BYTES,
    FRAME_ITEMS,
    RESUME_SECONDS,
    SessionState,
    WorkSession,
)

from .conftest import call_of


class Handle:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when, self.callback = when, callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Scheduler:
    """A clock that stands until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Handle:
        self.handles.append(Handle(when, callback))
        return self.handles[-1]

    def advance(self, seconds: float) -> None:
        """Moves time on, making what is due meanwhile."""
        end = self.now + seconds
        while due := [handle for handle in self.armed if handle.when <= end]:
            first = min(due, key=lambda handle: handle.when)
            self.now = max(self.now, first.when)
            self.handles.remove(first)
            first.callback()
        self.now = end

    @property
    def armed(self) -> list[Handle]:
        self.handles = [handle for handle in self.handles if not handle.cancelled]
        return self.handles


@dataclass
class Listener:
    """Keeps what it hears of one call."""

    answers: list[Answer] = field(default_factory=list)
    progress: list[tuple[float, str]] = field(default_factory=list)

    def answered(self, answer: Answer) -> None:
        self.answers.append(answer)

    def progressed(self, percent: float, message: str) -> None:
        self.progress.append((percent, message))


class Bench:
    """A session, and the worker's side of it by hand."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.changes = 0
        self.session = WorkSession("worker:1", self.scheduler, self._changed)
        self.stream = 0

    def _changed(self) -> None:
        self.changes += 1

    def open(self, instance: str = "one", credit: int = 10, held: tuple[int, ...] = ()) -> None:
        self.stream = self.session.opened(work_pb2.WorkerOpening(instance_id=instance, credit=credit, held=held))

    def give(self, seconds: float = 30.0, payload: bytes = b"request") -> Listener:
        listener = Listener()
        self.session.give(call_of("worker:1", payload, seconds), listener)
        return listener

    def said(self, beat: bool = False) -> work_pb2.BatonFrame:
        """The next frame; empty where there is none."""
        return self.session.next_frame(beat) or work_pb2.BatonFrame()

    def answer(self, *numbers: int) -> None:
        outcomes = [work_pb2.Outcome(id=number, response=f"answer {number}".encode()) for number in numbers]
        self.session.received(work_pb2.WorkerFrame(outcomes=outcomes))


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.open()
    return made


def test_what_comes_up_together_goes_in_one_frame(bench: Bench) -> None:
    listeners = [bench.give() for _ in range(3)]
    frame = bench.said()
    assert [one.id for one in frame.assignments] == [1, 2, 3]
    first = frame.assignments[0]
    assert (first.request, first.method, first.run_id, first.step, first.attempt, first.delivery) == (
        b"request",
        "test.Worker/Do",
        "run",
        "step",
        1,
        1,
    )
    assert (first.idempotency_key, first.step_token, first.epoch) == ("run/step/1", "token", 1)
    assert first.timeout_us == 30_000_000
    assert bench.session.next_frame(beat=False) is None
    bench.answer(2, 1)
    assert listeners[0].answers == [Answer(b"answer 1")]
    assert listeners[1].answers == [Answer(b"answer 2")]
    assert listeners[2].answers == []


def test_frames_are_bounded_by_items_and_bytes(bench: Bench) -> None:
    for _ in range(FRAME_ITEMS + 1):
        bench.give()
    assert len(bench.said().assignments) == FRAME_ITEMS
    assert bench.session.has_more
    assert len(bench.said().assignments) == 1
    for _ in range(3):
        bench.give(payload=b"x" * FRAME_BYTES)
    assert [len(bench.said().assignments) for _ in range(3)] == [1, 1, 1]


def test_a_second_outcome_of_an_assignment_is_ignored(bench: Bench) -> None:
    listener = bench.give()
    bench.said()
    bench.answer(1, 1, 77)
    assert listener.answers == [Answer(b"answer 1")]
    assert list(bench.said(beat=True).acknowledged) == [1, 1, 77]


def test_outcomes_are_acknowledged_with_what_is_said_next_or_at_once_when_many(bench: Bench) -> None:
    bench.give()
    bench.said()
    bench.answer(1)
    assert bench.session.next_frame(beat=False) is None
    bench.give()
    frame = bench.said()
    assert (list(frame.acknowledged), len(frame.assignments)) == ([1], 1)
    for _ in range(ACKNOWLEDGE_AT_ONCE):
        bench.give()
    bench.said()
    bench.answer(*range(2, 2 + ACKNOWLEDGE_AT_ONCE))
    assert len(bench.said().acknowledged) == ACKNOWLEDGE_AT_ONCE


def test_a_heartbeat_is_an_empty_frame(bench: Bench) -> None:
    assert bench.session.next_frame(beat=False) is None
    assert bench.said(beat=True) == work_pb2.BatonFrame()


def test_what_is_cancelled_is_heard_of_no_more_and_told_if_it_was_sent(bench: Bench) -> None:
    sent, unsent = Listener(), Listener()
    first = bench.session.give(call_of("worker:1"), sent)
    bench.said()
    second = bench.session.give(call_of("worker:1"), unsent)
    first.cancel()
    second.cancel()
    frame = bench.said()
    assert (list(frame.cancelled), len(frame.assignments)) == ([1], 0)
    bench.answer(1)
    assert sent.answers == unsent.answers == []
    assert list(bench.said(beat=True).acknowledged) == [1]


def test_a_call_without_an_outcome_in_time_fails_and_is_cancelled(bench: Bench) -> None:
    short, long = bench.give(1.0), bench.give(60.0)
    bench.said()
    bench.scheduler.advance(0.999)
    assert short.answers == []
    bench.scheduler.advance(0.001)
    (answer,) = short.answers
    assert answer.failure is not None
    assert (answer.failure.code, answer.failure.origin) == (Code.DEADLINE_EXCEEDED, Origin.TIMEOUT)
    assert answer.failure.outcome_unknown
    assert answer.against_circuit
    assert list(bench.said().cancelled) == [1]
    assert long.answers == []
    bench.scheduler.advance(59.0)
    assert len(long.answers) == 1


def test_one_timer_watches_all_deadlines_and_forgets_those_that_are_over(bench: Bench) -> None:
    for _ in range(20_000):
        bench.give(3_600.0)
        bench.answer(bench.said().assignments[0].id)
    assert len(bench.scheduler.armed) == 1
    assert len(bench.session._deadlines) < 5_000


def test_a_status_becomes_the_same_failure_as_by_a_unary_call(bench: Bench) -> None:
    listeners = [bench.give() for _ in range(4)]
    bench.said()
    rich = status_pb2.Status(code=int(Code.FAILED_PRECONDITION), message="no")
    rich.details.add().Pack(error_details_pb2.ErrorInfo(reason="CARD_DECLINED"))
    plain = status_pb2.Status(code=int(Code.UNKNOWN), message="the handler failed")
    wrong = status_pb2.Status(code=0, message="what?")
    bench.session.received(
        work_pb2.WorkerFrame(
            outcomes=[
                work_pb2.Outcome(id=1, status=rich),
                work_pb2.Outcome(id=2, status=plain),
                work_pb2.Outcome(id=3, status=wrong),
                work_pb2.Outcome(id=4),
            ]
        )
    )
    failures = [listener.answers[0].failure for listener in listeners]
    assert all(failure is not None and failure.origin is Origin.WORKER for failure in failures)
    told = [(one.code, one.reason, one.outcome_unknown) for one in failures if one is not None]
    assert told[0] == (Code.FAILED_PRECONDITION, "CARD_DECLINED", False)
    assert told[1] == (Code.UNKNOWN, "UNKNOWN", True)
    assert told[2] == told[3] == (Code.INTERNAL, "INTERNAL", True)


def test_credit_and_drain_are_told_to_those_who_follow(bench: Bench) -> None:
    before = bench.changes
    bench.session.received(work_pb2.WorkerFrame(credit=3))
    assert (bench.session.credit, bench.changes) == (3, before + 1)
    assert bench.session.ready
    bench.session.received(work_pb2.WorkerFrame(drain=True))
    assert not bench.session.ready
    assert bench.changes == before + 2
    bench.session.received(work_pb2.WorkerFrame())
    assert bench.changes == before + 2


def test_progress_is_handed_on_within_bounds(bench: Bench) -> None:
    listener = bench.give()
    bench.said()
    for percent, message in ((50.0, "half"), (170.0, "x" * 5_000), (float("nan"), "")):
        bench.session.received(
            work_pb2.WorkerFrame(progress=[work_pb2.AssignmentProgress(id=1, percent=percent, message=message)])
        )
    bench.session.received(work_pb2.WorkerFrame(progress=[work_pb2.AssignmentProgress(id=9, percent=1.0)]))
    assert listener.progress == [(50.0, "half"), (100.0, "x" * 1_024), (0.0, "")]


# --- losing streams


def test_it_is_known_which_calls_wait_for_steps_of_theirs(bench: Bench) -> None:
    told: list[tuple[Listener, bool]] = []
    bench.session.on_wait = lambda listener, waits: told.append((listener, waits))  # type: ignore[arg-type]
    first, second, third = [bench.give() for _ in range(3)]
    bench.said()

    def say(**waits: bool) -> None:
        frame = work_pb2.WorkerFrame()
        for number, waiting in waits.items():
            frame.waits.add(id=int(number[1:]), waits=waiting)
        bench.session.received(frame)

    changes = bench.changes
    say(_1=True, _2=True, _9=True)
    say(_1=True)
    assert (bench.session.waiting, bench.changes) == (2, changes + 1)
    say(_2=False, _3=True)
    bench.answer(1)
    assert bench.session.waiting == 1
    assert told == [(first, True), (second, True), (second, False), (third, True)]
    # On the next stream it is told anew by the worker, which may have gone on meanwhile.
    bench.session.stream_ended(bench.stream)
    bench.open(held=(2, 3))
    assert bench.session.waiting == 0
    say(_2=True)
    assert bench.session.waiting == 1
    bench.open(instance="another")
    assert bench.session.waiting == 0


def test_a_worker_that_comes_back_goes_on_with_what_it_holds(bench: Bench) -> None:
    kept, missing = bench.give(), bench.give()
    bench.said()
    bench.session.stream_ended(bench.stream)
    assert bench.session.state is SessionState.LOST
    assert not bench.session.ready
    bench.scheduler.advance(RESUME_SECONDS - 0.1)
    assert kept.answers == missing.answers == []
    bench.open(held=(1,))
    assert missing.answers == [Answer(None, lost=True)]
    bench.answer(1)
    assert kept.answers == [Answer(b"answer 1")]
    bench.scheduler.advance(RESUME_SECONDS)
    assert bench.session.ready


def test_what_was_not_sent_yet_is_sent_on_the_next_stream(bench: Bench) -> None:
    listener = bench.give()
    bench.session.stream_ended(bench.stream)
    bench.open()
    assert [one.id for one in bench.said().assignments] == [1]
    bench.answer(1)
    assert listener.answers == [Answer(b"answer 1")]


def test_a_worker_that_does_not_come_back_has_lost_what_it_held(bench: Bench) -> None:
    sent = bench.give()
    bench.said()
    unsent = bench.give()
    bench.session.stream_ended(bench.stream)
    bench.scheduler.advance(RESUME_SECONDS)
    assert sent.answers == unsent.answers == [Answer(None, lost=True)]
    assert bench.session.state is SessionState.WAITING
    bench.open()
    assert bench.said().assignments == []
    # Ids go on: an outcome of the time before is nobody's.
    other = bench.give()
    bench.said()
    bench.answer(1)
    assert other.answers == []


def test_an_address_without_a_listener_has_lost_its_worker_at_once(bench: Bench) -> None:
    listener = bench.give()
    bench.said()
    bench.session.unreachable()
    assert listener.answers == []
    bench.session.stream_ended(bench.stream)
    bench.session.unreachable()
    assert listener.answers == [Answer(None, lost=True)]


def test_another_process_at_the_same_address_holds_nothing(bench: Bench) -> None:
    listener = bench.give()
    bench.said()
    bench.session.stream_ended(bench.stream)
    bench.open(instance="two", held=(1,))
    assert listener.answers == [Answer(None, lost=True)]
    assert list(bench.said().cancelled) == [1]


def test_what_a_worker_holds_that_nobody_wants_is_cancelled(bench: Bench) -> None:
    listener = Listener()
    assigned = bench.session.give(call_of("worker:1"), listener)
    bench.said()
    bench.session.stream_ended(bench.stream)
    assigned.cancel()
    bench.open(held=(1,))
    assert list(bench.said().cancelled) == [1]
    bench.answer(1)
    assert listener.answers == []


def test_a_new_stream_ends_the_one_before_and_the_old_end_changes_nothing(bench: Bench) -> None:
    ended: list[str] = []
    bench.session.replace_stream(lambda: None, lambda: ended.append("first"))
    old = bench.stream
    bench.open()
    bench.session.replace_stream(lambda: None, lambda: ended.append("second"))
    assert ended == ["first"]
    bench.session.stream_ended(old)
    assert bench.session.ready


def test_a_drain_is_answered_after_the_last_assignment(bench: Bench) -> None:
    for _ in range(FRAME_ITEMS + 1):
        bench.give()
    bench.session.received(work_pb2.WorkerFrame(drain=True))
    first, last = bench.said(), bench.said()
    assert (len(first.assignments), first.drain) == (FRAME_ITEMS, False)
    assert (len(last.assignments), last.drain) == (1, True)


def test_a_replica_that_leaves_says_so_and_waits_for_what_it_gave(bench: Bench) -> None:
    listener = bench.give()
    bench.said()
    bench.session.leave()
    assert bench.said().drain
    assert not bench.session.ready
    assert not bench.session.left
    woken: list[str] = []
    bench.session.replace_stream(lambda: woken.append("frame"), lambda: None)
    bench.answer(1)
    assert listener.answers == [Answer(b"answer 1")]
    assert woken == ["frame"]  # At once: the replica waits for nothing but to say so.
    assert list(bench.said().acknowledged) == [1]
    assert bench.session.left


def test_a_listener_that_fails_takes_nothing_from_the_others(bench: Bench) -> None:
    class Faulty(Listener):
        def answered(self, answer: Answer) -> None:
            raise RuntimeError("a fault of ours")

    bench.session.give(call_of("worker:1"), Faulty())
    listener = bench.give()
    bench.said()
    bench.answer(1, 2)
    assert listener.answers == [Answer(b"answer 2")]


def test_a_listener_may_give_the_next_call_while_it_hears_of_the_last(bench: Bench) -> None:
    follow = Listener()

    class Next(Listener):
        def answered(self, answer: Answer) -> None:
            bench.session.give(call_of("worker:1"), follow)

    bench.session.give(call_of("worker:1"), Next())
    bench.said()
    bench.session.stream_ended(bench.stream)
    bench.open(held=())
    assert [one.id for one in bench.said().assignments] == [2]
    bench.answer(2)
    assert follow.answers == [Answer(b"answer 2")]


def test_what_a_worker_holds_of_a_session_before_is_no_outcome_of_the_next(bench: Bench) -> None:
    ids = itertools.count(1)
    before, after = (WorkSession("worker:1", bench.scheduler, lambda: None, ids) for _ in range(2))
    opening = work_pb2.WorkerOpening(instance_id="one", credit=10)
    before.opened(opening)
    old, new = Listener(), Listener()
    before.give(call_of("worker:1", b"old", 30.0), old)
    held = [each.id for each in (before.next_frame(False) or work_pb2.BatonFrame()).assignments]
    before.close()
    after.opened(work_pb2.WorkerOpening(instance_id="one", credit=10, held=held))
    after.give(call_of("worker:1", b"new", 30.0), new)
    frame = after.next_frame(False)
    assert frame is not None
    assert list(frame.cancelled) == held
    after.received(work_pb2.WorkerFrame(outcomes=[work_pb2.Outcome(id=held[0], response=b"old")]))
    assert (old.answers, new.answers) == ([Answer(None, lost=True)], [])


def test_large_answers_are_acknowledged_at_once(bench: Bench) -> None:
    for _ in range(3):
        bench.give()
    bench.said()
    half = b"x" * (ACKNOWLEDGE_AT_ONCE_BYTES // 2)
    bench.session.received(work_pb2.WorkerFrame(outcomes=[work_pb2.Outcome(id=1, response=half)]))
    assert list(bench.said().acknowledged) == []
    bench.session.received(work_pb2.WorkerFrame(outcomes=[work_pb2.Outcome(id=2, response=half)]))
    assert list(bench.said().acknowledged) == [1, 2]
    bench.session.received(work_pb2.WorkerFrame(outcomes=[work_pb2.Outcome(id=3, response=half)]))
    assert list(bench.said().acknowledged) == []


def test_one_listener_that_fails_takes_nothing_from_others(bench: Bench) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    bad, good = bench.give(), bench.give()
    bad.progressed = bad.answered = fail  # type: ignore[assignment, method-assign]
    bench.said()
    said = [work_pb2.AssignmentProgress(id=number, percent=50.0, message="half") for number in (1, 2)]
    bench.session.received(work_pb2.WorkerFrame(progress=said))
    bench.answer(1, 2)
    assert good.progress == [(50.0, "half")]
    assert good.answers == [Answer(b"answer 2")]
