"""Readings of catalogues that have changed, one after the other, each as soon as may be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from orchestrator.domain.errors import DatabaseUnavailable

RETRY_SECONDS = 0.5
"""How long nothing is read after a reading that failed."""


class Readings:
    """Reads namespaces with `read` that were asked for. A namespace waits once, however often it changes meanwhile."""

    def __init__(self, read: Callable[[str], Awaitable[None]]) -> None:
        self._read = read
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()

    def ask(self, namespace: str) -> None:
        """Has a namespace read, by a reading that begins after this."""
        if namespace not in self._waiting:
            self._waiting.add(namespace)
            self._queue.put_nowait(namespace)

    async def run(self) -> None:
        """Reads what is asked for until it is cancelled; tries again where the database is away."""
        while True:
            namespace = await self._queue.get()
            self._waiting.discard(namespace)  # Before it is read: what changes from now on may be missed.
            try:
                await self._read(namespace)
            except DatabaseUnavailable:
                self.ask(namespace)
                await asyncio.sleep(RETRY_SECONDS)
