"""Timers on the database's clock. One never fires early: it fires once the clock's lower bound is past its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.engine.ports import Clock

MAX_SLEEP_SECONDS = 3_600.0
"""Longest single sleep; a longer wait is slept in parts, so that corrections of the clock are seen."""


class Timer:
    """One timer; `cancel` makes it never fire."""

    __slots__ = ("_clock", "_fire", "_handle", "_loop", "due_time")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, due_time: int, fire: Callable[[], None]) -> None:
        self._loop, self._clock, self._fire = loop, clock, fire
        self.due_time = due_time
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def cancel(self) -> None:
        """Disarms the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        wait_us = self.due_time - self._clock.now() + self._clock.error_us
        self._handle = self._loop.call_later(min(max(wait_us, 0) / 1_000_000, MAX_SLEEP_SECONDS), self._look)

    def _look(self) -> None:
        if self._clock.now() - self._clock.error_us >= self.due_time:
            self._handle = None
            self._fire()
        else:
            self._arm()


class Timers:
    """Makes timers on one clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def at(self, due_time: int, fire: Callable[[], None]) -> Timer:
        """Calls `fire` on the loop once `due_time` has surely passed."""
        return Timer(asyncio.get_running_loop(), self._clock, due_time, fire)
