"""Streams of runs: each ends by itself, with a mark to watch again, before its connection or its server ends it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from baton.v1.run_service_pb2 import WatchRunResponse, WatchRunsResponse

Update = TypeVar("Update", WatchRunResponse, WatchRunsResponse)

WATCH_SECONDS = 15 * 60.0
"""How long a stream lasts at least; up to a third more, so that streams opened together do not end together."""


class Watches:
    """Every stream that is open, so that all can be ended."""

    def __init__(self, watch_seconds: float = WATCH_SECONDS) -> None:
        self._watch_seconds = watch_seconds
        self._waiting: set[asyncio.Timeout] = set()
        self._ending = False

    async def follow(
        self, updates: AsyncGenerator[Update, None], kind: type[Update], cursor: str
    ) -> AsyncIterator[Update]:
        """Passes `updates` on until they end, this server drains, or the stream is old.

        In the latter two the last message asks the caller to reconnect, with the cursor of the message before it.
        """
        end_time = asyncio.get_running_loop().time() + self._watch_seconds * random.uniform(1.0, 4 / 3)
        async with aclosing(updates) as open_updates:
            while not self._ending:
                try:
                    async with asyncio.timeout_at(end_time) as waiting:
                        self._waiting.add(waiting)
                        try:
                            update = await anext(open_updates)
                        finally:
                            self._waiting.discard(waiting)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if not waiting.expired():
                        raise
                    break
                cursor = update.cursor
                yield update
        last = kind(cursor=cursor)
        last.progress.reconnect = True
        last.progress.time.GetCurrentTime()
        yield last

    def end(self) -> None:
        """Ends every stream, and each that is still opened, with a mark to reconnect."""
        self._ending = True
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            if not waiting.expired():  # One that is being ended already, here or by its age, cannot be ended again.
                waiting.reschedule(now)
