"""Work streams over the simulated network: what grpc gives to the product's dialer, and what it gives to a worker.

Frames come in order, each after a while; a side that reads no more holds the other up. A stream is cut at any moment:
before a frame that is sent has landed or after, with all that is on its way or without, and one side may learn of it
long after the other, or by silence alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from baton.worker.v1 import work_pb2

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.stream_workers import WorkerLife
    from tests.simulation.world import World

WINDOW_FRAMES = 4
"""Frames on their way, or not read, from which on a side waits before it sends another."""
LATEST_SECONDS = 4.0
"""Longest that one side does not know that a stream is cut, where it is told at all."""
SILENT_CHANCE = 0.2
"""How likely it is told so late that it finds out by silence."""
SILENT_SECONDS = 60.0
LOOK_SECONDS = 0.1

Frame = TypeVar("Frame", work_pb2.BatonFrame, work_pb2.WorkerFrame)


def failed(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    """Makes what grpc raises where a stream is over."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Way:
    """One direction of a stream. What is put in comes out in order; an exception, or None, is its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._room = asyncio.Event()
        self._unread, self._last_time = 0, 0.0
        self._closed = self._lost = False
        self._end: list[Exception | None] = []

    async def pass_on(self, frame: Frame) -> None:
        """Sends a copy of a frame, once there is room for it; what comes after an end is lost."""
        while self._unread >= WINDOW_FRAMES and not self._closed:
            self._room.clear()
            await self._room.wait()
        if not self._closed:
            self._unread += 1
            self._send(type(frame).FromString(frame.SerializeToString()))

    def end(self, how: Exception | None) -> None:
        """Ends this direction, behind what is on its way."""
        if not self._closed:
            self.close()
            self._send(how)

    def close(self) -> None:
        """Takes nothing more; who reads hears of the end in another way."""
        self._closed = True
        self._room.set()

    def lose(self) -> None:
        """Lets nothing come that is on its way."""
        self._lost = True

    async def get(self) -> Any:
        """Waits for what comes next, None after the last. Errors: what it was ended with."""
        if not self._end:
            found = await self._queue.get()
            if found is not None and not isinstance(found, Exception):
                self._unread -= 1
                self._room.set()
                return found
            self._end.append(found)
        if self._end[0] is not None:
            raise self._end[0]
        return None

    def _send(self, what: Any) -> None:
        loop, world = self._world.loop, self._world
        self._last_time = max(self._last_time + 1e-6, loop.time() + world.streams.hop_seconds())
        world.network.later(self._last_time - loop.time(), self._arrive, what)

    def _arrive(self, what: Any) -> None:
        if not self._lost or what is None or isinstance(what, Exception):
            self._queue.put_nowait(what)


class Line:
    """One work stream. The replica that has opened it reads, writes and cancels it as a call of grpc.aio."""

    def __init__(self, world: World, process: Process, address: str) -> None:
        self._world, self.process, self.address = world, process, address
        self._there, self._back = Way(world), Way(world)
        self._gone_here = False
        self._task: asyncio.Task[None] | None = None
        self.life: WorkerLife | None = None
        self.whole = True
        """Whether neither side has ended it, and it is not cut."""
        self.calm_since = world.loop.time()
        """Since when it has stood, or was cut, with both sides awake."""
        self.speaker = ""
        """How the replica has named itself."""
        self.lost_there = asyncio.Event()
        """Set at the replica once the worker knows that the stream is cut, and would come again."""
        world.streams.lines.append(self)
        world.network.later(world.streams.hop_seconds(), self._open)

    # --- at the replica

    async def read(self) -> Any:
        """See grpc.aio.StreamStreamCall."""
        try:
            frame = await self._back.get()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._world.streams.judge.serves_none(self)
            raise
        if frame is None:
            return grpc.aio.EOF
        self._world.streams.judge.heard(self, frame)
        return frame

    async def write(self, frame: work_pb2.BatonFrame) -> None:
        """See grpc.aio.StreamStreamCall."""
        if frame.HasField("opening"):
            self.speaker = frame.opening.replica_id
        if not self._gone_here:
            self._world.streams.judge.says(self, frame)
            await self._send(self._there, frame)
        if self._gone_here:
            raise failed(grpc.StatusCode.UNAVAILABLE, "the simulated stream is lost")

    def cancel(self) -> None:
        """See grpc.aio.StreamStreamCall."""
        self._gone_here = True
        self._over()
        if self in self._world.streams.lost:
            self._world.streams.lost.remove(self)
        self._world.network.later(self._world.streams.hop_seconds(), self._learn_there)

    # --- at the worker

    async def read_there(self) -> Any:
        """Reads as a servicer's context does."""
        frame = await self._there.get()
        return grpc.aio.EOF if frame is None else frame

    async def write_there(self, frame: work_pb2.WorkerFrame) -> None:
        """Writes as a servicer's context does."""
        await self._send(self._back, frame)

    def end_there(self, how: Exception | None) -> None:
        """The worker ends it."""
        self._over()
        self._back.end(how)

    # --- in between

    def cut(self) -> None:
        """Cuts it: nothing more comes through. Both sides learn of it, one of them later."""
        if not self.whole:
            return
        world = self._world
        draws = world.streams.draws
        self._over()
        self.calm_since = world.loop.time()
        world.streams.lost.append(self)
        world.tally("streams of work cut")
        world.trace("network", f"cuts the work stream of {self.process.name} to {self.address}")
        if draws.random() < 0.5:
            self._there.lose()
            self._back.lose()
        later_seconds = SILENT_SECONDS if draws.random() < SILENT_CHANCE else draws.random() * LATEST_SECONDS
        first, second = (self._learn_here, self._learn_there)[:: 1 if draws.random() < 0.5 else -1]
        world.network.later(0.0, first)
        world.network.later(later_seconds, second)

    async def _send(self, way: Way, frame: Frame) -> None:
        streams = self._world.streams
        if self.whole and streams.draws.random() < streams.cut_chance:
            if streams.draws.random() < 0.5:
                await way.pass_on(frame)
            self.cut()
        elif self.whole:
            await way.pass_on(frame)

    def _over(self) -> None:
        self.whole = False
        if self in self._world.streams.lines:
            self._world.streams.lines.remove(self)

    def _learn_here(self) -> None:
        self._gone_here = True
        self._there.close()
        self._back.end(failed(grpc.StatusCode.UNAVAILABLE, "the simulated stream is lost"))

    def _learn_there(self) -> None:
        if self._task is not None and self.life is not None:
            self.life.actor.later(0.0, self._task.cancel)
            if self._world.streams.redials and not self.life.actor.frozen and not self.life.actor.dead:
                self.process.main.later(self._world.streams.hop_seconds(), self.lost_there.set)

    def _open(self) -> None:
        if not self.whole:
            return
        life = self._world.streams.life_at(self.address)
        if life is None or life.plain:
            self._over()
            self._back.end(failed(grpc.StatusCode.UNAVAILABLE if life is None else grpc.StatusCode.UNIMPLEMENTED))
            return
        self.life, self.calm_since = life, self._world.loop.time()
        self._task = life.serve(self)


class SimulatedConnection:
    """What the dialer uses of channels.Connection, and of its channel."""

    def __init__(self, world: World, process: Process, address: str) -> None:
        self._world, self._process, self._address = world, process, address
        self.channel = self
        self.line: Line | None = None

    async def wait_ready(self, timeout_seconds: float | None) -> bool:
        """See channels.Connection."""
        loop, streams = self._world.loop, self._world.streams
        end_time = None if timeout_seconds is None else loop.time() + timeout_seconds
        await asyncio.sleep(streams.hop_seconds())
        while streams.life_at(self._address) is None:
            if end_time is not None and loop.time() >= end_time:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def wait_lost(self) -> None:
        """See channels.Connection."""
        life = self._world.streams.life_at(self._address)
        if life is not None:
            await life.gone.wait()

    def stream_stream(self, *_: Any, **__: Any) -> Callable[..., Line]:
        """See grpc.aio.Channel: only the one method is called here."""
        return lambda metadata=(): self._open()

    def _open(self) -> Line:
        self.line = Line(self._world, self._process, self._address)
        return self.line


class SimulatedChannels:
    """What the dialer and the gateway use of channels.Channels."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    @contextmanager
    def hold(self, address: str) -> Iterator[SimulatedConnection]:
        """See channels.Channels."""
        yield SimulatedConnection(self._world, self._process, address)

    def remove(self, address: str) -> None:
        """See channels.Channels."""

    async def close(self) -> None:
        """See channels.Channels."""
