"""Ends: tells watchers of many runs which of them have ended, whichever replica drives them.

What this replica ends is told from memory, once it is durable; what others end is read from the database, from one
position to the next (`RunStore.list_ended`). Watchers are found by the mark of their filter, so that an end costs what
it concerns, and nothing where nobody watches.

A cursor is a position. It is given to a watcher only when every end before it was put on its way to it, which is to say
when no commit is under way here that the position may hold already.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from baton.v1 import run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import CursorExpired, DatabaseUnavailable, RunNotFound, RunUnreadable
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.journal import GroupCommit
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.matching import Mark, RunFacts, facts_of_live, facts_of_row, mark_of, meets
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.ports import Clock, FilterTerm, RunRow, RunStore
from orchestrator.engine.updates import Encoded, encode_field
from orchestrator.engine.view import has_payloads, render_row

_LOGGER = logging.getLogger(__name__)

Message = run_service_pb2.WatchRunsResponse
Form = tuple[int, bool]
"""How much of a run a watcher is told: its view, and whether with steps."""

PAGE_ROWS = 500
MESSAGE_RUNS = 500
MESSAGE_BYTES = 1 << 20
"""Most runs in one message, and the size above which no more are added."""

PENDING_RUNS = 10_000
PENDING_BYTES = 16 << 20
"""Most runs, and bytes of them, that wait for one watcher; with more, it is asked to watch again from its cursor."""

ROW_BYTES = 1_000
UNREAD_BYTES = 512 << 10
"""What a row takes, and what room is taken for a run that is yet to be read."""

READS_AT_ONCE = 4
POSITION_SECONDS = 1.0
"""How old the position that SubmitRuns answers with may be."""


class Watcher:
    """One watch: what waits for its caller to read it. An end is a run as it stands in a message, shared by all who
    watch in the same form, or a row that is yet to be read."""

    def __init__(self, namespace: str, terms: Sequence[FilterTerm], form: Form) -> None:
        self.namespace, self.terms, self.form = namespace, terms, form
        self.mark = mark_of(terms)
        self.cursor = ""
        self.caught_up = False
        """Whether every end before now was told or waits here: only then positions move the cursor."""
        self.reconnect = False
        self._pending: deque[bytes | RunRow | str] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()

    def tell(self, end: bytes | RunRow) -> None:
        """Adds one end; where too many wait, drops all of them and asks the caller to watch again."""
        if self.reconnect:
            return
        self._pending.append(end)
        self._bytes += _size(end)
        if len(self._pending) > PENDING_RUNS or self._bytes > PENDING_BYTES:
            self.leave()
        self._changed.set()

    def advance(self, position: str) -> None:
        """Moves the cursor, once what waits now has been taken."""
        if self.reconnect or not self.caught_up:
            return
        if not self._pending:
            self.cursor = position
        elif isinstance(self._pending[-1], str):
            self._pending[-1] = position
        else:
            self._pending.append(position)

    def leave(self) -> None:
        """Asks the caller to watch again from the cursor it has."""
        self.reconnect = True
        self._pending.clear()
        self._changed.set()

    async def changed(self, timeout_seconds: float) -> bool:
        """Waits until something was told; False where the time is over."""
        if not self._changed.is_set():
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    def take(self) -> list[bytes | RunRow]:
        """Takes what fits one message, and moves the cursor past positions in between."""
        taken: list[bytes | RunRow] = []
        size = 0
        while self._pending and (isinstance(self._pending[0], str) or len(taken) < MESSAGE_RUNS):
            end = self._pending.popleft()
            if isinstance(end, str):
                self.cursor = end
                continue
            taken.append(end)
            size += _size(end)
            if size >= MESSAGE_BYTES:
                break
        self._bytes -= size
        if not self._pending:
            self._changed.clear()
        return taken


@dataclass(slots=True)
class Space:
    """The watchers of one namespace. `position` is how far the ends of other replicas were told; `unsettled` are
    positions with the number of the commit that must be over before they are cursors."""

    position: str = ""
    unsettled: deque[tuple[int, str]] = field(default_factory=deque)
    by_mark: dict[Mark | None, dict[Watcher, None]] = field(default_factory=dict)

    def add(self, watcher: Watcher) -> None:
        """Takes a watcher in."""
        self.by_mark.setdefault(watcher.mark, {})[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        """Lets a watcher go."""
        group = self.by_mark[watcher.mark]
        del group[watcher]
        if not group:
            del self.by_mark[watcher.mark]

    def watchers(self) -> Iterator[Watcher]:
        """Yields every watcher."""
        for group in self.by_mark.values():
            yield from group

    def concerned(self, facts: RunFacts) -> list[Watcher]:
        """Returns the watchers of a run."""
        groups = [self.by_mark[mark] for mark in (None, *facts.marks()) if mark in self.by_mark]
        return [watcher for group in groups for watcher in group if meets(facts, watcher.terms)]


class Ends:
    """The watches of one replica."""

    def __init__(
        self, reader: RunReader, runs: RunStore, journal: GroupCommit, clock: Clock, limits: EngineLimits
    ) -> None:
        self._reader, self._runs, self._journal = reader, runs, journal
        self._clock, self._limits = clock, limits
        self._turns, self._room = reader.turns, reader.watch_room
        self._spaces: dict[str, Space] = {}
        self._watched = asyncio.Event()
        self._known: tuple[float, str] = (0.0, "")

    # --- what ended

    def ended(self, live: LiveRun) -> None:
        """Tells of a run whose end this replica has made durable."""
        space = self._spaces.get(live.key.namespace)
        if space is None:
            return
        try:
            encoded: dict[Form, bytes] = {}
            for watcher in space.concerned(facts_of_live(live)):
                run = encoded.get(watcher.form)
                if run is None:
                    run = encoded[watcher.form] = _encode_run(self._reader.render_ended(live, *watcher.form))
                watcher.tell(run)
        except Exception:  # whatever it is, the journal goes on, and watchers read this end from the database
            _LOGGER.exception("run %s: its end could not be told", live.key.run_id)
            for watcher in space.watchers():
                watcher.leave()

    async def run(self, replica_id: UUID) -> None:
        """Looks for the ends that other replicas write, for ever, while somebody watches."""
        while True:
            await self._watched.wait()
            await asyncio.sleep(self._limits.foreign_poll_seconds)
            for namespace, space in list(self._spaces.items()):
                try:
                    await self._follow(namespace, space, replica_id)
                except DatabaseUnavailable:
                    break
                except CursorExpired:
                    for watcher in space.watchers():
                        watcher.leave()

    def lose(self) -> None:
        """Ends every watch: the lease is lost, and with it the answer to a commit that may have gone through."""
        for space in self._spaces.values():
            for watcher in space.watchers():
                watcher.leave()
        self._spaces.clear()
        self._watched.clear()
        self._known = (0.0, "")

    async def _follow(self, namespace: str, space: Space, replica_id: UUID) -> None:
        more = bool(space.position)
        while more:
            page = await self._runs.list_ended(namespace, (), space.position, PAGE_ROWS, replica_id)
            space.position, more = page.position, page.more
            for row in page.rows:
                for watcher in space.concerned(facts_of_row(row)):
                    watcher.tell(row)
        if not space.position:
            return
        self._known = (asyncio.get_running_loop().time(), space.position)
        if len(space.unsettled) > 1:
            space.unsettled.pop()
        space.unsettled.append((self._journal.batches_begun, space.position))
        while space.unsettled and space.unsettled[0][0] <= self._journal.batches_ended:
            _, position = space.unsettled.popleft()
            for watcher in space.watchers():
                watcher.advance(position)

    # --- who watches

    async def position(self) -> str:
        """Returns a position that is not after now, for the cursor of what is submitted now."""
        now = asyncio.get_running_loop().time()
        told_time, position = self._known
        if not position or now - told_time > POSITION_SECONDS:
            position = await self._runs.end_position()
            self._known = (now, position)
        return position

    async def watch(
        self, caller: Caller, terms: Sequence[FilterTerm], cursor: str, view: int, steps: bool
    ) -> AsyncGenerator[Message | Encoded, None]:
        """See WatchRuns. How long a stream may last is the door's business."""
        watcher = Watcher(caller.namespace, terms, (view, steps))
        watcher.cursor = cursor or await self._runs.end_position()
        if cursor:  # Before this watcher takes part, so that nothing piles up for it meanwhile.
            async for message in self._catch_up(watcher):
                yield message
        with self._taking_part(watcher) as space:
            if not space.position:
                position = await self._runs.end_position()
                space.position = space.position or position
            # What ended between the last look and its taking part; some of it may be told again.
            async for message in self._catch_up(watcher):
                yield message
            watcher.caught_up = True
            yield self._progress(watcher)
            while True:
                if not await watcher.changed(self._limits.watch_progress_seconds):
                    yield self._progress(watcher)
                    continue
                if watcher.reconnect:
                    yield self._progress(watcher)
                    return
                await self._turns.take()  # What ends meanwhile goes along.
                if watcher.reconnect:
                    continue
                before = watcher.cursor
                async for message in self._messages(watcher, watcher.take(), before, watcher.cursor):
                    yield message

    @contextmanager
    def _taking_part(self, watcher: Watcher) -> Iterator[Space]:
        space = self._spaces.setdefault(watcher.namespace, Space())
        space.add(watcher)
        self._watched.set()
        try:
            yield space
        finally:
            space.remove(watcher)
            if not space.by_mark and self._spaces.get(watcher.namespace) is space:
                del self._spaces[watcher.namespace]
                if not self._spaces:
                    self._watched.clear()

    async def _catch_up(self, watcher: Watcher) -> AsyncGenerator[Message | Encoded, None]:
        """Tells what ended after the cursor, up to now, page by page."""
        more = True
        while more:
            before = watcher.cursor
            page = await self._runs.list_ended(watcher.namespace, watcher.terms, before, PAGE_ROWS, None)
            async for message in self._messages(watcher, page.rows, before, page.position):
                yield message
            watcher.cursor, more = page.position, page.more

    async def _messages(
        self, watcher: Watcher, ends: Sequence[bytes | RunRow], before: str, after: str
    ) -> AsyncGenerator[Message | Encoded, None]:
        """Packs ends into messages; only the last of them has come as far as `after`. What is yet to be read is read a
        few at a time, when there is room in a message."""
        message, size, held = list[bytes](), 0, 0
        try:
            for first in range(0, len(ends), READS_AT_ONCE):
                some = ends[first : first + READS_AT_ONCE]
                wanted = sum(UNREAD_BYTES if _is_read(watcher, end) else _size(end) for end in some)
                if message and not self._room.has(wanted):
                    # It does not wait while it holds what others wait for, as they would for each other.
                    yield _encode(message, before)
                    message, size = [], 0
                    held = self._room.change(held, 0)
                held += await self._room.take(wanted)
                runs = await self._read_some(watcher, some)
                held = self._room.change(held, size + sum(map(len, runs)))
                for run in runs:
                    if size >= MESSAGE_BYTES:
                        yield _encode(message, before)
                        message, size = [], 0
                    message.append(run)
                    size += len(run)
                del runs
                held = self._room.change(held, size)
            if message:
                yield _encode(message, after)
        finally:
            self._room.give(held)

    async def _read_some(self, watcher: Watcher, ends: Sequence[bytes | RunRow]) -> Sequence[bytes]:
        """Encodes what is yet to be read."""
        rows = [end for end in ends if isinstance(end, RunRow)]
        if not rows:
            return [end for end in ends if isinstance(end, bytes)]
        read_runs = iter(await asyncio.gather(*(self._read_row(watcher, row) for row in rows)))
        return [_encode_run(next(read_runs)) if isinstance(end, RunRow) else end for end in ends]

    async def _read_row(self, watcher: Watcher, row: RunRow) -> run_pb2.Run:
        """Renders a run that has ended; what its row tells where it cannot be read, was deleted, or was reopened."""
        if not _is_read(watcher, row):
            return render_row(row)
        try:
            run = await self._reader.read_ended(RunKey(watcher.namespace, row.key.run_id), *watcher.form)
        except (RunUnreadable, RunNotFound):
            return render_row(row)  # It keeps nobody from the others.
        return run if run.round == row.round and RunState(run.state) in ENDED_RUN else render_row(row)

    def _progress(self, watcher: Watcher) -> Message:
        progress = run_service_pb2.Progress(time=to_timestamp(self._clock.now()), reconnect=watcher.reconnect)
        return Message(cursor=watcher.cursor, progress=progress)


def _size(end: bytes | RunRow) -> int:
    return len(end) if isinstance(end, bytes) else ROW_BYTES


def _encode_run(run: run_pb2.Run) -> bytes:
    return encode_field(Message.RUNS_FIELD_NUMBER, run.SerializeToString())


def _encode(runs: Sequence[bytes], cursor: str) -> Encoded:
    return Encoded(cursor, encode_field(Message.CURSOR_FIELD_NUMBER, cursor.encode()) + b"".join(runs))


def _is_read(watcher: Watcher, end: bytes | RunRow) -> bool:
    """Tells whether more is asked for than the row of a run tells."""
    view, steps = watcher.form
    return isinstance(end, RunRow) and (steps or has_payloads(view) or end.state != RunState.SUCCEEDED)
