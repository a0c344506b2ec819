"""Reads runs: get, list, watch, wait and the events. What a caller sees is durable, whoever drives the run."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Sequence
from uuid import UUID

from baton.v1 import event_pb2, run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import CursorExpired, InvalidCursor, RunNotFound
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.admission import Admission
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.codec import to_message
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.ports import Clock, FilterTerm, JournalStore, RunRow, RunStore
from orchestrator.engine.rebuild import read_run
from orchestrator.engine.turns import Turns
from orchestrator.engine.updates import Joined, Update, UpdatePages, encode_cursor
from orchestrator.engine.view import (
    MAX_STEPS,
    drop_steps,
    render,
    render_row,
    render_steps,
    render_wait,
    render_without_steps,
)
from orchestrator.engine.waits import Wait

FULL = run_service_pb2.RUN_VIEW_FULL

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
    raise InvalidCursor("cursor: not one that WatchRun gave for this run; leave it empty to start with a snapshot")


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
        self._pages, self._joined, self._turns = UpdatePages(journal), Joined(), Turns(driver.is_busy)
        self._folded: tuple[tuple[RunKey, int, bool], Run] | None = None
        self.draining = asyncio.Event()
        """Set when the replica drains: waits are answered with the run as it is, so that callers ask elsewhere."""

    async def get(self, caller: Caller, run_id: UUID, view: int) -> tuple[run_pb2.Run, str]:
        """See GetRun."""
        message = await self._read(RunKey(caller.namespace, run_id), view)
        return message, encode_cursor(run_id, message.last_sequence)

    async def list(
        self, caller: Caller, terms: Sequence[FilterTerm], before: UUID | None, limit: int, view: int
    ) -> Sequence[run_pb2.Run]:
        """See ListRuns."""
        rows = await self._runs.list_runs(caller.namespace, terms, before, limit)
        if view != FULL:
            return [render_row(row) for row in rows]
        messages = []
        for row in rows:
            message = await self._read(row.key, FULL)
            messages.append(drop_steps(message))
        return messages

    async def list_steps(
        self, caller: Caller, run_id: UUID, after: int, limit: int, view: int
    ) -> Sequence[run_pb2.RunStep]:
        """See ListRunSteps."""
        key = RunKey(caller.namespace, run_id)
        live = self._driver.runs.get(key)
        run = live.run if live is not None and live.settled else await self._fold(await self._row(key), view)
        if run is None:
            return ()
        steps = render_steps(run, run_id, after, limit, view, self._wait_reasons(key, run))
        self._add_flights(key, steps, after)
        return steps

    async def list_events(
        self, caller: Caller, run_id: UUID, after_sequence: int, limit: int, view: int
    ) -> Sequence[event_pb2.RunEvent]:
        """See ListRunEvents."""
        key = RunKey(caller.namespace, run_id)
        rows = await self._journal.read(key, after_sequence, limit, view == FULL)
        if not rows:
            await self._row(key)
        return [to_message(row, view == FULL) for row in rows]

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
                    return self._render_live(live, view)
            elif live is None and (await self._row(key)).state not in ENDED_RUN and left_seconds > 0:
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
        message = await self._read(key, view)
        return message if steps else drop_steps(message)

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
                raise InvalidCursor("cursor: it lies beyond the run's last event; leave it empty to start anew")
        else:
            snapshot = await self._read(key, view)
            sequence = snapshot.last_sequence
            yield run_service_pb2.WatchRunResponse(cursor=encode_cursor(run_id, sequence), snapshot=snapshot)
            if RunState(snapshot.state) in ENDED_RUN:
                return
        has_turn = False
        while True:
            # What is durable stays so: a run that ended is told from the memory that it had, as long as that reaches.
            live = self._driver.runs.get(key) or live
            updates = await self._updates_after(live, key, sequence, view == FULL)
            if updates and not has_turn:
                await self._turns.take()
                has_turn = True
                continue  # What came meanwhile goes along.
            sent = self._joined.of(key, view == FULL, updates) if batch else updates
            for number, update in enumerate(sent):
                if number:
                    await self._turns.take()
                sequence = update.sequence
                yield update
                if update.is_last and await self._ends_with(live, key, sequence):
                    return
            has_turn = not updates and await self._wait_updates(key, sequence)
            if not updates and not has_turn:
                # Its last event was told before the cursor; or its row tells of an end that its journal lacks.
                if await self._already_ended(key, sequence):
                    return
                yield self._progress(run_id, sequence)

    def _progress(self, run_id: UUID, sequence: int) -> run_service_pb2.WatchRunResponse:
        progress = run_service_pb2.Progress(time=to_timestamp(self._clock.now()))
        return run_service_pb2.WatchRunResponse(cursor=encode_cursor(run_id, sequence), progress=progress)

    async def _ends_with(self, live: LiveRun | None, key: RunKey, sequence: int) -> bool:
        """Tells whether the run's last event is the end of a round that was told: it has not been reopened since."""
        if live is not None and live.run.ended and live.run.sequence == sequence:
            return True
        return await self._already_ended(key, sequence)

    async def _already_ended(self, key: RunKey, sequence: int) -> bool:
        row = await self._row(key)
        return row.state in ENDED_RUN and sequence >= row.next_sequence - 1

    async def _updates_after(
        self, live: LiveRun | None, key: RunKey, sequence: int, payloads: bool
    ) -> Sequence[Update]:
        updates: Sequence[Update] | None = live.updates_after(sequence, payloads) if live is not None else None
        if updates is None or (not updates and live is not None and live.forgotten):
            updates = await self._pages.after(key, sequence, payloads)
            if not updates and live is not None and live.durable_sequence > sequence:
                # A page was kept of a round that had ended, and this replica has reopened the run since.
                self._pages.forget(key, sequence)
                updates = await self._pages.after(key, sequence, payloads)
        if updates and updates[0].sequence != sequence + 1:
            raise _expired()
        return updates

    async def _wait_updates(self, key: RunKey, sequence: int) -> bool:
        """Waits until there may be updates above `sequence`; False where a progress mark is due."""
        loop = asyncio.get_running_loop()
        mark_seconds = loop.time() + self._limits.watch_progress_seconds
        while (left_seconds := mark_seconds - loop.time()) > 0:
            live = self._driver.runs.get(key)
            if live is not None:
                if live.durable_sequence > sequence or await live.changed(self._turns, left_seconds):
                    return True
            else:
                # The row first: what it tells of an ended run was durable before the journal is looked at.
                row = await self._row(key)
                if await self._journal.read(key, sequence, 1, False):
                    self._pages.forget(key, sequence)
                    return True
                if row.state in ENDED_RUN:
                    if sequence < row.next_sequence - 1:
                        raise _expired()
                    return False
                await asyncio.sleep(min(left_seconds, self._limits.foreign_poll_seconds))
        return False

    # --- one run

    async def fold(self, key: RunKey) -> Run:
        """Reads a run as its journal tells it, without payloads. Errors: RunNotFound, where its journal is gone too."""
        run = await self._fold(await self._row(key), run_service_pb2.RUN_VIEW_BASIC)
        if run is None:
            raise RunNotFound(f"the journal of run {key.run_id} is gone", metadata={"run_id": str(key.run_id)})
        return run

    async def _row(self, key: RunKey) -> RunRow:
        row = await self._runs.get_run(key)
        if row is None:
            raise RunNotFound(f"no run has the id {key.run_id}", metadata={"run_id": str(key.run_id)})
        return row

    async def _read(self, key: RunKey, view: int) -> run_pb2.Run:
        live = self._driver.runs.get(key)
        if live is not None and live.settled:
            return self._render_live(live, view)
        row = await self._row(key)
        run = await self._fold(row, view)
        if run is None:
            return render_row(row)  # Its journal is gone; what its row tells is all there is.
        message = render(run, key.run_id, view, self._wait_reasons(key, run))
        self._add_flights(key, message.steps)
        return message

    async def _fold(self, row: RunRow, view: int) -> Run | None:
        """Rebuilds a run. What was rebuilt last is kept for a moment: a run of many steps is read page by page."""
        name = (row.key, row.next_sequence, view == FULL)
        if self._folded is not None and self._folded[0] == name:
            return self._folded[1]
        run = await self._read_run(row, view)
        if run is not None and len(run.steps) > MAX_STEPS:
            self._folded = kept = (name, run)
            asyncio.get_running_loop().call_later(FOLDED_SECONDS, self._forget_folded, kept)
        return run

    def _forget_folded(self, kept: tuple[object, Run]) -> None:
        if self._folded is kept:
            self._folded = None

    async def _read_run(self, row: RunRow, view: int) -> Run | None:
        return await read_run(self._journal, row, self._catalogue, view == FULL)

    def _wait_reasons(self, key: RunKey, run: Run) -> Callable[[int], Wait | None]:
        live = self._driver.runs.get(key)
        if live is None:
            return lambda index: backoff_of(run, index, self._clock) or OWNED_ELSEWHERE
        return wait_reasons(run, live, self._driver.admission, self._clock)

    def render_step(self, live: LiveRun, index: int, view: int) -> run_pb2.RunStep:
        """Renders one step of a run in memory, whose events are durable."""
        return render_steps(live.run, live.key.run_id, index, 1, view, self._wait_reasons(live.key, live.run))[0]

    def _render_live(self, live: LiveRun, view: int) -> run_pb2.Run:
        message = render(live.run, live.key.run_id, view, self._wait_reasons(live.key, live.run))
        self._add_flights(live.key, message.steps)
        return message

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
