"""The judge of work streams: looks at each frame that Baton says and hears, at what workers do, and at what they hold.

It knows what is on both sides of a stream, and nothing of how the product's sessions come to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from baton.worker.states import AssignmentState
from baton.worker.v1 import work_pb2
from google.rpc import code_pb2, status_pb2

from orchestrator.domain.failures import Origin
from orchestrator.engine.worker_ports import Answer, Call

if TYPE_CHECKING:
    from tests.simulation.stream_gateway import StreamedCall
    from tests.simulation.stream_workers import WorkerLife
    from tests.simulation.streams import Line
    from tests.simulation.world import World

CREDIT_SECONDS = 12.0
"""How long calls may still be given by what a worker's credit was: what was admitted by it is written first."""
NOTICE_SECONDS = 1.0
"""Time in which one side of a stream that stands knows what the other did."""
OPEN_SECONDS = 3.0
"""Time in which a stream that stands is open: each side says who it is."""
ACKNOWLEDGE_SECONDS = 12.0
"""The same of an outcome that arrived, for which no frame is made until the next heartbeat, after which Baton looks."""
SILENT_SECONDS = 23.0
"""Time in which silence ends a stream: three heartbeats, and one more until Baton looks."""
GONE_SECONDS = 7.0
"""Longest time for which a call goes on without a stream: its worker may come back until then."""
LOST_SECONDS = 30.0
"""The same where its stream was cut, or its worker sleeps: silence is noticed first."""
UNTOLD = 1_000_000
"""Credit of a worker that has told none: Baton holds to what was registered."""
LIVE = (AssignmentState.WAITING, AssignmentState.RUNNING)

Delivery = tuple[str, str, int, int]
"""Run, step, attempt, and sending of the attempt."""


def delivery_of(call: Call | work_pb2.Assignment) -> Delivery:
    """Names what is called."""
    return call.run_id, call.step, call.attempt, call.delivery


class _Book:
    """What a replica process and the address of a worker have in common."""

    def __init__(self) -> None:
        self.calls: dict[int, StreamedCall] = {}
        """Calls that are under way, by the ids of their assignments."""
        self.credit = UNTOLD
        self.earlier: list[tuple[float, int]] = []
        """Until when the credit was what."""
        self.namespaces: set[str] = set()
        self.waited = False
        """Whether a call has waited for what it has delegated."""
        self.instance_id = ""

    def tell_credit(self, credit: int, now: float) -> None:
        """Takes note of what the worker says now."""
        self.earlier = [one for one in self.earlier if one[0] > now - 2 * LOST_SECONDS]
        self.earlier.append((now, self.credit))
        self.credit = credit

    def most(self, since: float) -> int:
        """The most calls that the worker has allowed since a time."""
        most = max([self.credit, *(credit for until, credit in self.earlier if until > since)])
        # Each name under which an address is registered has one call at least, beside those that wait for their steps.
        names = len(self.namespaces)
        return (most + names - 1 if self.waited else max(most, names)) if most else 0


class StreamJudge:
    """Tells the world of each breach."""

    def __init__(self, world: World) -> None:
        self._world, self._breach = world, world.breach
        self._books: dict[tuple[str, str], _Book] = {}
        self._calls: dict[Delivery, StreamedCall] = {}
        self._handled: set[Delivery] = set()
        self._made: dict[Delivery, bytes | status_pb2.Status] = {}
        self._keys: dict[tuple[str, str, int], str] = {}
        self._since: dict[tuple[str, int], tuple[str, float]] = {}
        self._waking: dict[str, float] = {}
        self._drained: set[Line] = set()

    def _book(self, process: str, address: str) -> _Book:
        return self._books.setdefault((process, address), _Book())

    # --- at the replica

    def given(self, call: StreamedCall) -> None:
        """A call was given to a session."""
        delivery = delivery_of(call.call)
        if delivery in self._calls:
            self._breach("a delivery is made once", f"{call.name} is given to a stream again")
        self._calls[delivery] = call
        book = self._book(call.process.name, call.call.endpoint.address)
        book.calls[call.assigned.id] = call
        book.namespaces.add(call.call.endpoint.namespace)

    def over(self, call: StreamedCall) -> None:
        """A call was answered, or given up."""
        self._book(call.process.name, call.call.endpoint.address).calls.pop(call.assigned.id, None)

    def answered(self, call: StreamedCall, answer: Answer) -> None:
        """A replica takes an answer for that of a call."""
        if call.is_over:
            self._breach("a call is answered once", f"{call.name} is answered though it is over")
        made = self._made.get(delivery_of(call.call))
        if answer.payload is not None and made != answer.payload:
            self._breach("an outcome is that of its call", f"{call.name} was not handled to that end")
        failure = answer.failure
        code = failure.code if failure is not None and failure.origin is Origin.WORKER else None
        known = (made.code if isinstance(made, status_pb2.Status) else None, code_pb2.DEADLINE_EXCEEDED)
        if code is not None and code not in known:
            self._breach("an outcome is that of its call", f"{call.name} fails with {code.name}")
        self._world.tally("calls not held", answer.lost)

    def says(self, line: Line, frame: work_pb2.BatonFrame) -> None:
        """Baton sends a frame."""
        book, now = self._book(line.process.name, line.address), self._world.loop.time()
        if line in self._drained and frame.assignments:
            self._breach("nothing is given after the drain", f"{line.process.name} to {line.address}")
        if frame.drain:
            self._drained.add(line)
        for assignment in frame.assignments:
            step = (assignment.run_id, assignment.step, assignment.attempt)
            if self._keys.setdefault(step, assignment.idempotency_key) != assignment.idempotency_key:
                self._breach("one key an attempt", f"{'/'.join(map(str, step))}: {assignment.idempotency_key}")
        if frame.assignments:
            since = min(now, self._waking.get(line.process.name, now)) - CREDIT_SECONDS
            book.waited = book.waited or any(call.has_waited for call in book.calls.values())
            under_way = sum(call.assigned.written for call in book.calls.values())
            if under_way > book.most(since):
                text = f"{line.process.name} gives {line.address} {under_way} calls at a time of {book.most(since)}"
                self._breach("credit is not exceeded", text)

    def serves_none(self, line: Line) -> None:
        """Baton hears that there is no work stream: it makes single calls until there is one."""
        self._book(line.process.name, line.address).tell_credit(UNTOLD, self._world.loop.time())

    def heard(self, line: Line, frame: work_pb2.WorkerFrame) -> None:
        """Baton hears a frame."""
        book, now = self._book(line.process.name, line.address), self._world.loop.time()
        if frame.HasField("opening"):
            opening = frame.opening
            self._world.tally(
                "work sessions gone on with", bool(opening.held) and opening.instance_id == book.instance_id
            )
            book.instance_id = opening.instance_id
            book.tell_credit(opening.credit, now)
        if frame.HasField("credit"):
            book.tell_credit(frame.credit, now)

    # --- at the worker

    def started(self, worker: str, assignment: work_pb2.Assignment) -> StreamedCall:
        """A handler starts; gives the call that left its replica."""
        delivery = delivery_of(assignment)
        streamed = self._calls[delivery]
        call = streamed.call
        self._world.judge.effect(call)
        if delivery in self._handled:
            self._breach("a delivery is handled once", f"{worker} handles {'/'.join(map(str, delivery))} again")
        self._handled.add(delivery)
        if (call.payload, call.method) != (assignment.request, assignment.method):
            self._breach("what is called is what was given", f"{worker} has another {'/'.join(map(str, delivery))}")
        return streamed

    def made(self, assignment: work_pb2.Assignment, result: bytes | status_pb2.Status) -> None:
        """A handler has come to something."""
        self._made[delivery_of(assignment)] = result

    # --- both sides

    def look_at_calls(self, lines: Iterable[Line], lost: Iterable[Line]) -> None:
        """Looks at what both sides of each stream have; to be called often. `lost` are those that were cut."""
        now = self._world.loop.time()
        for process in self._world.processes.values():
            if process.main.frozen:
                self._waking[process.name] = now
        standing = dict[tuple[str, str], "Line"]()
        for line in lines:
            if line.process.main.frozen or line.life is None or line.life.actor.frozen:
                line.calm_since = now
            elif line.whole:
                standing[line.process.name, line.address] = line
        for line in lost:
            if line.process.main.frozen or line.process.main.dead:
                line.calm_since = now
            elif now - line.calm_since > SILENT_SECONDS:
                self._breach("silence ends a stream", f"{line.process.name} still has its stream to {line.address}")
        found = dict[tuple[str, int], tuple[str, float]]()
        for line in standing.values():
            if now - line.calm_since > OPEN_SECONDS and not line.process.gateway.gives_to(line.address):
                self._breach("a stream that stands is used", f"{line.process.name} has one to {line.address}")
            if line.life is not None:
                self._look_at_held(line, line.life, found, now)
        for (name, address), book in self._books.items():
            self._look_at_book(name, address, standing.get((name, address)), book, found, now)
        self._since = found

    def _look_at_held(
        self, line: Line, life: WorkerLife, found: dict[tuple[str, int], tuple[str, float]], now: float
    ) -> None:
        """Looks for what a worker is at that nobody wants any more, and what it owes though Baton has it."""
        book = self._book(line.process.name, line.address)
        for held in life.held_of(line):
            wanted = held.id in book.calls
            if held.state in LIVE and not wanted:
                self._note(found, (f"{line.process.name} {life.name} unwanted", held.id), "", line, now, NOTICE_SECONDS)
            elif held.state is AssignmentState.OWED:
                where = (f"{line.process.name} {life.name} owed", held.id)
                seconds = NOTICE_SECONDS if wanted else ACKNOWLEDGE_SECONDS
                self._note(found, where, "wanted" if wanted else "", line, now, seconds)

    def _look_at_book(
        self,
        name: str,
        address: str,
        line: Line | None,
        book: _Book,
        found: dict[tuple[str, int], tuple[str, float]],
        now: float,
    ) -> None:
        """Looks for calls of a replica that no worker has."""
        process = next((one for one in self._world.processes.values() if one.name == name), None)
        if process is None or process.main.dead:
            return
        held = {held.id for held in line.life.held_of(line)} if line is not None and line.life is not None else set()
        seconds, what = NOTICE_SECONDS, "nobody's"
        if line is None:
            streams = (*self._world.streams.lines, *self._world.streams.lost)
            silent = any((one.process, one.address) == (process, address) for one in streams)
            seconds, what = (LOST_SECONDS, "in silence") if silent else (GONE_SECONDS, "without a stream")
        for number, call in book.calls.items():
            if number not in held:
                self._note(found, (f"{name} {call.name}", number), what, line, now, seconds)

    def _note(
        self,
        found: dict[tuple[str, int], tuple[str, float]],
        where: tuple[str, int],
        what: str,
        line: Line | None,
        now: float,
        most_seconds: float,
    ) -> None:
        """Takes note of what may be so for a while, and no longer."""
        known, since = self._since.get(where, (what, now))
        since = since if known == what else now
        found[where] = (what, since)
        awake_since = line.calm_since if line is not None else self._waking.get(where[0].split()[0], 0.0)
        if now - max(since, awake_since) > most_seconds:
            if "unwanted" in where[0]:
                self._breach("a worker hears of what is given up", f"{where[0]}: assignment {where[1]}")
            elif "owed" in where[0]:
                rule = "outcomes are told" if what else "outcomes are acknowledged"
                self._breach(rule, f"{where[0]}: assignment {where[1]}")
            else:
                self._breach("no call is lost for ever", f"{where[0]}: assignment {where[1]}, {what}")
