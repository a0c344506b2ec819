"""What replicas tell each other over the simulated network: streams of permits, and the word that runs are left.

Frames come in order, each after a while. A stream is cut now and then, with all that is on its way; one side may learn
of that long after the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

from orchestrator.domain.errors import BatonError
from orchestrator.engine.replica_ports import PermitExchange, ReplicaUnreachable

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

LATEST_SECONDS = 4.0
"""Longest that one side does not know that a stream is cut."""
TARDY = "permits"
"""Name by which frames are let come late, as answers of statements are by theirs: `tardy:permits`."""
TARDIEST_SECONDS = 1.0
"""Longest that such a frame takes, and those behind it."""

Frame = TypeVar("Frame", permits_pb2.ExchangeRequest, permits_pb2.ExchangeResponse)


class _Way:
    """One direction of a stream. What is put in comes out in order; an exception, or None, is its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._last_time = 0.0
        self._closed = False

    def put(self, what: Any, more_seconds: float = 0.0) -> None:
        """Sends something; what comes after an end is lost."""
        if self._closed:
            return
        self._closed = what is None or isinstance(what, Exception)
        loop, draws = self._world.loop, self._world.draws
        due_time = loop.time() + 0.0005 + draws.random() * 0.005 * self._world.weather.slow + more_seconds
        self._last_time = max(self._last_time + 1e-6, due_time)
        self._world.network.later(self._last_time - loop.time(), self._queue.put_nowait, what)

    async def get(self) -> Any:
        """Waits for what comes next. Errors: what was put in."""
        found = await self._queue.get()
        if isinstance(found, Exception):
            raise found
        return found


class SimulatedExchange:
    """Implements PermitExchange: one stream, from the process that opened it to the one at the other end."""

    def __init__(self, world: World, opener: Process, replica_id: UUID, address: str) -> None:
        self._world, self._opener, self._token = world, opener, str(replica_id)
        self._there, self._back = _Way(world), _Way(world)
        self._other: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._cut = False
        opener.streams.append(self)
        world.network.later(0.001 + world.draws.random() * 0.005, self._open, address)

    # --- at the replica that opened it

    async def read(self) -> permits_pb2.ExchangeResponse | None:
        """See PermitExchange."""
        frame: permits_pb2.ExchangeResponse | None = await self._back.get()
        return frame

    async def write(self, frame: permits_pb2.ExchangeRequest) -> None:
        """See PermitExchange."""
        if self._cut:
            raise ReplicaUnreachable
        self._pass_on(self._there, frame)

    def cancel(self) -> None:
        """See PermitExchange."""
        if self in self._opener.streams:
            self._opener.streams.remove(self)
        self._end_there(0.0)

    # --- in between

    def _pass_on(self, way: _Way, frame: Frame) -> None:
        if self._world.draws.random() < self._world.weather.cut_links:
            self._world.trace("network", f"cuts the stream of {self._opener.name}")
            self.break_off()
            return
        tardy, draws = self._world.weather.tardy_of.get(TARDY, 0.0), self._world.draws
        more_seconds = draws.random() * TARDIEST_SECONDS if tardy and draws.random() < tardy else 0.0
        way.put(type(frame).FromString(frame.SerializeToString()), more_seconds)

    def break_off(self) -> None:
        """Cuts the stream: what is sent from here on is lost. One side learns of it later."""
        draws = self._world.draws
        self._world.tally("streams of permits cut")
        self._cut = True
        late_seconds, sooner = draws.random() * LATEST_SECONDS, draws.random() < 0.5
        self._back.put(ReplicaUnreachable(), 0.0 if sooner else late_seconds)
        self._end_there(late_seconds if sooner else 0.0)

    def _open(self, address: str) -> None:
        other = self._world.process_at(address)
        if other is None or not other.alive or not other.ready:
            self._back.put(ReplicaUnreachable())
            return
        self._other = other
        other.streams.append(self)
        self._task = other.main.run(self._serve(other))

    def _end_there(self, more_seconds: float) -> None:
        if self._task is not None and self._other is not None and self._other.alive:
            if self in self._other.streams:
                self._other.streams.remove(self)
            self._other.main.later(0.001 + more_seconds, self._task.cancel)

    # --- at the other end

    async def _serve(self, other: Process) -> None:
        async def write(frame: permits_pb2.ExchangeResponse) -> None:
            if not self._cut:
                self._pass_on(self._back, frame)

        try:
            await other.engine.permits.exchange(self._token, self._there.get, write)
            self._back.put(None)
        except BatonError:
            self._back.put(ReplicaUnreachable())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._world.fault("a stream of permits failed", error)


class SimulatedPermits:
    """Implements PermitNetwork for one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def exchange(self, replica_id: UUID, address: str) -> PermitExchange:
        """See PermitNetwork.exchange."""
        return SimulatedExchange(self._world, self._process, replica_id, address)

    async def look(self, replica_id: UUID, address: str, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """See PermitNetwork.look."""
        raise ReplicaUnreachable

    def admits(self, replica_id: UUID, token: str) -> bool:
        """See PermitNetwork.admits."""
        return token == str(replica_id)


class SimulatedHints:
    """Implements ReplicaHints for one process: a word is lost now and then."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def runs_left(self, replica_id: UUID, address: str) -> None:
        """See ReplicaHints.runs_left."""
        other, draws = self._world.process_at(address), self._world.draws
        if other is None or draws.random() < 0.3:
            raise ReplicaUnreachable
        self._world.network.later(0.001 + draws.random() * 0.005, other.hear, str(replica_id))

    def admits(self, replica_id: UUID, token: str) -> bool:
        """See ReplicaHints.admits."""
        return token == str(replica_id)
