"""Recovery: takes over runs whose replica is gone, those that were handed over, and parked ones whose time has come,
and drives them on from their journal.

Every replica looks once an interval. Where another gives the word it looks at once, and a little later once more: what
was held by a statement of somebody else at that moment, or left to replicas with more room, is not to wait for the
interval. It takes a bounded batch, and another while there are more; one that drives more than its share takes a
quarter, and what is due only where the others have left it for a while (`balance.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable, ShuttingDown
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import PARENT_ENDED, Abandonment, CancelRequest, Input, Resumption
from orchestrator.domain.states import ENDED_RUN, StepState
from orchestrator.engine.balance import YIELD_SECONDS, Balance
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.observer import Observer
from orchestrator.engine.ports import JournalReader, JournalStore, ReplicaStore, RunRow, RunStore
from orchestrator.engine.rebuild import ReadAhead, load_run
from orchestrator.engine.transit import Transit

GIVEN_UP = Failure(
    Code.INTERNAL, "INTERNAL", "the run could not be driven on; the server's log tells why", Origin.ORCHESTRATOR
)


_LOGGER = logging.getLogger(__name__)

AHEAD_RUNS = 64
"""Runs whose journals are read together."""

REBUILD_RUNS = 8
"""Of these, runs that are rebuilt at once."""

UNDER_WAY_SECONDS = 8.0
"""Longest that a statement which was not answered may be under way at the database, and give runs to this replica."""

WORD_JITTER_SECONDS = 0.02
"""Longest that a replica waits before it looks on a word that others get too."""

WORD_LOOKS = 2
"""Looks that a word is owed."""

LOOK_AGAIN_SECONDS = 0.25
"""Time between them; where this replica leaves what is due to the others, it is as long as that."""

LEFT_SECONDS = 0.05
"""Time to the next look where one that yields has found as many as it takes, which the others have left for so long."""

YIELD_PART = 4
"""One that drives more than its share takes a batch divided by this."""


class Recovery:
    """Adopts orphaned runs and wakes parked ones, a bounded batch at a time, for as long as the replica lives.
    `replica_id` is the process's own, while it has a lease; `mark_before` tells by when the
    lease of others was over that are to be taken for dead (`LeaseKeeper`)."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        replicas: ReplicaStore,
        runs: RunStore,
        journal: JournalStore,
        limits: EngineLimits,
        observer: Observer,
        transit: Transit,
        balance: Balance,
        mark_before: Callable[[], int],
    ) -> None:
        self._driver, self._catalogue, self._replicas = driver, catalogue, replicas
        self._runs, self._journal, self._limits, self._observer = runs, journal, limits, observer
        self._transit, self._balance, self._mark_before = transit, balance, mark_before
        self._doubtful = False
        self._doubt_end_seconds: float | None = None
        self._mean_bytes = 0
        self._word = asyncio.Event()
        self._looks_owed = 0
        self._looking = self._left_behind = False
        self.replica_id: UUID | None = None

    def doubt(self) -> None:
        """Takes note that this replica may own runs that it does not hold, or will: the next look finds them, and one
        more when nothing of what was sent can be under way any more."""
        self._doubtful = True
        self._doubt_end_seconds = asyncio.get_running_loop().time() + UNDER_WAY_SECONDS

    def _is_doubtful(self) -> bool:
        end_seconds = self._doubt_end_seconds
        if end_seconds is not None and asyncio.get_running_loop().time() >= end_seconds:
            self._doubtful, self._doubt_end_seconds = True, None
        doubtful, self._doubtful = self._doubtful, False
        return doubtful

    def look(self) -> None:
        """Lets the next look for runs come at once, also where one is under way."""
        self._word.set()

    @property
    def is_taking(self) -> bool:
        """Whether runs are being taken over, or may be: they are not in memory yet."""
        return self._looking or len(self._transit) > 0

    async def run(self, replica_id: UUID) -> None:
        """Adopts and wakes for ever."""
        self.replica_id, self._doubtful, self._doubt_end_seconds = replica_id, False, None
        while True:
            doubtful = self._is_doubtful()
            self._looking = True
            try:
                adopted = await self._look(replica_id, doubtful)
            except DatabaseUnavailable:
                self.doubt()
                adopted, doubtful = 0, False
            finally:
                self._looking = False
            # A look for what is owned and not held takes nothing from others: it is not the look that was due.
            if adopted < self._limits.adoption_batch and not doubtful:
                await self._pause()

    async def _look(self, replica_id: UUID, doubtful: bool) -> int:
        """Takes a batch over, or finds what is owned and not held; tells how many. Errors: DatabaseUnavailable."""
        rows = await (self._find_lost(replica_id) if doubtful else self._adopt(replica_id))
        with self._transit.of([row.key for row in rows]):
            for begin in range(0, len(rows), AHEAD_RUNS):
                await self._resume_all(rows[begin : begin + AHEAD_RUNS])
        await self._fail_refused()
        return len(rows)

    async def _pause(self) -> None:
        """Waits for the next look."""
        seconds = self._limits.adoption_interval_seconds * random.uniform(0.7, 1.0)
        if self._left_behind:
            seconds = LEFT_SECONDS
        elif self._looks_owed:
            seconds = min(seconds, YIELD_SECONDS if self._balance.yields else LOOK_AGAIN_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._word.wait()
        if self._word.is_set():
            self._word.clear()
            self._looks_owed = WORD_LOOKS
            await asyncio.sleep(random.uniform(0.0, WORD_JITTER_SECONDS))

    async def claim(self, key: RunKey) -> LiveRun | None:
        """Takes one run over that is parked, or whose owner was seen to be dead; None where there is none, or it cannot
        be rebuilt. To be called for what is not in transit. Errors: DatabaseUnavailable, ShuttingDown."""
        if self.replica_id is None:
            return None
        if self._driver.admission.paused:
            raise ShuttingDown("this replica takes no runs over any more; try another", retry_delay_seconds=0.5)
        with self._transit.of((key,)):
            try:
                row = await self._replicas.claim(self.replica_id, key)
                return await self._resume(row, self._journal) if row is not None else None
            except BaseException:
                # The database may have given the run, also to a caller who has left.
                self.doubt()
                raise

    async def _adopt(self, replica_id: UUID) -> Sequence[RunRow]:
        """Takes over what dead replicas left, and what is due among the parked."""
        room = self._room()
        yields, self._left_behind = self._balance.yields, False
        batch = self._limits.adoption_batch
        limit = min(-(-batch // YIELD_PART) if yields else batch, room)
        if limit <= 0 or self._driver.admission.paused:
            self._looks_owed = 0
            return ()
        # Those that were handed over; without a word they are parked ones whose time has come.
        handed_over = self._looks_owed > 0
        rows = await self._replicas.adopt(replica_id, limit, mark_before=self._mark_before())
        if len(rows) == limit:
            _tell_taken(len(rows), 0)
            return rows
        # Before their time, so that their timers are armed when it comes; and so late that they are not parked again.
        lead_seconds = min(2 * self._limits.adoption_interval_seconds, self._limits.park_seconds / 2)
        if yields:
            lead_seconds = -YIELD_SECONDS
        try:
            woken = await self._replicas.wake(replica_id, limit - len(rows), lead_seconds)
        except DatabaseUnavailable:
            self.doubt()
            _tell_taken(len(rows), 0)
            return rows
        _tell_taken(len(rows), len(woken) if handed_over else 0)
        self._looks_owed = max(self._looks_owed - 1, 0)
        self._left_behind = yields and len(rows) + len(woken) == limit
        return [*rows, *woken]

    def _room(self) -> int:
        """Tells how many runs find room here, supposing that they hold as much as those that are here, or as those
        that came last where that is more: what a run holds is known only once it has been rebuilt."""
        runs, room = self._driver.runs, self._limits.max_active_runs - len(self._driver.runs)
        room_bytes = self._limits.max_active_bytes - self._driver.active_bytes
        if room_bytes <= 0:
            return 0
        mean_bytes = max(self._driver.active_bytes // len(runs) if runs else 0, self._mean_bytes)
        return min(room, room_bytes // mean_bytes + 1) if mean_bytes else room

    async def _find_lost(self, replica_id: UUID) -> Sequence[RunRow]:
        """Finds runs that this replica owns and does not hold: the database went away after it had given them."""
        rows = await self._replicas.list_owned(replica_id)
        held = self._driver.runs.keys() | set(self._driver.refused)
        return [row for row in rows if row.key not in held and row.key not in self._transit]

    async def _resume_all(self, rows: Sequence[RunRow]) -> None:
        """Rebuilds runs side by side: most of the time is spent waiting for the database."""
        journal = await ReadAhead.of(self._journal, rows)
        results: list[LiveRun | BaseException | None] = []
        for begin in range(0, len(rows), REBUILD_RUNS):
            part = (self._resume(row, journal) for row in rows[begin : begin + REBUILD_RUNS])
            results += await asyncio.gather(*part, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        held = [result.held_bytes for result in results if isinstance(result, LiveRun)]
        if held:
            self._mean_bytes = sum(held) // len(held)

    async def _resume(self, row: RunRow, journal: JournalReader) -> LiveRun | None:
        live = await self._rebuild(row, journal)
        if live is None:
            return None
        if row.handed_over:
            live.cut_off = {index for index, step in enumerate(live.run.steps) if step.state is StepState.RUNNING}
        if not self._go_on(live, Resumption(row.handed_over)):
            return None
        if live.orphaned:
            self._driver.advance(live, CancelRequest(PARENT_ENDED, live.run.principal))
        return live

    def _go_on(self, live: LiveRun, given: Input) -> bool:
        """Drives a run on that was rebuilt. One by which that fails is given up: it must not keep this replica, and
        then the next one, from all others."""
        self._driver.advance(live, given)
        return not live.forgotten

    async def _fail_refused(self) -> None:
        """Ends runs that were given up, from their last durable state. One of which something is on its way to the
        database is left for the next look, and so is one that is given up once more."""
        refused = self._driver.refused
        for key, given_up in list(refused.items()):
            if given_up.being_written:
                continue
            row = await self._runs.get_run(key)
            if row is not None and row.state not in ENDED_RUN:
                live = await self._rebuild(row, self._journal)
                if live is not None:
                    self._go_on(live, Abandonment(GIVEN_UP))
            if refused.get(key) is given_up:
                del refused[key]

    async def _rebuild(self, row: RunRow, journal: JournalReader) -> LiveRun | None:
        """Rebuilds a run in memory; one that cannot be read is left alone and reported."""
        try:
            return await self._load(row, journal)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # whatever is wrong with one run, the others go on
            self._observer.run_forgotten(row.key, f"cannot be rebuilt: {type(error).__name__}: {error}")
            return None

    async def _load(self, row: RunRow, journal: JournalReader) -> LiveRun | None:
        live = await load_run(journal, row, self._catalogue)
        if live.run.ended:
            return None
        live.orphaned = await self._has_lost_parent(live)
        held = self._driver.runs.get(row.key)
        if held is not None and held.epoch > live.epoch:
            return None  # This replica had lost it meanwhile, with its lease, and has taken it over again.
        self._driver.adopt(live)
        return live

    async def _has_lost_parent(self, live: LiveRun) -> bool:
        """Tells whether a child is taken over after its parent has ended: who should have cancelled it went away."""
        if not live.run.parent_run_id:
            return False
        key = RunKey(live.key.namespace, UUID(live.run.parent_run_id))
        if key in self._driver.runs:
            return False
        row = await self._runs.get_run(key)
        return row is None or row.state in ENDED_RUN


def _tell_taken(adopted: int, handed_over: int) -> None:
    """Tells the log how many runs one look took over from other replicas, where it took any."""
    if adopted or handed_over:
        _LOGGER.info("runs taken over: %d of replicas that are gone, %d handed over", adopted, handed_over)
