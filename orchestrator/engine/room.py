"""Room for reads: how many bytes of what is read for callers a replica holds at once. What finds none waits in turn.

A read takes as much as it may come to hold before it begins, and its answer is counted from there on until its caller
has taken it, however slowly. What is small is not counted, and never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.domain.errors import TooManyReads

SMALL_READ_BYTES = 64 << 10
"""Reads and answers up to this size are not counted: the number of calls bounds them."""

WAIT_SECONDS = 5.0
"""How long a read waits for room."""


class ReadRoom:
    """Counts what is read, in bytes. Belongs to one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self.taken_bytes = 0

    @asynccontextmanager
    async def lend(self, size: int) -> AsyncIterator[None]:
        """Has room for `size` bytes meanwhile. Errors: TooManyReads, after a while."""
        taken = await self.take(size)
        try:
            yield
        finally:
            self.give(taken)

    async def take(self, size: int) -> int:
        """Takes room for `size` bytes; returns what is to be given back. Errors: TooManyReads, after a while."""
        if size <= SMALL_READ_BYTES:
            return 0
        if not self.has(size):
            await self._wait(size)
        else:
            self.taken_bytes += size
        return size

    def has(self, size: int) -> bool:
        """Tells whether `take` would find room at once."""
        return size <= SMALL_READ_BYTES or (not self._waiting and self._fits(size))

    def hold(self, size: int) -> None:
        """Counts `size` bytes that are here already, until they are given."""
        self.taken_bytes += size

    def change(self, held: int, size: int) -> int:
        """Counts `size` bytes that are here already in place of `held`; returns what is to be given back."""
        size = size if size > SMALL_READ_BYTES else 0
        if size > held:
            self.hold(size - held)
        elif size < held:
            self.give(held - size)
        return size

    def give(self, size: int) -> None:
        """Gives room back, to those who have waited longest."""
        self.taken_bytes -= size
        while self._waiting and self._fits(self._waiting[0][1]):
            future, wanted = self._waiting.popleft()
            if not future.done():
                self.taken_bytes += wanted
                future.set_result(None)

    async def _wait(self, size: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, size))
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.give(size)  # It came with the end of the wait.
            elif (future, size) in self._waiting:
                self._waiting.remove((future, size))
                self.give(0)  # Those behind may want less.
            if not isinstance(error, TimeoutError):
                raise
            raise TooManyReads(
                f"{self.taken_bytes} bytes are being read for callers and sent to them; the replica holds "
                f"{self._limit_bytes} of them at once",
                metadata={"limit": str(self._limit_bytes)},
            ) from None

    def _fits(self, size: int) -> bool:
        # One that is alone is taken whatever its size: its own limit is another.
        return not self.taken_bytes or self.taken_bytes + size <= self._limit_bytes
