"""Turns of the event loop, shared among all who watch: so many watchers at a time, and runs go on in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

UPDATES_A_TURN = 4
"""Updates that are sent in one turn; each takes some 30 us, and all that the loop does next waits for the turn."""

PAUSE_SECONDS = 0.001
"""Pause between turns while runs have something to do. The next turn of the event loop would not do: what gRPC hears
comes from a thread of its own, which a loop that never waits keeps from running for milliseconds."""


class Turns:
    """Lets at most UPDATES_A_TURN go on in a turn, in the order in which they asked; `is_busy` tells whether runs have
    something to do."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._left = UPDATES_A_TURN
        self._is_next_planned = False

    async def take(self) -> None:
        """Waits for a turn."""
        if self._left and not self._waiting:
            self._left -= 1
            self._plan_next()
            return
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.give((future,))
        await future

    def give(self, waiting: Iterable[asyncio.Future[bool]]) -> None:
        """Sets each of these futures to True when its turn comes; those that are done by then are passed over."""
        self._waiting.extend(waiting)
        self._plan_next()

    def _plan_next(self) -> None:
        if not self._is_next_planned:
            self._is_next_planned = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_next_planned = False
        self._left = UPDATES_A_TURN
        while self._waiting and self._left:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(True)
                self._left -= 1
        if self._waiting:
            self._is_next_planned = True
            loop = asyncio.get_running_loop()
            if self._is_busy():
                loop.call_later(PAUSE_SECONDS, self._next)
            else:
                loop.call_soon(self._next)
