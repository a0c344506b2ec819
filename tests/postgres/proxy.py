"""A proxy before Postgres that loses answers: what was sent is carried out, and the sender does not learn of it. Or it
swallows what is sent on connections, which seem alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit


class LossyProxy:
    """Passes bytes on between clients and a server on unix sockets."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.loses_answers = False
        self.lost = 0
        """Answers that were lost."""
        self.connections = 0
        """Connections that were ever made."""
        self._line = _working()
        self._swallowed: list[asyncio.Event] = []

    def swallow(self) -> None:
        """Lets nothing through any more on the connections that there are, and says so to nobody; new ones work."""
        self._line.clear()
        self._swallowed.append(self._line)
        self._line = _working()

    def heal(self) -> None:
        """Lets through what was swallowed."""
        for line in self._swallowed:
            line.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        self.connections += 1
        line = self._line
        server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pass(reader, server_writer, writer, line, answers=False))
            group.create_task(self._pass(server_reader, writer, server_writer, line, answers=True))

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        line: asyncio.Event,
        *,
        answers: bool,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await line.wait()
                if answers and self.loses_answers:
                    self.lost += 1
                    break
                sink.write(data)
                await sink.drain()
        for end in (sink, other):
            end.close()


def _working() -> asyncio.Event:
    line = asyncio.Event()
    line.set()
    return line


@contextlib.asynccontextmanager
async def lossy_proxy(dsn: str, directory: Path) -> AsyncIterator[tuple[LossyProxy, str]]:
    """Runs a proxy before the server of `dsn`; gives it with the DSN that leads through it."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    name = f".s.PGSQL.{query['port'][0]}"
    proxy = LossyProxy(f"{query['host'][0]}/{name}")
    server = await asyncio.start_unix_server(proxy.serve, directory / name)
    try:
        yield proxy, urlunsplit(parts._replace(query=f"host={directory}&port={query['port'][0]}"))
    finally:
        proxy.heal()
        server.close()
        await server.wait_closed()
