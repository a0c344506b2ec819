"""Waiting for one thing by many, each for a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection


class Waiters:
    """Those who wait until `wake` is called. Belongs to one event loop.

    One future and one timer for each of them, which costs a third of `asyncio.wait` on a shared future; and who gives
    up is gone at once. Nothing is kept while nobody waits.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[bool], None] | None = None

    def wake(self) -> None:
        """Wakes everybody who waits now."""
        for future in self.take():
            _tell(future, True)

    def take(self) -> Collection[asyncio.Future[bool]]:
        """Hands everybody who waits now over: to wake them is to set these futures to True, where they are not done."""
        waiting, self._waiting = self._waiting, None
        return () if waiting is None else waiting

    async def wait(self, timeout_seconds: float) -> bool:
        """Waits until the next `wake`; False where the time is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if self._waiting is None:
            self._waiting = {}
        self._waiting[future] = None
        handle = loop.call_later(timeout_seconds, _tell, future, False)
        try:
            return await future
        finally:
            handle.cancel()
            if self._waiting is not None:
                self._waiting.pop(future, None)


def _tell(future: asyncio.Future[bool], woken: bool) -> None:
    if not future.done():
        future.set_result(woken)
