"""Scrubber: looks for what should not exist, repairs it, counts it and reports it.

Nothing here should ever be found: each fault is one of ours, of the database or of somebody who changed its rows. So it
is looked for slowly, a bounded batch at a time: each replica looks through what it owns and holds, and the oldest one
through what belongs to all. A run that may be wrong is not mended but rebuilt from its journal, which is the truth.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import READABLE_FORMATS
from orchestrator.domain.ids import RunKey
from orchestrator.domain.plan import next_due_time, wait_due_time
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.directory_ports import ReplicaDirectory
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, TimerKey, TimerKind
from orchestrator.engine.observer import Observer
from orchestrator.engine.park import Parker, at_rest
from orchestrator.engine.ports import Clock, JournalStore, ReplicaStore, RunRow
from orchestrator.engine.rebuild import read_run
from orchestrator.engine.scrub_ports import JournaledRun, ScrubStore, WaitingRun
from orchestrator.engine.transit import Transit

_LOGGER = logging.getLogger(__name__)

LOOK_RUNS = 500
"""Runs whose rows or memory are looked at in one look."""

FOLD_RUNS = 20
"""Runs whose journals are read in one look."""

OVERDUE_SECONDS = 60.0
"""A run of nobody that has been due for so long is reported, as is one whose owner has been gone for so long."""

PARKED_SECONDS = 60.0
"""A run that is parked for less than this is not looked at: it comes by itself."""

SLACK_US = 1_000_000
"""How much later than the first of its times a run may be woken."""

KNOWN_RUNS = 10_000
"""Runs that are remembered as missing, or as unreadable; more are found once these are dealt with."""


class Fault(enum.StrEnum):
    """What should not exist. The values are what logs say."""

    OWNER_UNKNOWN = "owner_unknown"
    """An unfinished run belongs to a replica that there is no row of. It is let go, and taken by whoever looks."""
    NOT_HELD = "not_held"
    """A run belongs to this replica, which does not hold it. It is rebuilt from its journal."""
    UNREADABLE = "unreadable"
    """A run cannot be rebuilt: the log tells why. Only another version, or a restore, can help."""
    WOKEN_TOO_LATE = "woken_too_late"
    """A parked run has a time that lies before its wake time. Its wake time comes now."""
    ENDED = "ended"
    """The journal of a run has ended, and its row has not. The row is ended as the journal says."""
    ENDED_EARLY = "ended_early"
    """The row of a run has ended, and its journal has not. The row says what the journal does, and the run goes on."""
    BEHIND = "behind"
    """The row of a run tells of fewer events than its journal has, so that nothing can be written. It says what the
    journal does."""
    TIMER_MISSING = "timer_missing"
    """A step in memory waits for a time, or in a queue, that nothing watches. The run is rebuilt from its journal."""
    OVERDUE = "overdue"
    """Runs of nobody, or of replicas that are gone, are due, and no replica takes them: all are full, or drain. Nothing
    is done about it."""
    MEMBER_UNKNOWN = "member_unknown"
    """A replica that there is no row of is among those that share limits, and would be asked for permits in vain. It is
    taken out, as one that was lost."""
    RUN_GONE = "run_gone"
    """A schedule keeps a run that is gone. It forgets it."""


REPORTED = frozenset({Fault.UNREADABLE, Fault.OVERDUE})
"""Faults that cannot be repaired here."""


class Scrubber:
    """Scrubs for one replica. `is_oldest` tells whether it looks through what belongs to all; `doubt` lets recovery
    look for runs that are owned and not held. `found` counts faults since the start; `directory` keeps them."""

    def __init__(
        self,
        store: ScrubStore,
        directory: ReplicaDirectory,
        replicas: ReplicaStore,
        journal: JournalStore,
        catalogue: Catalogue,
        driver: Driver,
        parker: Parker,
        transit: Transit,
        clock: Clock,
        limits: EngineLimits,
        observer: Observer,
        is_oldest: Callable[[], bool],
        doubt: Callable[[], None],
    ) -> None:
        self._store, self._directory, self._replicas = store, directory, replicas
        self._journal, self._catalogue = journal, catalogue
        self._driver, self._parker, self._transit, self._clock = driver, parker, transit, clock
        self._limits, self._observer = limits, observer
        self._is_oldest, self._doubt = is_oldest, doubt
        self.found: Counter[Fault] = Counter()
        self._unkept: Counter[Fault] = Counter()
        self._begin_laps()

    def _begin_laps(self) -> None:
        self._owned_after: RunKey | None = None
        self._parked_after: WaitingRun | None = None
        self._memory_after = 0
        self._missing: set[RunKey] = set()
        self._missing_before: set[RunKey] = set()
        self._doubted: set[RunKey] = set()
        self._told: set[RunKey] = set()
        self._overdue = 0
        self._unknown_members: set[UUID] = set()
        self._mine_after: RunKey | None = None
        self._nobodys_after: RunKey | None = None
        self._ended_after: RunKey | None = None

    async def run(self, replica_id: UUID) -> None:
        """Scrubs for ever. Errors: LeaseLost."""
        self._begin_laps()
        while True:
            await asyncio.sleep(self._limits.scrub_interval_seconds * random.uniform(0.7, 1.0))
            if not self._driver.admission.paused:
                try:
                    await self.look(replica_id)
                except DatabaseUnavailable:
                    continue

    async def look(self, replica_id: UUID) -> None:
        """Looks at the next batch of everything. Errors: LeaseLost, DatabaseUnavailable."""
        await self._look_at_memory(replica_id)
        await self._look_at_owned(replica_id)
        await self._look_at_rows(replica_id)
        if self._is_oldest():
            self._report(Fault.OWNER_UNKNOWN, len(await self._store.free_unknown(LOOK_RUNS)))
            self._report_overdue(await self._store.count_overdue(OVERDUE_SECONDS, LOOK_RUNS))
            self._report(Fault.RUN_GONE, await self._store.remove_schedule_runs(LOOK_RUNS))
            await self._look_at_members()
            await self._look_at_parked(replica_id)
        await self._keep(replica_id)

    async def _keep(self, replica_id: UUID) -> None:
        """Keeps what was found where operators of all replicas see it; what cannot be kept now is kept later."""
        if self._unkept:
            await self._directory.add_faults(replica_id, {str(fault): count for fault, count in self._unkept.items()})
            self._unkept.clear()

    def _report_overdue(self, count: int) -> None:
        """Reports as many runs as there are more than at the look before: these are not mended, and found again."""
        self._report(Fault.OVERDUE, max(count - self._overdue, 0))
        if count:
            self._unkept[Fault.OVERDUE] += 0  # It is still there, which is kept too.
        self._overdue = count

    def _report(self, fault: Fault, count: int = 1) -> None:
        if count:
            self.found[fault] += count
            self._unkept[fault] += count
            self._observer.fault_found(fault, count, fault not in REPORTED)

    async def _look_at_members(self) -> None:
        """Takes unknown replicas out that were seen in two looks: one that joins is there before its row is seen."""
        unknown = set(await self._store.list_unknown_members(LOOK_RUNS))
        removed = sorted(unknown & self._unknown_members)
        if removed and await self._store.remove_members(removed):
            self._report(Fault.MEMBER_UNKNOWN, len(removed))
        self._unknown_members = unknown

    # --- runs in memory

    async def _look_at_memory(self, replica_id: UUID) -> None:
        self._driver.settle()
        lives = list(islice(self._driver.runs.values(), self._memory_after, self._memory_after + LOOK_RUNS))
        self._memory_after = self._memory_after + LOOK_RUNS if len(lives) == LOOK_RUNS else 0
        amiss = [live for live in lives if self._is_amiss(live)]
        if amiss:
            now = self._clock.now()
            self._report(Fault.TIMER_MISSING, await self._parker.give_up(replica_id, iter([(x, now) for x in amiss])))

    def _is_amiss(self, live: LiveRun) -> bool:
        """Tells whether a run at rest waits for something that nothing here would tell it of."""
        if not at_rest(live):
            return False
        return live.run_timer is None or any(self._is_forgotten(live, index) for index in range(len(live.run.steps)))

    def _is_forgotten(self, live: LiveRun, index: int) -> bool:
        step = live.run.steps[index]
        if step.state is StepState.WAITING:
            return wait_due_time(live.run, index) is not None and TimerKey(TimerKind.WAIT, index) not in live.timers
        if step.state is StepState.READY and not live.run.paused:
            in_backoff = TimerKey(TimerKind.BACKOFF, index) in live.timers
            return not in_backoff and not self._driver.admission.is_queued(live, index)
        return False

    # --- runs of this replica

    async def _look_at_owned(self, replica_id: UUID) -> None:
        """Runs that are owned and not held in two laps are looked for; where that does not help, it is told."""
        keys = await self._store.list_owned(replica_id, self._owned_after, LOOK_RUNS)
        self._owned_after = keys[-1] if len(keys) == LOOK_RUNS else None
        held = self._driver.runs.keys() | set(self._driver.refused)
        missing = {key for key in keys if key not in held and key not in self._transit}
        # One that is missing for the first time may just have come or gone.
        new = (missing & self._missing_before) - self._doubted
        stuck = sorted((missing & self._doubted) - self._told)[:FOLD_RUNS]
        self._missing |= set(islice(missing, max(KNOWN_RUNS - len(self._missing), 0)))
        if new:
            self._doubted |= new
            self._report(Fault.NOT_HELD, len(new))
            self._doubt()
        for key in stuck:
            row = await self._store.get_unfinished(key)
            if row is not None and not await self._align(row, replica_id):
                self._tell_unreadable(key)
        if self._owned_after is None:
            self._doubted &= self._missing
            self._missing_before, self._missing = self._missing, set()

    def _tell_unreadable(self, key: RunKey) -> None:
        """Reports a run that cannot be rebuilt, once."""
        if key not in self._told and len(self._told) < KNOWN_RUNS:
            self._told.add(key)
            self._report(Fault.UNREADABLE)

    # --- rows, and the ends of their journals

    async def _look_at_rows(self, replica_id: UUID) -> None:
        """Lets rows that do not agree with their journals say what these do: those of its own runs, and as the oldest
        also those of nobody's and of ended ones."""
        mine = await self._store.list_differing(replica_id, self._mine_after, LOOK_RUNS)
        self._mine_after = mine.last
        differing = list(mine.rows)
        if self._is_oldest():
            nobodys = await self._store.list_differing(None, self._nobodys_after, LOOK_RUNS)
            ended = await self._store.list_differing_ended(self._ended_after, LOOK_RUNS)
            self._nobodys_after, self._ended_after = nobodys.last, ended.last
            differing += [*nobodys.rows, *ended.rows]
        known = [row for row in differing if row.key not in self._told and row.journal_format in READABLE_FORMATS]
        for row in known[:FOLD_RUNS]:
            if not await self._align(row, replica_id):
                self._tell_unreadable(row.key)

    async def _align(self, row: RunRow, replica_id: UUID, run: Run | None = None) -> bool:
        """Lets the row of a run say what its journal does; False where it does, or the journal cannot be read."""
        run = run or await self._fold(row)
        if run is None:
            return False
        has_ended = row.end_time is not None
        if run.ended is has_ended and run.sequence == row.next_sequence - 1:
            return False
        fault = Fault.BEHIND
        if run.ended is not has_ended:
            fault = Fault.ENDED if run.ended else Fault.ENDED_EARLY
        if await self._store.align(row, replica_id, _journaled(run)):
            self._report(fault)
            if not run.ended and row.key not in self._driver.runs:
                self._doubt()
        return True

    # --- runs of nobody

    async def _look_at_parked(self, replica_id: UUID) -> None:
        parked = await self._store.list_parked(PARKED_SECONDS, self._parked_after, FOLD_RUNS)
        self._parked_after = parked[-1] if len(parked) == FOLD_RUNS else None
        late: list[RunKey] = []
        for waiting in parked:
            run = await self._fold(waiting.row)
            if run is None:
                self._tell_unreadable(waiting.row.key)
            elif run.ended:
                await self._align(waiting.row, replica_id, run)
            elif run.sequence < waiting.row.next_sequence and waiting.wake_time > next_due_time(run) + SLACK_US:
                # Not of one that went on since its row was read.
                late.append(waiting.row.key)
        if late:
            await self._replicas.poke(late)
            self._report(Fault.WOKEN_TOO_LATE, len(late))

    async def _fold(self, row: RunRow) -> Run | None:
        """Folds a journal; None where it cannot be read, whatever the reason: that is what is to be found out."""
        run: Run | None = None
        why: Exception | None = None
        try:
            run = await read_run(self._journal, row, self._catalogue, stand_ins=False)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            why = error
        if run is None and row.key not in self._told:
            _LOGGER.error("run %s: its journal is gone, or cannot be folded", row.key.run_id, exc_info=why)
        return run


def _journaled(run: Run) -> JournaledRun:
    return JournaledRun(
        int(run.state), run.sequence + 1, run.round, run.revision, run.start_time, run.end_time, run.expire_time
    )
