"""A TCP proxy that does what bad networks do, to one side of a system that knows nothing of it.

Its faults: connections cut, or swallowed while they seem alive, in both directions or in one; new ones refused; bytes
late, or few at a time; and, on a connection to Postgres, a connection that ends when a commit has gone up, before its
answer comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random

_EXECUTE_AND_SYNC = b"S\x00\x00\x00\x04"
"""How what an asyncpg client sends ends where it waits for a statement to be done."""

_COMMIT_BYTES = 300
"""A statement of the journal is longer than this; those that renew and look are shorter."""


class Way(enum.Enum):
    """A direction."""

    UP = "from who connected to who listens"
    DOWN = "from who listens to who connected"


class CommitCut(enum.Enum):
    """Where a connection ends in a commit."""

    ANSWER_LOST = "the database has answered; the answer is dropped"
    SENT = "the statement was sent; nobody knows what comes of it"


class FaultyProxy:
    """Passes bytes between clients and one address."""

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self._host, self._port = host, port
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._open = {way: asyncio.Event() for way in Way}
        for each in self._open.values():
            each.set()
        self._cut: CommitCut | None = None
        self.port = 0
        self.delay_seconds = 0.0
        self.bytes_a_second = 0
        """0: as fast as they come."""
        self.down = False
        self.commits_cut = 0

    async def start(self) -> int:
        """Listens; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    @property
    def leads_to(self) -> int:
        """The port that what connects is passed to."""
        return self._port

    def lead_to(self, port: int) -> None:
        """Passes what connects from now on to another port; ends what is connected."""
        self._port = port
        self.cut()

    async def stop(self) -> None:
        """Ends everything."""
        assert self._server is not None
        self.heal()
        self._server.close()
        self.cut()

    def heal(self) -> None:
        """Ends every fault. What was swallowed stays so: its connections are cut."""
        self.delay_seconds, self.bytes_a_second, self.down, self._cut = 0.0, 0, False, None
        if not all(each.is_set() for each in self._open.values()):
            for each in self._open.values():
                each.set()
            self.cut()

    def cut(self) -> None:
        """Ends every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    def swallow(self, *ways: Way) -> None:
        """Lets nothing through any more, not even the end of a connection, in these directions or in both, and says so
        to nobody."""
        for way in ways or Way:
            self._open[way].clear()

    def cut_next_commit(self, how: CommitCut | None) -> None:
        """Ends the next connection that sends a commit; None takes that back."""
        self._cut = how

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        doomed: list[CommitCut] = []
        try:
            await asyncio.gather(self._up(reader, far_writer, doomed), self._down(far_reader, writer, doomed))
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _up(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, doomed: list[CommitCut]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await self._hold(len(data), Way.UP)
                sink.write(data)
                await sink.drain()
                if self._cut and len(data) > _COMMIT_BYTES and data.endswith(_EXECUTE_AND_SYNC):
                    doomed.append(self._cut)
                    self._cut = None
                    self.commits_cut += 1
                    if doomed[0] is CommitCut.SENT:
                        sink.transport.abort()
                        return
        if not doomed:
            await self._open[Way.UP].wait()
            sink.close()

    async def _down(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, doomed: list[CommitCut]) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if doomed:
                    break
                await self._hold(len(data), Way.DOWN)
                sink.write(data)
                await sink.drain()
        if doomed:
            sink.transport.abort()
        else:
            await self._open[Way.DOWN].wait()
            sink.close()

    async def _hold(self, size: int, way: Way) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds * self._random.uniform(0.5, 1.5))
        if self.bytes_a_second:
            await asyncio.sleep(size / self.bytes_a_second)
        await self._open[way].wait()
