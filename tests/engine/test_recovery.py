"""When a replica looks for runs: a word is never used up by anything but a look for what others have left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.ids import RunKey
from orchestrator.domain.plan import Decision
from orchestrator.domain.run import Run
from orchestrator.engine.balance import Balance
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import RecordingObserver
from orchestrator.engine.recovery import WORD_LOOKS, Recovery
from tests.engine.drivers import live_run
from tests.engine.test_park import ME, Bench


class Database:
    """Answers looks as a test says, and lets it wait for them."""

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.looked = asyncio.Condition()
        self.fail = False
        self.hold: asyncio.Event | None = None
        self.due: list[Any] = []
        self.orphaned: list[Any] = []

    async def adopt(self, *_: Any, mark_before: int | None) -> list[Any]:
        orphaned, self.orphaned = self.orphaned, []
        return orphaned

    async def wake(self, *_: Any) -> list[Any]:
        await self._look("for what others left")
        due, self.due = self.due, []
        return due

    async def list_owned(self, *_: Any) -> list[Any]:
        await self._look("for what is lost")
        return []

    async def _look(self, what: str) -> None:
        async with self.looked:
            self.looks.append(what)
            self.looked.notify_all()
        if self.hold is not None:
            await self.hold.wait()
        if self.fail:
            self.fail = False
            raise DatabaseUnavailable("away", retry_delay_seconds=0.1)

    async def wait_for(self, count: int) -> list[str]:
        """Waits for so many looks; returns what each was for."""
        async with asyncio.timeout(20), self.looked:
            await self.looked.wait_for(lambda: len(self.looks) >= count)
        return self.looks


@pytest.fixture
async def database() -> Database:
    return Database()


def recovery_of(bench: Bench, database: Any, limits: EngineLimits) -> Recovery:
    """One that knows no catalogue, and drives no more than its share."""
    nothing: Any = None
    observer, balance = RecordingObserver(), Balance(lambda: 0)
    return Recovery(
        bench.driver, nothing, database, nothing, nothing, limits, observer, bench.transit, balance, lambda: 0
    )


@pytest.fixture
async def recovery(database: Database) -> AsyncIterator[Recovery]:
    """One that looks by itself only in an hour, after its first look."""
    bench = Bench()
    limits = EngineLimits(adoption_interval_seconds=3_600)
    recovery = recovery_of(bench, database, limits)
    running = asyncio.create_task(recovery.run(ME))
    await database.wait_for(1)
    yield recovery
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_word_that_comes_during_a_look_is_followed_by_another(database: Database, recovery: Recovery) -> None:
    database.hold = asyncio.Event()
    recovery.look()
    await database.wait_for(2)
    recovery.look()
    database.hold.set()
    assert len(await database.wait_for(2 + WORD_LOOKS)) >= 2 + WORD_LOOKS


async def test_a_look_for_what_is_lost_does_not_use_up_the_word(database: Database, recovery: Recovery) -> None:
    recovery.doubt()
    recovery.look()
    looks = await database.wait_for(2 + WORD_LOOKS)
    assert looks[1] == "for what is lost"
    assert looks[2:] == ["for what others left"] * WORD_LOOKS


async def test_a_word_is_kept_where_the_look_fails(database: Database, recovery: Recovery) -> None:
    database.fail = True
    recovery.look()
    looks = await database.wait_for(3 + WORD_LOOKS)
    assert looks[2:] == ["for what is lost", *["for what others left"] * WORD_LOOKS]


async def test_a_replica_is_taking_while_it_looks(database: Database, recovery: Recovery) -> None:
    database.hold = asyncio.Event()
    recovery.look()
    await database.wait_for(2)
    assert recovery.is_taking


async def test_a_run_that_cannot_be_driven_on_keeps_nobody_from_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    poison, sound = bench.waiting(), bench.waiting()
    driven: list[RunKey] = []
    looked_up: list[RunKey] = []

    def decide(run: Run, *_: object) -> Decision:
        if run is poison.run:
            raise IndexError("tuple index out of range")
        driven.append(sound.key)
        return Decision()

    async def get_run(key: RunKey) -> None:
        looked_up.append(key)

    async def load_run(_: object, row: Any, __: object) -> Any:
        return row.live

    async def read_nothing(*_: object) -> None:
        """Journals are not looked at here."""

    monkeypatch.setattr("orchestrator.engine.drive.decide", decide)
    monkeypatch.setattr("orchestrator.engine.recovery.load_run", load_run)
    monkeypatch.setattr("orchestrator.engine.recovery.ReadAhead.of", read_nothing)
    database.due = [SimpleNamespace(key=each.key, live=each, handed_over=False) for each in (poison, sound)]
    limits = EngineLimits(adoption_interval_seconds=3_600)
    recovery = recovery_of(bench, database, limits)
    monkeypatch.setattr(recovery, "_runs", SimpleNamespace(get_run=get_run))
    running = asyncio.create_task(recovery.run(ME))
    await database.wait_for(1)
    recovery.look()
    await database.wait_for(2)
    assert looked_up == [poison.key]  # To be failed, where it is stored.
    assert driven == [sound.key]
    assert bench.driver.runs == {sound.key: sound}
    assert poison.forgotten
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bench.driver.forget(sound, "")


async def test_runs_are_taken_over_as_far_as_there_is_room_for_what_they_hold(database: Database) -> None:
    bench, asked = Bench(), list[int]()

    async def adopt(_: Any, limit: int, *, mark_before: int | None) -> list[Any]:
        asked.append(limit)
        return []

    database.adopt = adopt  # type: ignore[method-assign]
    limits = EngineLimits(max_active_bytes=1_000)
    recovery = recovery_of(bench, database, limits)
    live = live_run()
    bench.driver.adopt(live)
    bench.driver.runs.grow(live, 300)
    await recovery._adopt(ME)
    assert asked == [3]  # As large as the one that is here, the third fills the room.
    bench.driver.journal.queued_bytes = 700
    await recovery._adopt(ME)
    assert asked == [3]
    bench.driver.forget(live, "")
    await recovery._adopt(ME)
    assert asked == [3, limits.adoption_batch]  # Nothing is known of what runs hold here.


async def test_runs_that_are_taken_over_from_others_are_told_in_one_line_a_look(
    database: Database, recovery: Recovery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()

    async def take_nothing(*_: object) -> None:
        """What is done with the runs is not looked at here."""

    monkeypatch.setattr(recovery, "_resume_all", take_nothing)
    caplog.set_level(logging.INFO, "orchestrator.engine.recovery")
    looks = 1

    async def look(*, orphaned: int = 0, due: int = 0, word: bool = True) -> list[str]:
        nonlocal looks
        caplog.clear()
        database.orphaned = [bench.waiting() for _ in range(orphaned)]
        database.due = [bench.waiting() for _ in range(due)]
        if word:
            recovery.look()
            looks += WORD_LOOKS
            await database.wait_for(looks)
        else:
            await recovery._adopt(ME)
            looks += 1
        return [record.getMessage() for record in caplog.records]

    assert await look() == []
    assert await look(orphaned=3, due=2) == ["runs taken over: 3 of replicas that are gone, 2 handed over"]
    assert await look(due=2) == ["runs taken over: 0 of replicas that are gone, 2 handed over"]
    assert await look(due=2, word=False) == [], "these are parked ones whose time has come"
    assert await look(orphaned=3, due=2, word=False) == ["runs taken over: 3 of replicas that are gone, 0 handed over"]
