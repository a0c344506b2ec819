"""A proxy before Postgres that loses answers: what was sent is carried out, and the sender does not learn of it."""

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

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pass(reader, server_writer, writer, answers=False))
            group.create_task(self._pass(server_reader, writer, server_writer, answers=True))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, other: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if answers and self.loses_answers:
                    self.lost += 1
                    break
                sink.write(data)
                await sink.drain()
        for end in (sink, other):
            end.close()


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
        server.close()
        await server.wait_closed()
