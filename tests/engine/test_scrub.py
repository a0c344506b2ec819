"""The scrubber on runs in memory, on a store that a test plays: what nothing watches is rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from baton.v1 import replica_pb2

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import Sleeping
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, TimerKey, TimerKind
from orchestrator.engine.observer import FaultFound, RecordingObserver
from orchestrator.engine.scrub import Fault, Scrubber
from orchestrator.engine.scrub_ports import DifferingRuns
from tests.engine.test_park import ME, Bench

Change = Callable[[Bench, LiveRun], None]


class Owned:
    """A store that knows what a replica owns and how many runs are due, and keeps what was found."""

    def __init__(self) -> None:
        self.keys: list[RunKey] = []
        self.kept: list[dict[str, int]] = []
        self.fails = False
        self.overdue = 0
        self.parked: list[Any] = []

    async def list_owned(self, replica_id: UUID, after: RunKey | None, limit: int) -> Sequence[RunKey]:
        return [key for key in sorted(self.keys) if after is None or key > after][:limit]

    async def list_differing(self, owner: UUID | None, after: RunKey | None, limit: int) -> DifferingRuns:
        return DifferingRuns((), None)

    async def list_differing_ended(self, after: RunKey | None, limit: int) -> DifferingRuns:
        return DifferingRuns((), None)

    async def get_unfinished(self, key: RunKey) -> None:
        return None

    async def free_unknown(self, limit: int) -> Sequence[RunKey]:
        return ()

    async def count_overdue(self, seconds: float, limit: int) -> int:
        return self.overdue

    async def list_unknown_members(self, limit: int) -> Sequence[UUID]:
        return ()

    async def remove_schedule_runs(self, limit: int) -> int:
        return 0

    async def list_parked(self, beyond_seconds: float, after: object, limit: int) -> Sequence[Any]:
        return self.parked

    async def add_faults(self, replica_id: UUID, counts: Mapping[str, int]) -> None:
        if self.fails:
            raise DatabaseUnavailable("away", retry_delay_seconds=1.0)
        self.kept.append(dict(counts))


class Scrub:
    """A bench with its scrubber."""

    def __init__(self) -> None:
        self.bench, self.observer, self.store = Bench(), RecordingObserver(), Owned()
        store: Any = self.store
        nothing: Any = None
        self.doubts = 0
        self.oldest = False
        # Runs of the bench are in no queue.
        self.bench.driver.admission.is_queued = lambda live, step: False  # type: ignore[method-assign]
        self.scrubber = Scrubber(
            store,
            store,
            nothing,
            nothing,
            nothing,
            self.bench.driver,
            self.bench.parker,
            self.bench.transit,
            self.bench.clock,
            EngineLimits(),
            self.observer,
            lambda: self.oldest,
            self._doubt,
        )

    def _doubt(self) -> None:
        self.doubts += 1


@pytest.fixture
async def scrub() -> Scrub:
    return Scrub()


def without_run_timer(_: Bench, live: LiveRun) -> None:
    assert live.run_timer is not None
    live.run_timer.cancel()
    live.run_timer = None


def without_backoff(_: Bench, live: LiveRun) -> None:
    live.timers.clear()


def asleep(bench: Bench, live: LiveRun) -> None:
    step = live.run.steps[0]
    step.state, step.queue_time, step.wait = StepState.WAITING, None, Sleeping(bench.clock.now() + 60_000_000)
    live.timers.clear()


@pytest.mark.parametrize("change", [without_run_timer, without_backoff, asleep])
async def test_a_run_that_waits_for_what_nothing_watches_is_rebuilt(change: Change, scrub: Scrub) -> None:
    sound, live = scrub.bench.waiting(), scrub.bench.waiting()
    change(scrub.bench, live)
    await scrub.scrubber.look(ME)
    assert [run.key for run in scrub.bench.replicas.parked] == [live.key]
    assert scrub.bench.replicas.parked[0].wake_time <= scrub.bench.clock.now()
    assert scrub.bench.driver.runs == {sound.key: sound}
    assert scrub.observer.facts == [FaultFound("timer_missing", 1, True)]
    await scrub.scrubber.look(ME)
    assert scrub.scrubber.found == {Fault.TIMER_MISSING: 1}
    scrub.bench.driver.forget(sound, "")


def watched(bench: Bench, live: LiveRun) -> None:
    asleep(bench, live)
    live.timers[TimerKey(TimerKind.WAIT, 0)] = bench.waiting().timers[TimerKey(TimerKind.BACKOFF, 0)]


def paused(_: Bench, live: LiveRun) -> None:
    live.timers.clear()
    live.run.paused = True


def unsettled(_: Bench, live: LiveRun) -> None:
    live.timers.clear()
    live.durable_sequence -= 1


@pytest.mark.parametrize("change", [watched, paused, unsettled])
async def test_what_is_watched_or_not_at_rest_is_left_alone(change: Change, scrub: Scrub) -> None:
    live = scrub.bench.waiting()
    change(scrub.bench, live)
    await scrub.scrubber.look(ME)
    assert scrub.observer.facts == []
    assert scrub.bench.driver.runs[live.key] is live
    for each in list(scrub.bench.driver.runs.values()):
        scrub.bench.driver.forget(each, "")


async def test_what_is_owned_and_not_held_for_two_laps_is_looked_for(scrub: Scrub) -> None:
    held, coming, lost = scrub.bench.waiting(), scrub.bench.waiting(), scrub.bench.waiting()
    for live in (coming, lost):
        scrub.bench.driver.forget(live, "")
    scrub.store.keys = [held.key, lost.key, coming.key]
    with scrub.bench.transit.of([coming.key]):
        await scrub.scrubber.look(ME)
        assert scrub.doubts == 0, "it may just have come"
        await scrub.scrubber.look(ME)
        assert scrub.doubts == 1
        await scrub.scrubber.look(ME)
    assert scrub.scrubber.found == {Fault.NOT_HELD: 1}
    scrub.bench.driver.forget(held, "")


async def test_runs_that_stay_due_are_counted_once_and_kept_as_still_there(scrub: Scrub) -> None:
    scrub.oldest = True
    for scrub.store.overdue in (2, 2, 5, 1, 0, 1):
        await scrub.scrubber.look(ME)
    assert scrub.scrubber.found == {Fault.OVERDUE: 6}
    assert [fact.count for fact in scrub.observer.facts if isinstance(fact, FaultFound)] == [2, 3, 1]
    assert [kept["overdue"] for kept in scrub.store.kept] == [2, 0, 3, 0, 1]


async def test_what_was_found_while_the_database_was_away_is_kept_later(scrub: Scrub) -> None:
    scrub.oldest, scrub.store.overdue, scrub.store.fails = True, 3, True
    with pytest.raises(DatabaseUnavailable):
        await scrub.scrubber.look(ME)
    scrub.store.overdue, scrub.store.fails = 4, False
    await scrub.scrubber.look(ME)
    scrub.store.overdue = 0
    await scrub.scrubber.look(ME)
    assert scrub.store.kept == [{"overdue": 4}]


async def test_a_run_that_cannot_be_read_is_told_of_once(scrub: Scrub, caplog: pytest.LogCaptureFixture) -> None:
    row = SimpleNamespace(key=scrub.bench.waiting().key, round=1)
    scrub.oldest, scrub.store.parked = True, [SimpleNamespace(row=row, wake_time=0)]
    for _ in range(3):
        await scrub.scrubber.look(ME)
    assert scrub.scrubber.found == {Fault.UNREADABLE: 1}
    assert [str(row.key.run_id) in line for line in caplog.messages] == [True]


def test_every_fault_is_known_on_the_wire_and_told_of_in_the_pages() -> None:
    names = {name.removeprefix("FAULT_").lower() for name in replica_pb2.Fault.keys()}  # noqa: SIM118
    assert names == {"unspecified", *Fault}
    page = Path("docs/reliability.md").read_text()
    assert [fault for fault in Fault if f"| `{fault}` |" not in page] == []
