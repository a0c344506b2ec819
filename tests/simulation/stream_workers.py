"""Simulated worker processes that serve the work stream, by the SDK's half of the protocol, and what goes wrong there.

A process crashes with all it holds, sleeps, drains and leaves, comes back without the stream, and lets its handlers go
on after they were cancelled. What its handlers come to is drawn as that of unary calls is.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
from baton.worker.running import Ended, TellProgress
from baton.worker.session import Held, Limits, ProtocolError
from baton.worker.streams import WorkStreams
from baton.worker.v1 import work_pb2
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from orchestrator.engine.worker_ports import Answer
from tests.simulation.handlers import Handler
from tests.simulation.loop import Actor
from tests.simulation.stream_judge import StreamJudge
from tests.simulation.streams import Line, failed
from tests.simulation.workers import answer_of
from tests.simulation.workflows import LEAD

if TYPE_CHECKING:
    from tests.simulation.stream_gateway import StreamedCall
    from tests.simulation.world import World

ADDRESSES = ("lab-1:1", "lab-2:1")
DRAIN_SECONDS = 4.0
"""Longest that a worker which leaves waits for its streams."""
STUBBORN_SECONDS = 3.0
"""Longest that a handler goes on which was cancelled."""
TROUBLES = ("crash", "sleep", "drain", "cut", "cut")
LOOK_SECONDS = 0.25
STOPPED = status_pb2.Status(code=code_pb2.CANCELLED, message="stopped")


class StreamWorkers:
    """The workers of a world, their streams, and what goes wrong with them. Drawn apart from the rest of the world."""

    def __init__(self, world: World) -> None:
        self.world, self.draws = world, Random(f"streams {world.seed}")
        self.judge = StreamJudge(world)
        self.lines: list[Line] = []
        """Streams that stand."""
        self.lost: list[Line] = []
        """Streams that were cut, and that Baton has not ended."""
        draws = self.draws
        self.cut_chance = draws.choice((0.0, 0.01, 0.05)) if "links" not in world.stress else 0.15
        self._trouble_seconds = draws.choice((0.0, 1.0, 3.0))
        self._plain_chance = 0.9 if "plain" in world.stress else 0.1
        self.redials = "redial" in world.stress
        """Whether a stream is opened as soon as the worker knows that the one before is cut."""
        self.slots = draws.choice((1, 2, 3, 100))
        self.lives: dict[str, WorkerLife] = {}
        self._count = 0
        self._calm = False
        for address in ADDRESSES:
            self.start(address)
        Actor(world.loop, "stream director").run(self._direct())

    def hop_seconds(self) -> float:
        """How long a frame takes."""
        return (0.0005 + self.draws.random() * 0.005) * self.world.weather.slow

    def life_at(self, address: str) -> WorkerLife | None:
        """The process that listens at an address."""
        life = self.lives.get(address)
        return life if life is not None and life.listens and address not in self.world.mood.away else None

    def start(self, address: str) -> None:
        """Starts a process at an address where none is."""
        if address not in self.lives and not self.world.over:
            self._count += 1
            plain = not self._calm and self._count > len(ADDRESSES) and self.draws.random() < self._plain_chance
            self.lives[address] = WorkerLife(self, address, self._count, plain)

    def gone(self, life: WorkerLife) -> None:
        """A process has ended; another starts after a while."""
        if self.lives.get(life.address) is life:
            del self.lives[life.address]
            self.world.network.later(self.draws.random() * 3.0, self.start, life.address)

    def replica_gone(self, process: Any) -> None:
        """The process of a replica is gone, with the streams that it has opened."""
        for line in [line for line in self.lines if line.process is process]:
            line.cut()

    def heal(self) -> None:
        """Lets nothing go wrong any more."""
        self.cut_chance, self._calm = 0.0, True
        for life in list(self.lives.values()):
            life.actor.thaw()
            if life.plain:
                life.crash()

    async def _direct(self) -> None:
        world, wait_seconds = self.world, 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.judge.look_at_calls(self.lines, self.lost)
            if self._calm or not self._trouble_seconds:
                continue
            wait_seconds -= LOOK_SECONDS
            if wait_seconds <= 0.0:
                wait_seconds = self.draws.random() * 2 * self._trouble_seconds
                kind, address = self.draws.choice(TROUBLES), self.draws.choice(ADDRESSES)
                life = self.lives.get(address)
                if life is not None:
                    world.trace("stream director", f"{kind} {life.name}")
                    self._strike(kind, life)

    def _strike(self, kind: str, life: WorkerLife) -> None:
        if kind == "crash":
            life.crash()
        elif kind == "sleep":
            life.actor.freeze()
            seconds = self.draws.choice((1.0, 5.0, 20.0)) * self.draws.random() * 1.2
            self.world.network.later(seconds, life.actor.thaw)
        elif kind == "drain":
            life.leave()
        else:
            for line in [line for line in self.lines if line.address == life.address]:
                line.cut()


class WorkerLife:
    """One life of a worker's process. A `plain` one serves no stream."""

    def __init__(self, workers: StreamWorkers, address: str, number: int, plain: bool) -> None:
        self._workers, self.world, self.address, self.plain = workers, workers.world, address, plain
        self.name = f"{address}.{number}"
        self.actor = Actor(self.world.loop, self.name)
        self.listens = False
        self.gone = asyncio.Event()
        self.streams: WorkStreams
        self._told: dict[str, list[work_pb2.Outcome]] = {}
        self._leaving = False
        self.actor.later(0.0, self._start)

    def _start(self) -> None:
        limits = Limits(slots=self._workers.slots)
        self.streams = WorkStreams("lab", self.name, limits, lambda ended, tell: _Runs(self, ended, tell))
        self.listens = True
        self.world.trace(self.name, "serves calls alone" if self.plain else "serves the work stream")

    # --- how it ends

    def crash(self) -> None:
        """Ends it at once; what it holds is forgotten."""
        if not self.actor.dead:
            self.world.tally("workers restarted")
            self._end()

    def leave(self) -> None:
        """Ends it in good order."""
        if self.listens and not self._leaving and not self.actor.frozen:
            self._leaving = True
            self.world.tally("workers drained")
            self.actor.run(self._drain())

    async def _drain(self) -> None:
        self.streams.drain()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.streams.drained()
        except TimeoutError:
            pass
        self.streams.close()
        self.world.trace(self.name, "has left")
        self.world.network.later(0.0, self._end)

    def _end(self) -> None:
        self.listens = False
        self.actor.kill()
        self.gone.set()
        for line in [line for line in self._workers.lines if line.life is self]:
            line.cut()
        self._workers.gone(self)

    # --- streams

    def serve(self, line: Line) -> asyncio.Task[None]:
        """Serves a stream that was opened to it."""
        return self.actor.run(self._serve(line))

    async def _serve(self, line: Line) -> None:
        try:
            await self.streams.carry(_Link(self, line))
            line.end_there(None)
        except ProtocolError as error:
            if error.code == "INVALID_ARGUMENT":
                self.world.breach("frames fit the protocol", f"{self.name} to {line.process.name}: {error.message}")
            line.end_there(failed(grpc.StatusCode[error.code], error.message))

    def held_of(self, line: Line) -> list[Held]:
        """What it holds for the replica that has opened a stream."""
        streams = [stream for stream in self.streams.sessions.streams if stream.session.replica_id == line.speaker]
        return [held for stream in streams for held in stream.session.held.values()]

    def told_again(self, replica_id: str, frame: work_pb2.WorkerFrame) -> None:
        """Adds an outcome to a frame that was told before, now and then."""
        told = self._told.setdefault(replica_id, [])
        draws = self._workers.draws
        if told and not frame.HasField("opening") and draws.random() < self.world.mood.twice:
            frame.outcomes.append(draws.choice(told))
            self.world.tally("outcomes told again")
        told.extend(frame.outcomes)


class _Link:
    """Implements baton.worker.streams.Link: a servicer's context."""

    def __init__(self, life: WorkerLife, line: Line) -> None:
        self._life, self._line = life, line
        self._replica_id = ""

    async def read(self) -> Any:
        frame = await self._line.read_there()
        if isinstance(frame, work_pb2.BatonFrame) and frame.HasField("opening"):
            self._replica_id = frame.opening.replica_id
        return frame

    async def write(self, frame: work_pb2.WorkerFrame) -> None:
        self._life.told_again(self._replica_id, frame)
        await self._line.write_there(frame)


class _Runs:
    """Implements baton.worker.streams.Runs: handlers that take a while."""

    def __init__(self, life: WorkerLife, ended: Ended, tell_progress: TellProgress) -> None:
        self._life, self._world, self._ended, self._tell_progress = life, life.world, ended, tell_progress

    def start(self, held: Held) -> None:
        """See Runs."""
        assignment, world = held.assignment, self._world
        assert assignment is not None
        draws, mood = world.streams.draws, world.mood
        call = world.streams.judge.started(self._life.name, assignment)
        name = f"{assignment.run_id[-6:]}/{assignment.step}/{assignment.attempt}.{assignment.delivery}"
        world.trace(self._life.name, f"handles {name}")
        draw = draws.random()
        if assignment.method == LEAD:
            held.handler = self._life.actor.run(self._lead(held, assignment, call))
            return
        if draw < mood.hang:
            return
        if draws.random() < 0.1:
            self._tell_progress(held, 50.0, "half")
        answer = answer_of(assignment.request, draws.random(), mood)
        seconds = (0.005 + draws.random() ** 3 * 0.6) * mood.slow
        held.handler = self._life.actor.later(seconds, self._end, held, assignment, answer)

    def cancel(self, held: Held) -> None:
        """See Runs."""
        draws, mood = self._world.streams.draws, self._world.mood
        self._world.tally("handlers cancelled")
        if held.handler is not None:
            held.handler.cancel()
        seconds = draws.random() * STUBBORN_SECONDS if draws.random() < mood.late else 0.0
        self._life.actor.later(seconds, self._ended, held, STOPPED)

    async def _lead(self, held: Held, assignment: work_pb2.Assignment, call: StreamedCall) -> None:
        answer = await Handler(self._world, call.call, _Waiting(self._life, held, call)).answer()
        held.handler = None
        self._end(held, assignment, answer)

    def _end(self, held: Held, assignment: work_pb2.Assignment, answer: Answer | None) -> None:
        held.handler = None
        result = status_pb2.Status(code=code_pb2.ABORTED) if answer is None else _result(answer)
        self._world.streams.judge.made(assignment, result)
        self._ended(held, result)


class _Waiting:
    """Tells the worker, and the judge of limits, when a handler waits for steps that it delegated."""

    def __init__(self, life: WorkerLife, held: Held, call: StreamedCall) -> None:
        self._life, self._held, self._call = life, held, call
        self._keys: set[str] = set()

    def waits(self, key: str) -> None:
        """See SimulatedSending.waits."""
        self._call.waits(key)
        self._keys.add(key)
        self._life.streams.wait(self._held, True)

    def goes_on(self, key: str) -> None:
        """See SimulatedSending.goes_on."""
        self._call.goes_on(key)
        self._keys.discard(key)
        if not self._keys:
            self._life.streams.wait(self._held, False)


def _result(answer: Answer) -> bytes | status_pb2.Status:
    """What the worker tells of what a handler came to."""
    failure = answer.failure
    if failure is None:
        return answer.payload or b""
    details = [any_pb2.Any.FromString(detail) for detail in failure.details]
    if answer.retry_delay_us is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMicroseconds(answer.retry_delay_us)
        packed = any_pb2.Any()
        packed.Pack(info)
        details.append(packed)
    return status_pb2.Status(code=int(failure.code), message=failure.message, details=details)
