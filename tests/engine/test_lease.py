"""When the lease is tried to be renewed again, where a renewal was not answered; and when others are given time to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
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
    """Answers at once, or after `takes_seconds`, but for renewals that fail after so many seconds each, or at once at
    some seconds."""

    def __init__(
        self, time: Time, failures: list[float], takes_seconds: float = 0.0, failing: Sequence[int] = ()
    ) -> None:
        self._time, self._failures, self._takes_seconds = time, failures, takes_seconds
        self._failing = [second * 1_000_000_000 for second in failing]

    async def register(self, *_: Any) -> Renewal:
        return self._renewal()

    async def renew(self, *_: Any) -> Renewal:
        if self._time.now_ns and self._failures:
            self._time.take(self._failures.pop(0))
            raise DatabaseUnavailable("it does not answer", retry_delay_seconds=0.1)
        if self._time.now_ns in self._failing:
            raise DatabaseUnavailable("it does not answer", retry_delay_seconds=0.1)
        renewal = self._renewal()
        self._time.take(self._takes_seconds)
        return renewal

    async def release(self, *_: Any) -> None:
        return None

    def _renewal(self) -> Renewal:
        now = self._time.now_ns // 1_000
        return Renewal(now, now + round(LEASE_SECONDS * 1_000_000))


class Here:
    """Implements machine.Apart on the same loop, for so many pauses; before each it looks at something."""

    def __init__(self, time: Time, pauses: int, look: Callable[[], Any] = bool) -> None:
        self._time, self._pauses, self._look = time, pauses, look
        self.paused: list[float] = []
        self.seen: list[Any] = []

    def start(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work())

    async def pause(self, seconds: float) -> bool:
        if len(self.paused) == self._pauses:
            return True
        self.seen.append(self._look())
        self.paused.append(seconds)
        self._time.take(seconds)
        await asyncio.sleep(0)
        return False

    async def stop(self) -> None:
        await self._task


def keeper_of(time: Time, database: Any, here: Here, on_lost: Callable[[], None]) -> LeaseKeeper:
    """A keeper whose clock is that time."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield database

    clock = DatabaseClock(Machine(lambda: time.now_ns, lambda: 0))
    return LeaseKeeper(opened, clock, LEASE_SECONDS, 30.0, lambda: 0, lambda _: None, on_lost, here)


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
    keeper = keeper_of(time, database, here, lost.set)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.paused == pytest.approx(paused)
    assert not lost.is_set()


@pytest.mark.parametrize(
    ("failing", "before"),
    [
        ([], [None] * 8),
        # One failure, a second after the start: others have as many renewals as a lease has.
        ([1], [None, 0, 0, 0, 0, 0, None]),
        # The database is there for one renewal in two: after five that were answered it is the time of the first.
        (range(1, 40, 2), [None, *[0] * 9, 2, 2, 4, 4, 6, 6, 8]),
    ],
    ids=["never late", "late once", "late again and again"],
)
async def test_others_are_given_as_many_renewals_as_a_lease_has_where_this_ones_came_late(
    failing: Sequence[int], before: list[int | None]
) -> None:
    time = Time()
    database: Any = Database(time, [], failing=failing)
    here = Here(time, len(before), lambda: keeper.mark_before)
    keeper = keeper_of(time, database, here, lambda: None)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.seen == [seconds and seconds * 1_000_000 for seconds in before]


async def test_a_renewal_that_took_long_came_late_though_it_was_answered() -> None:
    time = Time()
    database: Any = Database(time, [], takes_seconds=1.5)
    here = Here(time, 6, lambda: keeper.mark_before)
    keeper = keeper_of(time, database, here, lambda: None)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert None not in here.seen
    assert here.seen[-1]


async def test_a_lease_that_was_over_while_the_database_was_away_goes_on() -> None:
    time = Time()
    database: Any = Database(time, [0.0] * 12)
    here, lost = Here(time, 15, lambda: keeper.holds), asyncio.Event()
    keeper = keeper_of(time, database, here, lost.set)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.seen == [True] * 5 + [False] * 8 + [True] * 2
    assert not lost.is_set()
