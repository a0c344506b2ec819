"""The sessions of a worker against a model of Baton, without sockets: streams are lost at any point, and nothing is."""

from __future__ import annotations

import math
from collections import deque
from random import Random

from baton.worker.session import Held, Limits, Stream
from baton.worker.sessions import Sessions
from baton.worker.states import StreamState
from baton.worker.v1 import work_pb2
from google.rpc import code_pb2, status_pb2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .work_double import BatonHalf

SLOTS = 5
HEARTBEAT_SECONDS = 1.0
RESUME_SECONDS = 0.9
LIMITS = Limits(slots=SLOTS, frame_items=4, frame_bytes=120)


def half(name: str = "a") -> BatonHalf:
    return BatonHalf(name, HEARTBEAT_SECONDS, RESUME_SECONDS)


class Wire:
    """One replica, and the frames that are under way between it and the worker."""

    def __init__(self, replica: BatonHalf) -> None:
        self.replica = replica
        self.to_worker: deque[work_pb2.BatonFrame] = deque()
        self.to_baton: deque[work_pb2.WorkerFrame] = deque()
        self.stream: Stream | None = None
        self.arrived: set[int] = set()
        self.forget_time = math.inf
        """When the worker forgets the session, which it then does at once."""


class WorkStreams(RuleBasedStateMachine):
    """Two replicas and one worker. Frames of a stream arrive in order, late, or never where the stream is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.sessions = Sessions("w", "instance", LIMITS)
        self.wires = [Wire(half(name)) for name in ("a", "b")]
        self.running: list[Held] = []
        self.finished = 0

    @initialize()
    def both_open(self) -> None:
        for wire in self.wires:
            self._open(wire)

    # --- what can happen

    @rule(number=st.integers(0, 1))
    def open_again(self, number: int) -> None:
        """A stream is opened, also where the worker does not know yet that the one before is lost."""
        wire = self.wires[number]
        if wire.replica.opening is None:
            self._open(wire)

    @rule(number=st.integers(0, 1), worker_knows=st.booleans())
    def lose(self, number: int, worker_knows: bool) -> None:
        """What is under way on a stream is gone."""
        wire = self.wires[number]
        wire.to_worker.clear()
        wire.to_baton.clear()
        wire.replica.end()
        if worker_knows and wire.stream is not None:
            self._lost(wire)
            self.sessions.lose(wire.stream, self.now)
            wire.stream = None

    @rule(
        number=st.integers(0, 1),
        count=st.integers(1, 4),
        timeout=st.sampled_from([1.5, 60.0]),
        arrives=st.booleans(),
    )
    def give(self, number: int, count: int, timeout: float, arrives: bool) -> None:
        """Calls are given, as many as the credit allows."""
        wire = self.wires[number]
        for _ in range(min(count, wire.replica.room)):
            wire.replica.give("shop.v1.Service/Method", b"request", timeout)
        if arrives:
            self.baton_sends(number)
            while wire.to_worker:
                self._worker_receives(wire)

    @rule(number=st.integers(0, 1))
    def exchange(self, number: int) -> None:
        """Whatever is to be said on a stream is said and heard."""
        self._exchange(self.wires[number])

    @rule(number=st.integers(0, 1), choice=st.randoms(use_true_random=False))
    def cancel(self, number: int, choice: Random) -> None:
        replica = self.wires[number].replica
        open_ids = [each for each, given in replica.given.items() if given.open and given.written]
        if open_ids and replica.opening is not None:
            replica.cancel(choice.choice(open_ids))

    @rule(number=st.integers(0, 1))
    def baton_sends(self, number: int) -> None:
        wire = self.wires[number]
        frame = wire.replica.next_frame()
        if frame is not None:
            wire.to_worker.append(frame)

    @rule(number=st.integers(0, 1))
    def worker_receives(self, number: int) -> None:
        self._worker_receives(self.wires[number])

    @rule(number=st.integers(0, 1))
    def worker_sends(self, number: int) -> None:
        self._worker_sends(self.wires[number])

    @rule(number=st.integers(0, 1))
    def baton_receives(self, number: int) -> None:
        wire = self.wires[number]
        if wire.to_baton:
            wire.replica.receive(wire.to_baton.popleft())

    @precondition(lambda self: self.running)
    @rule(choice=st.randoms(use_true_random=False), size=st.integers(0, 200), fails=st.booleans())
    def handler_ends(self, choice: Random, size: int, fails: bool) -> None:
        self._finish(choice.choice(self.running), size, fails)

    @precondition(lambda self: self.running)
    @rule(choice=st.randoms(use_true_random=False), percent=st.integers(0, 100))
    def handler_tells(self, choice: Random, percent: int) -> None:
        self.sessions.progress(choice.choice(self.running), percent, "at it")

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._tick()

    # --- what always holds

    @invariant()
    def no_more_than_the_slots_run(self) -> None:
        assert len(self.running) == self.sessions.running <= SLOTS

    @invariant()
    def no_outcome_but_of_what_was_given_once(self) -> None:
        for wire in self.wires:
            for given in wire.replica.given.values():
                assert len({outcome.SerializeToString() for outcome in given.outcomes}) <= 1

    @invariant()
    def time_is_asked_for_while_anything_is_open(self) -> None:
        assert (self.sessions.next_time < math.inf) == bool(len(self.sessions))

    def teardown(self) -> None:
        """Whatever happened: once streams stay, each assignment has its outcome or is known to be lost."""
        for _ in range(100):
            for wire in self.wires:
                if wire.replica.opening is None:
                    self._open(wire)
                wire.to_worker.append(work_pb2.BatonFrame())  # Baton is there
                self._exchange(wire)
            if self.running:
                self._finish(self.running[0], 10, False)
            self.now += 0.05
            self._tick()
        for wire in self.wires:
            assert not any(given.open for given in wire.replica.given.values())
        credits = [wire.replica.credit for wire in self.wires]
        assert sum(credits) == SLOTS, credits
        assert self.sessions.idle
        for wire in self.wires:
            assert wire.stream is not None
            self.sessions.lose(wire.stream, self.now)
        assert not len(self.sessions)
        assert self.sessions.next_time == math.inf
        assert not self.sessions.take()

    # --- how

    def _open(self, wire: Wire) -> None:
        wire.to_worker.clear()
        wire.to_baton.clear()
        wire.to_worker.append(wire.replica.begin())
        self._worker_receives(wire)
        self._worker_sends(wire)
        opening = wire.to_baton[0].opening
        if self.now >= wire.forget_time:
            assert not opening.held
        else:
            waited_for = {number for number, given in wire.replica.given.items() if given.open}
            assert waited_for & wire.arrived <= set(opening.held)
        wire.forget_time = math.inf
        wire.replica.receive(wire.to_baton.popleft())

    def _exchange(self, wire: Wire) -> None:
        frame = wire.replica.next_frame()
        if frame is not None:
            wire.to_worker.append(frame)
        while wire.to_worker:
            self._worker_receives(wire)
        while self._worker_sends(wire):
            pass
        while wire.to_baton:
            wire.replica.receive(wire.to_baton.popleft())

    def _lost(self, wire: Wire) -> None:
        wire.forget_time = self.now + RESUME_SECONDS

    def _worker_receives(self, wire: Wire) -> None:
        if not wire.to_worker:
            return
        frame = wire.to_worker.popleft()
        if frame.HasField("opening"):
            wire.stream = self.sessions.open(frame, self.now)
        elif wire.stream is not None:
            wire.arrived.update(assignment.id for assignment in frame.assignments)
            for held in self.sessions.receive(wire.stream, frame, self.now):
                assert held in self.running
            self._start()

    def _worker_sends(self, wire: Wire) -> bool:
        frame = wire.stream.next_frame(self.now) if wire.stream is not None else None
        if frame is None:
            return False
        assert len(frame.outcomes) + len(frame.progress) <= LIMITS.frame_items
        assert len(frame.outcomes) <= 1 or frame.ByteSize() < 200
        if wire.replica.opening is None and not frame.HasField("opening"):
            return False  # the stream is lost, and the worker does not know
        wire.to_baton.append(frame)
        return True

    def _finish(self, held: Held, size: int, fails: bool) -> None:
        self.running.remove(held)
        result = status_pb2.Status(code=code_pb2.ABORTED) if fails else bytes(size)
        self.sessions.finish(held, result)
        self._start()

    def _start(self) -> None:
        for held in self.sessions.take():
            assert held.assignment is not None
            self.running.append(held)

    def _tick(self) -> None:
        for held in self.sessions.tick(self.now):
            assert held in self.running
        self._start()
        for wire in self.wires:
            if wire.stream is not None and wire.stream.state is StreamState.ENDED:
                wire.stream = None
                self._lost(wire)
                wire.to_worker.clear()
                wire.to_baton.clear()
                wire.replica.end()


TestWorkStreams = WorkStreams.TestCase
TestWorkStreams.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_which_assignments_wait_is_told_and_told_again_on_the_next_stream() -> None:
    sessions, replica = Sessions("w", "instance", LIMITS), half()

    def opened() -> tuple[Stream, work_pb2.WorkerFrame]:
        stream = sessions.open(replica.begin(), 100.0)
        opening = stream.next_frame(100.0)
        assert opening is not None
        replica.receive(opening)
        return stream, stream.next_frame(100.0) or work_pb2.WorkerFrame()

    def told(stream: Stream) -> tuple[dict[int, bool], int]:
        frame = stream.next_frame(100.0) or work_pb2.WorkerFrame()
        return {each.id: each.waits for each in frame.waits}, frame.credit

    stream, _ = opened()
    for _ in range(2):
        replica.give("shop.v1.Service/Method", b"request", 60.0)
    given = replica.next_frame()
    assert given is not None
    sessions.receive(stream, given, 100.0)
    first, second = sessions.take()
    sessions.wait(first, True)
    sessions.wait(second, True)
    assert told(stream) == ({first.id: True, second.id: True}, SLOTS + 2)
    sessions.wait(second, False)
    assert told(stream) == ({second.id: False}, SLOTS + 1)

    sessions.lose(stream, 100.0)
    replica.end()
    sessions.wait(first, False)
    sessions.wait(second, True)
    stream, frame = opened()
    assert [(each.id, each.waits) for each in frame.waits] == [(second.id, True)]
    sessions.finish(second, b"done")
    assert sessions.waiting == 0
