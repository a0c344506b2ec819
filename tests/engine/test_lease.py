"""When the lease is tried to be renewed again, where a renewal was not answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.lease import LeaseKeeper
from orchestrator.engine.machine import Machine
from orchestrator.engine.ports import Renewal

LEASE_SECONDS = 5.0
ME = UUID(int=1)


class Time:
    """Goes on only where something takes time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def take(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Database:
    """Answers at once, but for renewals that fail after so many seconds each."""

    def __init__(self, time: Time, failures: list[float]) -> None:
        self._time, self._failures = time, failures

    async def register(self, *_: Any) -> Renewal:
        return self._renewal()

    async def renew(self, *_: Any) -> Renewal:
        if self._time.now_ns and self._failures:
            self._time.take(self._failures.pop(0))
            raise DatabaseUnavailable("it does not answer", retry_delay_seconds=0.1)
        return self._renewal()

    async def release(self, *_: Any) -> None:
        return None

    def _renewal(self) -> Renewal:
        now = self._time.now_ns // 1_000
        return Renewal(now, now + round(LEASE_SECONDS * 1_000_000))


class Here:
    """Implements machine.Apart on the same loop, for so many pauses."""

    def __init__(self, time: Time, pauses: int) -> None:
        self._time, self._pauses = time, pauses
        self.paused: list[float] = []

    def start(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work())

    async def pause(self, seconds: float) -> bool:
        if len(self.paused) == self._pauses:
            return True
        self.paused.append(seconds)
        self._time.take(seconds)
        await asyncio.sleep(0)
        return False

    async def stop(self) -> None:
        await self._task


@pytest.mark.parametrize(
    ("failures", "paused"),
    [
        ([], [1.0, 1.0, 1.0, 1.0]),
        ([0.0], [1.0, 1.0, 1.0, 1.0]),
        ([0.25, 1.5], [1.0, 0.75, 0.0, 1.0]),
        ([1.5, 1.5], [1.0, 0.0, 0.0, 1.0]),
    ],
)
async def test_the_time_that_a_renewal_took_to_fail_is_taken_from_the_pause(
    failures: list[float], paused: list[float]
) -> None:
    time = Time()
    database: Any = Database(time, failures)
    here, lost = Here(time, len(paused)), asyncio.Event()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield database

    clock = DatabaseClock(Machine(lambda: time.now_ns, lambda: 0))
    keeper = LeaseKeeper(opened, clock, LEASE_SECONDS, 30.0, lambda: 0, lambda _: None, lost.set, here)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.paused == pytest.approx(paused)
    assert not lost.is_set()
