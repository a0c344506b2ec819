"""Parking and finding runs, on a replica store that a test plays: what happens in between two statements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator.domain.errors import DatabaseUnavailable, OwnerUnavailable, RunNotFound
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import StepState
from orchestrator.engine import ownership, park
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, TimerKey, TimerKind
from orchestrator.engine.ownership import Ownership, RunElsewhere
from orchestrator.engine.park import Parker
from orchestrator.engine.ports import ParkedRun, RunOwner
from orchestrator.engine.transit import Transit
from tests.engine.drivers import driver, live_run

ME, OTHER = uuid4(), uuid4()
SECOND_US = 1_000_000


class Replicas:
    """Owners of runs, and what was parked; `gate` holds statements up, `error` fails them."""

    def __init__(self) -> None:
        self.owners: dict[RunKey, RunOwner] = {}
        self.parked: list[ParkedRun] = []
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        self.entered.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.parked += runs
        self.owners |= {run.key: RunOwner(None, "", False, False) for run in runs}

    async def find_owner(self, key: RunKey) -> RunOwner | None:
        return self.owners.get(key)


class Recovery:
    """Claims what has no owner, like the one of the engine."""

    def __init__(self, made: Driver, replicas: Replicas, transit: Transit) -> None:
        self.replica_id = ME
        self._driver, self._replicas, self._transit = made, replicas, transit
        self.claims = 0

    async def claim(self, key: RunKey) -> LiveRun | None:
        with self._transit.of((key,)):
            self.claims += 1
            await asyncio.sleep(0)
            if self._replicas.owners[key].alive:
                return None
            self._replicas.owners[key] = RunOwner(ME, "here", True, False)
            live = live_run()
            live.key = key
            self._driver.adopt(live)
            return live


class Bench:
    """A driver, its parker, and what finds runs."""

    def __init__(self) -> None:
        self.driver, self.replicas, self.transit = driver(), Replicas(), Transit()
        self.doubts = 0
        self.clock = DatabaseClock()
        store: Any = self.replicas
        limits = EngineLimits(park_seconds=5.0)
        self.parker = Parker(self.driver, store, self.transit, self.clock, limits, self._doubt)
        self.recovery = Recovery(self.driver, self.replicas, self.transit)
        recovery: Any = self.recovery
        self.ownership = Ownership(self.driver, recovery, store, self.transit)
        self.ownership.address = "here"

    def _doubt(self) -> None:
        self.doubts += 1

    def waiting(self, seconds: float = 3_600.0) -> LiveRun:
        """A run whose one step is in a backoff; its timer is armed."""
        live = live_run()
        self.driver.adopt(live)
        live.run.sequence = live.durable_sequence = 4
        due = self.clock.now() + round(seconds * SECOND_US)
        live.run.steps[0].state, live.run.steps[0].queue_time = StepState.READY, due
        live.timers[TimerKey(TimerKind.BACKOFF, 0)] = SimpleNamespace(due_time=due, cancel=lambda: None)  # type: ignore[assignment]
        self.replicas.owners[live.key] = RunOwner(ME, "here", True, False)
        return live


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(park, "SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(ownership, "FIND_SECONDS", 0.5)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def sweep(bench: Bench) -> None:
    """Lets the parker look at all runs at least once."""
    task = asyncio.create_task(bench.parker.run(ME))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_run_that_waits_long_is_parked_until_its_first_timer(bench: Bench) -> None:
    live = bench.waiting()
    due = live.timers[TimerKey(TimerKind.BACKOFF, 0)].due_time
    left = asyncio.ensure_future(live.left(60.0))
    await sweep(bench)
    assert bench.replicas.parked == [ParkedRun(live.key, 1, 5, due)]
    assert bench.driver.runs == {}
    assert live.run_timer is None
    assert live.timers == {}
    await left


def at_work(live: LiveRun) -> None:
    live.run.steps[0].state = StepState.RUNNING


def queued(live: LiveRun) -> None:
    live.run.steps[0].queue_time = 0
    live.timers.clear()


def calling(live: LiveRun) -> None:
    live.flights[0] = SimpleNamespace()  # type: ignore[assignment]


def unsettled(live: LiveRun) -> None:
    live.durable_sequence -= 1


def ending_soon(live: LiveRun) -> None:
    assert live.run_timer is not None
    live.run_timer.due_time = DatabaseClock().now() + 4 * SECOND_US


@pytest.mark.parametrize("change", [at_work, queued, calling, unsettled, ending_soon])
async def test_a_run_with_anything_under_way_or_due_soon_is_not(
    change: Callable[[LiveRun], None], bench: Bench
) -> None:
    live = bench.waiting()
    change(live)
    witness = bench.waiting()
    await sweep(bench)
    assert [run.key for run in bench.replicas.parked] == [witness.key]
    assert bench.driver.runs == {live.key: live}
    live.flights.clear()
    bench.driver.forget(live, "")


async def test_a_short_backoff_is_waited_for_in_memory(bench: Bench) -> None:
    live = bench.waiting(4.0)
    await sweep(bench)
    assert bench.replicas.parked == []
    bench.driver.forget(live, "")


async def test_a_run_that_was_at_work_is_looked_at_again_after_its_next_event(bench: Bench) -> None:
    live = bench.waiting()
    live.run.steps[0].state = StepState.RUNNING
    await sweep(bench)
    live.run.steps[0].state = StepState.READY
    live.run.sequence = live.durable_sequence = 5
    await sweep(bench)
    assert [run.next_sequence for run in bench.replicas.parked] == [6]


async def test_a_verb_that_comes_while_a_run_is_parked_takes_it_back(bench: Bench) -> None:
    live = bench.waiting()
    bench.replicas.gate.clear()
    parking = asyncio.create_task(bench.parker.run(ME))
    await bench.replicas.entered.wait()
    verbs = [asyncio.ensure_future(bench.ownership.find(live.key)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(verb.done() for verb in verbs)
    bench.replicas.gate.set()
    found = await asyncio.gather(*verbs)
    parking.cancel()
    assert found[0] is not live
    assert found == [bench.driver.runs[live.key]] * 3
    assert bench.recovery.claims == 1
    assert found[0] is not None
    bench.driver.forget(found[0], "")


async def test_what_may_not_have_been_parked_is_looked_for(bench: Bench) -> None:
    live = bench.waiting()
    bench.replicas.error = DatabaseUnavailable("away")
    await sweep(bench)
    assert bench.doubts > 0
    assert live.key not in bench.driver.runs
    with pytest.raises(OwnerUnavailable):
        await bench.ownership.find(live.key)


async def test_runs_are_found_where_they_are(bench: Bench) -> None:
    key = RunKey("default", uuid4())
    with pytest.raises(RunNotFound):
        await bench.ownership.find(key)
    bench.replicas.owners[key] = RunOwner(None, "", False, True)
    assert await bench.ownership.find(key) is None
    bench.replicas.owners[key] = RunOwner(OTHER, "there", True, False)
    with pytest.raises(RunElsewhere) as caught:
        await bench.ownership.find(key)
    assert caught.value.address == "there"
    bench.replicas.owners[key] = RunOwner(OTHER, "here", True, False)
    with pytest.raises(OwnerUnavailable, match="BATON_REPLICA_ADDRESS"):
        await bench.ownership.find(key)
