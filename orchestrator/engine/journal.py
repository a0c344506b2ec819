"""Group commit: everything that is pending in this replica becomes durable together.

One flush is under way at a time; what arrives meanwhile forms the next one, so that batches grow with the load and
nobody waits when there is none. A decision is never split between two commits. After an ambiguous commit the identical
batch is written again before anything newer; a batch that the database refuses for its content is halved until the run
that is to blame stands alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.run import Run
from orchestrator.domain.states import TERMINAL_EVENTS, EventKind, RunState
from orchestrator.domain.values import value
from orchestrator.engine.codec import ROW_BYTES, encode, total_bytes
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, Staged
from orchestrator.engine.observer import Observer
from orchestrator.engine.pace import Pace
from orchestrator.engine.ports import JournalStore, RunEntry, WriteRefused, WriteResult
from orchestrator.engine.worklist import Kind, Worklist

RETRY_FIRST_SECONDS = 0.05
RETRY_LONGEST_SECONDS = 2.0

AWAY_SECONDS = 1.0
"""A database that has written nothing for so long is told to be away: what is new would wait for it too."""

SILENT_SECONDS = 2.0
"""Likewise one that has not answered for so long: that its connection is lost is known much later."""

_SILENT = DatabaseUnavailable(
    "the database does not answer in time; try again", metadata={"cause": "SILENT"}, retry_delay_seconds=1.0
)


@value
class Flushed:
    """Part of a batch: decisions of one run that are written together. `size` is in bytes."""

    live: LiveRun
    staged: list[Staged]
    entry: RunEntry
    size: int


def _entry(live: LiveRun, staged: list[Staged]) -> RunEntry:
    rows = staged[0].rows if len(staged) == 1 else [row for decision in staged for row in decision.rows]
    run: Run = live.run
    ends = rows[-1].kind in TERMINAL_EVENTS
    # The run may be ahead of these rows.
    if ends:
        state = run.state
    elif run.undoing is not None and run.undoing.sequence <= rows[-1].sequence:
        state = RunState.UNDOING
    else:
        state = RunState.PENDING if run.start_time is None else RunState.RUNNING
    new = live.new if rows[0].sequence == 1 else None
    reopened = live.reopened if rows[0].kind == EventKind.RUN_REOPENED else None
    end_time = run.end_time if ends else None
    return RunEntry(live.key, live.epoch, rows, int(state), run.start_time, end_time, new, reopened)


class GroupCommit:
    """Writes what live runs have staged. `on_result` and `on_refused` are called on the loop, in order."""

    def __init__(
        self,
        store: JournalStore,
        limits: EngineLimits,
        observer: Observer,
        pace: Pace,
        worklist: Worklist,
        on_result: Callable[[Flushed, WriteResult], None],
        on_refused: Callable[[Flushed], None],
    ) -> None:
        self._store, self._limits, self._observer, self._pace = store, limits, observer, pace
        self._on_result, self._on_refused = on_result, on_refused
        self._worklist = worklist
        self._to_encode = worklist.of(Kind.ENCODE, self._encode)
        self._queue: deque[LiveRun] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.queued_events = 0
        """Events that are staged and not yet durable."""
        self.queued_bytes = 0
        """Likewise, bytes of them and their payloads; of those staged in this tick without their headers."""
        self._fault: DatabaseUnavailable | None = None
        self._sent_seconds: float | None = None
        self.batches_begun = self.batches_ended = 0
        """Batches whose writing began and ended; what is durable by the latter has been published."""

    @property
    def fault(self) -> DatabaseUnavailable | None:
        """Why nothing has been written for a while, though something is to be."""
        if self._fault is None and self._sent_seconds is not None:
            silent_seconds = asyncio.get_running_loop().time() - self._sent_seconds
            return _SILENT if silent_seconds >= SILENT_SECONDS else None
        return self._fault

    def stage(self, live: LiveRun, staged: Staged) -> None:
        """Adds one decision of a run to what will be written next."""
        count = len(staged.events)
        staged.size = count * ROW_BYTES
        for event in staged.events:
            payload = getattr(event, "payload", None)
            if payload is not None:
                staged.size += len(payload.data)
        live.staged.append(staged)
        self.queued_events += count
        self.queued_bytes += staged.size
        self._to_encode.add((live, staged))
        if not live.in_journal_queue:
            live.in_journal_queue = True
            self._queue.append(live)
            self._idle.clear()
            self._wake.set()

    def _encode(self, live: LiveRun, staged: Staged) -> None:
        if not live.forgotten:
            staged.rows = [encode(event, live.run) for event in staged.events]
            size = total_bytes(staged.rows)
            self.queued_bytes += size - staged.size
            staged.size = size

    async def wait_idle(self) -> None:
        """Waits until nothing is staged."""
        self._worklist.work_off()
        await self._idle.wait()

    async def run(self, replica_id: UUID) -> None:
        """Writes batches for ever under the lease of `replica_id`. Errors: LeaseLost."""
        self.batches_ended = self.batches_begun
        while True:
            await self._wake.wait()
            if self._queue and (seconds := self._pace.wait_seconds()):
                await asyncio.sleep(seconds)
            self._worklist.work_off()
            batch = self._take_batch()
            if not batch:
                self._wake.clear()
                self._idle.set()
                continue
            started = time.perf_counter()
            self._pace.begin(len(batch))
            self.batches_begun += 1
            try:
                await self._write(replica_id, batch)
            finally:
                for part in batch:
                    part.live.being_written = False
                    part.live.accept_not()  # Where the writing was cut off.
            self._worklist.work_off()
            self.batches_ended += 1
            events = sum(len(part.entry.rows) for part in batch)
            self._observer.journal_flushed(len(batch), events, time.perf_counter() - started)

    def forget(self) -> None:
        """Drops everything that is staged: the lease is lost."""
        for live in self._queue:
            live.staged.clear()
            live.in_journal_queue = False
        self._queue.clear()
        self.queued_events = self.queued_bytes = 0

    def _drop(self, live: LiveRun) -> None:
        """Takes out what is staged of a run."""
        self.queued_events -= sum(len(staged.events) for staged in live.staged)
        self.queued_bytes -= sum(staged.size for staged in live.staged)
        live.staged.clear()

    def _take_batch(self) -> list[Flushed]:
        batch: list[Flushed] = []
        events = size = 0
        while self._queue and events < self._limits.flush_max_events and size < self._limits.flush_max_bytes:
            live = self._queue.popleft()
            if live.forgotten:
                # Another may drive the run by now: of a batch, each run has one entry at most.
                self._drop(live)
            count = part_size = 0
            taken: list[Staged] = []
            for staged in live.staged:
                assert staged.rows, "what was staged is encoded before a batch is taken"
                if count >= self._limits.flush_max_events_of_run or size + part_size >= self._limits.flush_max_bytes:
                    break
                taken.append(staged)
                count += len(staged.rows)
                part_size += staged.size
            if not taken:
                live.in_journal_queue = False
                continue
            live.staged = live.staged[len(taken) :]
            live.being_written = True
            events += count
            size += part_size
            batch.append(Flushed(live, taken, _entry(live, taken), part_size))
        return batch

    async def _write(self, replica_id: UUID, batch: list[Flushed]) -> None:
        results = await self._write_until_known(replica_id, batch)
        if results is None:
            if len(batch) == 1:
                self._finish(batch[0], None)
                return
            middle = len(batch) // 2
            await self._write(replica_id, batch[:middle])
            await self._write(replica_id, batch[middle:])
            return
        for part, result in zip(batch, results, strict=True):
            self._finish(part, result)

    async def _write_until_known(self, replica_id: UUID, batch: list[Flushed]) -> list[WriteResult] | None:
        """Writes a batch, again while the database is away. None: it was refused for its content."""
        wait, failed_seconds = RETRY_FIRST_SECONDS, None
        entries = [part.entry for part in batch]
        loop = asyncio.get_running_loop()
        try:
            self._sent_seconds = loop.time()
            while True:
                try:
                    return await self._store.write(replica_id, entries)
                except WriteRefused:
                    return None
                except DatabaseUnavailable as error:
                    if failed_seconds is None:
                        failed_seconds = loop.time()
                    elif loop.time() - failed_seconds >= AWAY_SECONDS:
                        self._fault = error
                    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                    wait = min(wait * 2, RETRY_LONGEST_SECONDS)
        finally:
            self._fault = self._sent_seconds = None

    def _finish(self, part: Flushed, result: WriteResult | None) -> None:
        live = part.live
        self.queued_events -= len(part.entry.rows)
        self.queued_bytes -= part.size
        if live.forgotten:
            self._drop(live)
        if live.staged:
            self._queue.append(live)
            self._wake.set()
        else:
            live.in_journal_queue = False
        if result is None:
            self._on_refused(part)
        else:
            self._on_result(part, result)
