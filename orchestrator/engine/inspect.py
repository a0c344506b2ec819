"""Reads runs: get, list, watch, wait and the events. What a caller sees is durable, whoever drives the run."""

from __future__ import annotations

import asyncio
import base64
import binascii
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from uuid import UUID

from baton.v1 import event_pb2, run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    CursorExpired,
    FieldFault,
    InvalidCursor,
    RunNotFound,
    RunUnreadable,
    TooManyReads,
)
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.admission import Admission
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.codec import to_message, total_bytes
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.listing import fill_failures
from orchestrator.engine.live import LiveRun
from orchestrator.engine.looks import Looks, require_row
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.payloads import READ_BYTES, PayloadReader
from orchestrator.engine.ports import Clock, FilterTerm, JournalStore, RunRow, RunStore
from orchestrator.engine.rebuild import read_run
from orchestrator.engine.room import SMALL_READ_BYTES, ReadRoom
from orchestrator.engine.turns import Turns
from orchestrator.engine.unreadable import told_if_unreadable
from orchestrator.engine.updates import HELD_BYTES, MESSAGE_BYTES, Joined, Update, UpdatePages, encode_cursor
from orchestrator.engine.view import (
    MAX_STEPS,
    PAGE_LIMIT_BYTES,
    VIEW_LIMIT_BYTES,
    has_payloads,
    render,
    render_row,
    render_steps,
    render_wait,
    render_without_steps,
)
from orchestrator.engine.waits import Wait

FULL = run_service_pb2.RUN_VIEW_FULL

FOLDED_EVENT_BYTES = 1_000
"""What an event leaves of itself in a run that is rebuilt without payloads, about."""

FOLDED_SECONDS = 5.0
"""How long a large run that was rebuilt for a page of it is kept for the next page."""

OWNED_ELSEWHERE = Wait(
    run_pb2.WAIT_KIND_OWNER,
    "another replica drives the run and knows why; where that one is gone, a live one takes over within one lease",
)


def decode_cursor(run_id: UUID, cursor: str) -> int:
    """Reads a cursor back. Errors: InvalidCursor."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        version, mark, sequence = text.split(".")
        if version == "1" and mark == run_id.hex[-12:] and int(sequence) >= 0:
            return int(sequence)
    except (ValueError, binascii.Error):
        pass
    raise _invalid_cursor("not one that WatchRun gave for this run; leave it empty to start with a snapshot")


def _invalid_cursor(why: str) -> InvalidCursor:
    return InvalidCursor(f"cursor: {why}", faults=[FieldFault("cursor", "INVALID_CURSOR", why)])


def _expired() -> CursorExpired:
    return CursorExpired("cursor: the events after it are gone; leave it empty to start with a snapshot")


def backoff_of(run: Run, index: int, clock: Clock) -> Wait | None:
    """Tells until when a ready step waits before its next attempt, whoever drives the run; None where it does not."""
    queue_time = run.steps[index].queue_time or 0
    if queue_time > clock.now():
        return Wait(run_pb2.WAIT_KIND_BACKOFF, "waits before the next attempt", queue_time)
    return None


def wait_reasons(run: Run, live: LiveRun, admission: Admission, clock: Clock) -> Callable[[int], Wait | None]:
    """Tells why the ready steps of a run as it is shown wait, which is driven here as `live`. That may be ahead of what
    is shown, and have other steps since some began anew."""

    def wait_of(index: int) -> Wait | None:
        wait = backoff_of(run, index, clock)
        if wait is not None or index >= len(live.run.steps):
            return wait
        return admission.wait_of(live, index) if live.run.steps[index].spec.id == run.steps[index].spec.id else None

    return wait_of


def _ends_with(live: LiveRun | None, sequence: int) -> bool:
    """Tells whether it is known that a round ends with an event, and that no other follows it."""
    return live is not None and live.run.ended and live.run.sequence == sequence


def _shown_bytes(live: LiveRun, view: int) -> int:
    """Tells what showing a run in memory may take: a copy of it, up to a page, and the answer."""
    if view == run_service_pb2.RUN_VIEW_RESULT:
        return 2 * len(live.run.output.data) if live.run.output is not None else 0
    return 2 * min(live.held_bytes, VIEW_LIMIT_BYTES) if view == FULL else 0


class RunReader:
    """Reads runs of the caller's namespace."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        runs: RunStore,
        journal: JournalStore,
        clock: Clock,
        limits: EngineLimits,
    ) -> None:
        self._driver, self._catalogue, self._runs, self._journal = driver, catalogue, runs, journal
        self._clock, self._limits = clock, limits
        self.room, self.watch_room = ReadRoom(limits.max_read_bytes), ReadRoom(limits.max_watch_bytes)
        self._payloads = PayloadReader(journal, self.room)
        self.turns = Turns(driver.is_busy)
        self.doubt()
        self.draining = asyncio.Event()
        """Set when the replica drains: waits are answered with the run as it is, so that callers ask elsewhere."""

    def doubt(self) -> None:
        """Forgets what was read: with the lease, the database that told it may be gone, and another have other events
        under the same sequences."""
        self._looks = Looks(self._runs, self._limits.foreign_poll_seconds / 2)
        self._pages, self._joined = UpdatePages(self._journal), Joined()
        self._folded: tuple[tuple[RunKey, int, bool], Run] | None = None

    async def get(self, caller: Caller, run_id: UUID, view: int) -> tuple[run_pb2.Run, str]:
        """See GetRun."""
        message = await self._read(RunKey(caller.namespace, run_id), view)
        return message, encode_cursor(run_id, message.last_sequence)

    async def get_after(self, caller: Caller, run_id: UUID) -> tuple[run_pb2.Run, str]:
        """Shows a run to which something was done, BASIC; by its row alone where there is no room for more: who is
        refused does it again."""
        try:
            return await self.get(caller, run_id, run_service_pb2.RUN_VIEW_BASIC)
        except TooManyReads:
            message = render_row(await self._row(RunKey(caller.namespace, run_id)))
            return message, encode_cursor(run_id, message.last_sequence)

    async def list(
        self, caller: Caller, terms: Sequence[FilterTerm], before: UUID | None, limit: int, view: int
    ) -> Sequence[run_pb2.Run]:
        """See ListRuns."""
        rows = await self._runs.list_runs(caller.namespace, terms, before, limit)
        if not has_payloads(view):
            shown = [(row, render_row(row)) for row in rows]
            await fill_failures(self._journal, self.room, caller.namespace, shown)
            return [message for _, message in shown]
        messages: list[run_pb2.Run] = []
        left = PAGE_LIMIT_BYTES
        async with self.room.lend(READ_BYTES):
            for row in rows:
                if left < 0:
                    break  # The page ends before it.
                try:
                    message = await self._read_in_room(row.key, view, steps=False)
                except (RunUnreadable, RunNotFound):  # Damaged, or deleted meanwhile.
                    message = render_row(row)  # It keeps nobody from the others.
                messages.append(message)
                left -= message.ByteSize()
        return messages

    async def list_steps(
        self, caller: Caller, run_id: UUID, after: int, limit: int, view: int
    ) -> Sequence[run_pb2.RunStep]:
        """See ListRunSteps."""
        key = RunKey(caller.namespace, run_id)
        live = self._driver.runs.get(key)
        if live is not None:
            async with self.room.lend(_shown_bytes(live, view)):
                if live.settled:
                    steps = render_steps(live.run, run_id, after, limit, view, self._wait_reasons(key, live.run))
                    self._add_flights(key, steps, after)
                    return steps
        run = await self._fold(await self._row(key), view)
        if run is None:
            return ()
        steps = render_steps(run, run_id, after, limit, view, self._wait_reasons(key, run))
        if view == FULL:
            await self._payloads.fill_steps(key, steps)
        self._add_flights(key, steps, after)
        return steps

    async def list_events(
        self, caller: Caller, run_id: UUID, after_sequence: int, limit: int, view: int
    ) -> Sequence[event_pb2.RunEvent]:
        """See ListRunEvents."""
        key = RunKey(caller.namespace, run_id)
        full = view == FULL
        rows = await self._journal.read(key, after_sequence, limit, full, SMALL_READ_BYTES)
        if not rows:
            await self._row(key)
        with told_if_unreadable(key):
            if len(rows) == limit or total_bytes(rows) <= SMALL_READ_BYTES:
                return [to_message(row, full) for row in rows]
            async with self.room.lend(READ_BYTES):
                rows = await self._journal.read(key, after_sequence, limit, full, PAGE_LIMIT_BYTES)
                return [to_message(row, full) for row in rows]

    async def wait(self, caller: Caller, run_id: UUID, timeout_seconds: float, view: int) -> tuple[run_pb2.Run, str]:
        """See WaitRun."""
        message = await self.wait_for_end(RunKey(caller.namespace, run_id), timeout_seconds, view)
        return message, encode_cursor(run_id, message.last_sequence)

    async def wait_for_end(self, key: RunKey, timeout_seconds: float, view: int) -> run_pb2.Run:
        """Answers with the run once it has ended durably, or once the time is over."""
        loop = asyncio.get_running_loop()
        end_seconds = loop.time() + timeout_seconds
        while True:
            left_seconds = 0.0 if self.draining.is_set() else end_seconds - loop.time()
            live = self._driver.runs.get(key)
            if live is not None and left_seconds > 0:
                await live.left(left_seconds)
                if live.run.ended and live.settled:
                    return await self._show(live, view)
            elif live is None and (await self._looks.row(key)).state not in ENDED_RUN and left_seconds > 0:
                await asyncio.sleep(min(left_seconds, self._limits.foreign_poll_seconds))
            else:
                return await self._read(key, view)

    # --- runs that have ended

    @staticmethod
    def render_ended(live: LiveRun, view: int, steps: bool) -> run_pb2.Run:
        """Renders a run in memory whose end is durable."""
        if steps:
            return render(live.run, live.key.run_id, view, lambda _: None)
        return render_without_steps(live.run, live.key.run_id, view)

    async def read_ended(self, key: RunKey, view: int, steps: bool) -> run_pb2.Run:
        """Reads a run whose end is durable."""
        return await self._read(key, view, steps)

    async def read_row(self, key: RunKey) -> run_pb2.Run:
        """Reads what the row of a run tells: no steps, no payloads, no failure."""
        return render_row(await self._row(key))

    # --- watch

    async def watch(
        self, caller: Caller, run_id: UUID, cursor: str, view: int, batch: bool
    ) -> AsyncGenerator[run_service_pb2.WatchRunResponse | Update, None]:
        """See WatchRun. How long a stream may last is the door's business."""
        key = RunKey(caller.namespace, run_id)
        live = self._driver.runs.get(key)
        if cursor:
            sequence = decode_cursor(run_id, cursor)
            if sequence >= (await self._row(key)).next_sequence:
                raise _invalid_cursor("it lies beyond the run's last event; leave it empty to start anew")
        else:
            snapshot = await self._read(key, view)
            sequence, is_end = snapshot.last_sequence, RunState(snapshot.state) in ENDED_RUN
            async with self.watch_room.lend(snapshot.ByteSize()):
                yield run_service_pb2.WatchRunResponse(cursor=encode_cursor(run_id, sequence), snapshot=snapshot)
            del snapshot
            if is_end:
                return
        has_turn = False
        while True:
            # What is durable stays so: a run that ended is told from the memory that it had, as long as that reaches.
            live = self._driver.runs.get(key) or live
            updates = await self._updates_after(live, key, sequence, view == FULL, batch)
            if updates and not has_turn:
                await self.turns.take()
                has_turn = True
                continue  # What came meanwhile goes along.
            sent = self._joined.of(key, view == FULL, updates) if batch else updates
            room = await self.watch_room.take(sum(len(update.data) for update in sent))
            try:
                for number, update in enumerate(sent):
                    if number:
                        await self.turns.take()
                    sequence, is_end = update.sequence, update.is_last and _ends_with(live, update.sequence)
                    # Who does not read must not keep a whole run in memory that is not here any more.
                    left, live = (weakref.ref(live) if live is not None else None), None
                    yield update
                    live = left() if left is not None else None
                    if is_end or (update.is_last and await self._already_ended(key, sequence)):
                        return
            finally:
                self.watch_room.give(room)
            has_turn = not updates and await self._wait_updates(key, sequence)
            if not updates and not has_turn:
                # Its last event was told before the cursor; or its row tells of an end that its journal lacks.
                if await self._already_ended(key, sequence):
                    return
                yield self._progress(run_id, sequence)

    def _progress(self, run_id: UUID, sequence: int) -> run_service_pb2.WatchRunResponse:
        progress = run_service_pb2.Progress(time=to_timestamp(self._clock.now()))
        return run_service_pb2.WatchRunResponse(cursor=encode_cursor(run_id, sequence), progress=progress)

    async def _already_ended(self, key: RunKey, sequence: int) -> bool:
        row = await self._row(key)
        return row.state in ENDED_RUN and sequence >= row.next_sequence - 1

    async def _updates_after(
        self, live: LiveRun | None, key: RunKey, sequence: int, payloads: bool, batch: bool
    ) -> Sequence[Update]:
        with told_if_unreadable(key):
            updates = await self._updates_of(live, key, sequence, payloads, batch)
        if updates and updates[0].sequence != sequence + 1:
            raise _expired()
        return updates

    async def _updates_of(
        self, live: LiveRun | None, key: RunKey, sequence: int, payloads: bool, batch: bool
    ) -> Sequence[Update]:
        updates: Sequence[Update] | None = live.updates_after(sequence, payloads) if live is not None else None
        if updates is None or (not updates and live is not None and live.forgotten):
            updates = await self._pages.after(key, sequence, payloads, MESSAGE_BYTES if batch else HELD_BYTES)
        return updates

    async def _wait_updates(self, key: RunKey, sequence: int) -> bool:
        """Waits until there may be updates above `sequence`; False where a progress mark is due."""
        loop = asyncio.get_running_loop()
        mark_seconds = loop.time() + self._limits.watch_progress_seconds
        while (left_seconds := mark_seconds - loop.time()) > 0:
            live = self._driver.runs.get(key)
            if live is not None:
                if live.durable_sequence > sequence or await live.changed(self.turns, left_seconds):
                    return True
            else:
                # The row first: what it tells of was durable before the journal is looked at.
                row = await self._looks.row(key)
                if sequence < row.next_sequence - 1:
                    if await self._journal.read(key, sequence, 1, False):
                        return True
                    if row.state in ENDED_RUN:
                        raise _expired()
                elif row.state in ENDED_RUN:
                    return False
                await asyncio.sleep(min(left_seconds, self._limits.foreign_poll_seconds))
        return False

    # --- one run

    async def fold(self, key: RunKey) -> Run:
        """Reads a run as its journal tells it, without payloads. Errors: RunNotFound, where its journal is gone too;
        RunUnreadable."""
        run = await self._fold(await self._row(key), run_service_pb2.RUN_VIEW_BASIC)
        if run is None:
            raise RunNotFound(f"the journal of run {key.run_id} is gone", metadata={"run_id": str(key.run_id)})
        return run

    async def _row(self, key: RunKey) -> RunRow:
        return await require_row(self._runs, key)

    async def _show(self, live: LiveRun, view: int, steps: bool = True) -> run_pb2.Run:
        """Renders a run in memory, once there is room. Its events are durable."""
        size = _shown_bytes(live, view)
        if size <= SMALL_READ_BYTES:
            return self._render_live(live, view, steps)
        async with self.room.lend(size):
            if live.settled:
                return self._render_live(live, view, steps)
        return await self._read_stored(live.key, view, steps, has_room=False)

    async def _read(self, key: RunKey, view: int, steps: bool = True) -> run_pb2.Run:
        live = self._driver.runs.get(key)
        if live is not None and live.settled:
            return await self._show(live, view, steps)
        return await self._read_stored(key, view, steps, has_room=False)

    async def _read_in_room(self, key: RunKey, view: int, steps: bool) -> run_pb2.Run:
        """Reads a run where room for it is taken."""
        live = self._driver.runs.get(key)
        if live is not None and live.settled:
            return self._render_live(live, view, steps)
        return await self._read_stored(key, view, steps, has_room=True)

    async def _read_stored(self, key: RunKey, view: int, steps: bool, has_room: bool) -> run_pb2.Run:
        row = await self._row(key)
        run = await self._fold(row, view, has_room)
        if run is None:
            return render_row(row)  # Its journal is gone; what its row tells is all there is.
        message = self._render(key, run, view, steps)
        if has_payloads(view):
            await self._payloads.fill_run(key, message, has_room)
        self._add_flights(key, message.steps)
        return message

    async def _fold(self, row: RunRow, view: int, has_room: bool = False) -> Run | None:
        """Rebuilds a run, with stand-ins for its payloads where these are to be shown. What was rebuilt last is kept
        for a moment: a run of many steps is read page by page."""
        name = (row.key, row.next_sequence, has_payloads(view))
        if self._folded is not None and self._folded[0] == name:
            return self._folded[1]
        # Half of the room at most: one that had to be alone would wait as long as anything small is on its way.
        size = min(row.next_sequence * FOLDED_EVENT_BYTES, self._limits.max_read_bytes // 2)
        async with self.room.lend(0 if has_room else size):
            run = await self._read_run(row, view)
        if run is not None and len(run.steps) > MAX_STEPS:
            self._folded = kept = (name, run)
            asyncio.get_running_loop().call_later(FOLDED_SECONDS, self._forget_folded, kept)
        return run

    def _forget_folded(self, kept: tuple[object, Run]) -> None:
        if self._folded is kept:
            self._folded = None

    async def _read_run(self, row: RunRow, view: int) -> Run | None:
        with told_if_unreadable(row.key):
            return await read_run(self._journal, row, self._catalogue, stand_ins=has_payloads(view))

    def _wait_reasons(self, key: RunKey, run: Run) -> Callable[[int], Wait | None]:
        live = self._driver.runs.get(key)
        if live is None:
            return lambda index: backoff_of(run, index, self._clock) or OWNED_ELSEWHERE
        return wait_reasons(run, live, self._driver.admission, self._clock)

    def render_step(self, live: LiveRun, index: int, view: int) -> run_pb2.RunStep:
        """Renders one step of a run in memory, whose events are durable."""
        return render_steps(live.run, live.key.run_id, index, 1, view, self._wait_reasons(live.key, live.run))[0]

    def _render_live(self, live: LiveRun, view: int, steps: bool) -> run_pb2.Run:
        message = self._render(live.key, live.run, view, steps)
        self._add_flights(live.key, message.steps)
        return message

    def _render(self, key: RunKey, run: Run, view: int, steps: bool) -> run_pb2.Run:
        if steps:
            return render(run, key.run_id, view, self._wait_reasons(key, run))
        return render_without_steps(run, key.run_id, view)

    def _add_flights(self, key: RunKey, steps: Sequence[run_pb2.RunStep], after: int = 0) -> None:
        """Adds how far running steps are, and why some are not at work, of those from the index `after` on; only who
        drives a run knows it."""
        live = self._driver.runs.get(key)
        if live is None:
            return
        for index, flight in live.flights.items():
            if not after <= index < after + len(steps):
                continue
            if flight.progress is not None:
                percent, text, time = flight.progress
                progress = run_pb2.StepProgress(percent=percent, message=text, time=to_timestamp(time))
                steps[index - after].progress.CopyFrom(progress)
            wait = self._driver.resumptions.wait_of(live, index)
            if wait is not None and steps[index - after].state == run_pb2.STEP_STATE_RUNNING:
                steps[index - after].wait_reason.CopyFrom(render_wait(wait))
