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
        for _ in range(3 * (not self.paused)):  # Who began it goes on first.
            await asyncio.sleep(0)
        if len(self.paused) == self._pauses:
            return True
        self.seen.append(self._look())
        self.paused.append(seconds)
        self._time.take(seconds)
        await asyncio.sleep(0)
        return False

    async def stop(self) -> None:
        await self._task


def keeper_of(
    time: Time,
    database: Any,
    here: Here,
    on_lost: Callable[[], None],
    on_renewal: Callable[[Renewal], None] = lambda _: None,
) -> LeaseKeeper:
    """A keeper whose clock is that time."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield database

    clock = DatabaseClock(Machine(lambda: time.now_ns, lambda: 0))
    return LeaseKeeper(opened, clock, LEASE_SECONDS, 30.0, lambda: 0, on_renewal, on_lost, here)


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
    ("failing", "still", "before"),
    [
        # The first five renewals are at 0, 1, 2, 3 and 4: only then has the database been there for long enough.
        ([], 0, [0, 0, 0, 0, 4, 5, 6, 7]),
        # None at 6: it may have been away for others too, who are given as many renewals as a lease has.
        ([6], 0, [0, 0, 0, 0, 4, 5, 6, 2, 3, 4, 5, 11, 12]),
        # The database is there for one renewal in two: of the last five it is the time of the first.
        (range(1, 40, 2), 0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 4, 4, 6]),
        # The replica itself stands still from 6 on for three leases: so may have done others.
        ([], 6, [0, 0, 0, 0, 4, 5, 6, 3, 4, 5, 6, 26, 27]),
    ],
    ids=["never late", "late once", "late again and again", "stood still"],
)
async def test_who_is_to_be_taken_for_dead_had_as_many_chances_as_a_lease_has(
    failing: Sequence[int], still: int, before: list[int]
) -> None:
    time = Time()
    database: Any = Database(time, [], failing=failing)

    def look() -> int:
        found = keeper.mark_before
        if still and len(here.paused) == still:
            time.take(3 * LEASE_SECONDS)
        return found

    here = Here(time, len(before), look)
    keeper = keeper_of(time, database, here, lambda: None)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.seen == [seconds * 1_000_000 for seconds in before]


async def test_nobody_is_taken_for_dead_by_what_is_asked_while_the_database_stands_still() -> None:
    """The last renewal was answered at 5, and the next one is due at 6."""
    time = Time()
    database: Any = Database(time, [])

    def look() -> int:
        if len(here.paused) == 5:
            time.take(100.0)
        return keeper.mark_before

    here = Here(time, 6, look)
    keeper = keeper_of(time, database, here, lambda: None)
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.seen[-1] == 6_000_000


async def test_a_lease_that_was_over_while_the_database_was_away_goes_on() -> None:
    time = Time()
    database: Any = Database(time, [0.0] * 12)
    here, lost = Here(time, 15, lambda: keeper.holds), asyncio.Event()
    told: list[bool] = []
    keeper = keeper_of(time, database, here, lost.set, lambda _: told.append(keeper.holds))
    await keeper.start(ME, "127.0.0.1:7001")
    await keeper.stop()
    assert here.seen == [True] * 5 + [False] * 9 + [True]
    assert told[2:4] == [False, True], "what has changed since is told before anything is done again"
    assert not lost.is_set()


async def test_nothing_is_done_under_a_lease_before_who_took_it_knows() -> None:
    """What was known under the one before is doubted only then."""
    time = Time()

    class Asked(Database):
        async def renew(self, *_: Any) -> Renewal:
            held.append(keeper.holds)
            await asyncio.sleep(0)  # Here others have their turn.
            return await super().renew()

    held: list[bool] = []
    database: Any = Asked(time, [])
    keeper = keeper_of(time, database, Here(time, 1), lambda: None)
    await keeper.start(ME, "127.0.0.1:7001")
    held.append(keeper.holds)
    await keeper.stop()
    assert held[:2] == [False, True]
