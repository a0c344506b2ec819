"""What watchers of a run are sent: each event is encoded once for all of them, and read once where memory lacks it.

Who reads many updates in one message gets all that it has missed in one, whose parts are those that others are sent.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID
from weakref import WeakValueDictionary

from baton.v1.run_service_pb2 import WatchRunResponse

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import TERMINAL_EVENTS
from orchestrator.engine.codec import to_message
from orchestrator.engine.ports import JournalRow, JournalStore

PAGE_ROWS = 256
PAGE_BYTES = 1 << 20
"""Events that are read from the journal at once; pages end at multiples of the one, or with the other."""

PAGES_LIMIT_BYTES = 16 << 20
"""Size of the pages that are kept."""

PAGE_SECONDS = 1.0
"""How long a page is kept: for those who are behind together. What is deleted from the journal is told no longer."""

READS_AT_ONCE = 4
"""Pages that are read at a time, of the eight statements that a replica reads by."""

MESSAGE_BYTES = 256 << 10
"""Size of a message above which no more updates are joined to it."""

HELD_BYTES = 64 << 10
"""Size of the updates, more than one, that a watcher of single updates holds."""

JOINED_LIMIT = 16
"""Most joined updates that are kept, for others who are at the same place."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message of a stream that is serialized already, and its cursor."""

    cursor: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Update(Encoded):
    """One event, or some that follow each other, as a serialized WatchRunResponse; the cursor and sequence of the last
    of them, and whether that is the last of a round."""

    sequence: int
    is_last: bool


Page = Sequence[Update]


def encode_cursor(run_id: UUID, sequence: int) -> str:
    """Makes the cursor that says: everything of this run up to `sequence` was sent."""
    return base64.urlsafe_b64encode(f"1.{run_id.hex[-12:]}.{sequence}".encode()).decode().rstrip("=")


def encode_update(run_id: UUID, row: JournalRow, payloads: bool) -> Update:
    """Makes the update that tells of a row."""
    cursor = encode_cursor(run_id, row.sequence)
    message = WatchRunResponse(cursor=cursor, event=to_message(row, payloads))
    return Update(cursor, message.SerializeToString(), row.sequence, row.kind in TERMINAL_EVENTS)


def join(updates: Sequence[Update]) -> Update:
    """Makes one update of some that follow each other: the first, which has the others as its `more`."""
    parts = [
        updates[0].data,
        *(encode_field(WatchRunResponse.MORE_FIELD_NUMBER, update.data) for update in updates[1:]),
    ]
    last = updates[-1]
    return Update(last.cursor, b"".join(parts), last.sequence, last.is_last)


def encode_field(number: int, data: bytes) -> bytes:
    """Serializes a field of a message that holds a text or a message, where its number is below 16."""
    return b"".join((bytes((number << 3 | 2,)), _varint(len(data)), data))


class Joined:
    """Updates in as few messages as they fit, joined once for all who are at the same place."""

    def __init__(self) -> None:
        self._kept: dict[tuple[RunKey, bool, int, int], Sequence[Update]] = {}

    def of(self, key: RunKey, payloads: bool, updates: Sequence[Update]) -> Sequence[Update]:
        """Returns updates of a run, which follow each other, as what is sent."""
        if len(updates) < 2:
            return updates
        name = (key, payloads, updates[0].sequence, updates[-1].sequence)
        found = self._kept.get(name)
        if found is None:
            found = self._kept[name] = [join(group) for group in _groups(updates)]
            if len(self._kept) > JOINED_LIMIT:
                del self._kept[next(iter(self._kept))]
        return found


def _groups(updates: Sequence[Update], limit_bytes: int = MESSAGE_BYTES) -> Iterator[Sequence[Update]]:
    first = size = 0
    for number, update in enumerate(updates):
        if number > first and size + len(update.data) > limit_bytes:
            yield updates[first:number]
            first, size = number, 0
        size += len(update.data)
    yield updates[first:]


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


class UpdatePages:
    """Updates from the journal, for watchers who are further behind than memory reaches.

    Pages are kept for a moment. They share their ends: who begins inside a page that is kept goes on with the rest of
    it. A few are read at a time, so that watchers who come back together leave the database to others.
    """

    def __init__(self, journal: JournalStore) -> None:
        self._journal = journal
        self._pages: dict[tuple[RunKey, bool], list[Page]] = {}
        self._kept: deque[tuple[tuple[RunKey, bool], Page]] = deque()
        self._bytes = 0
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._runs: WeakValueDictionary[tuple[RunKey, bool], asyncio.Lock] = WeakValueDictionary()

    async def after(self, key: RunKey, sequence: int, payloads: bool, limit_bytes: int) -> Page:
        """Returns durable updates above `sequence`, at most `limit_bytes` but for one; none where there is none.

        A watcher holds them while it is slow, and nothing else of a page.
        """
        name = (key, payloads)
        page = self._find(name, sequence)
        if page is None:
            # One at a time for a run, so that the next finds what this one reads.
            async with self._runs.setdefault(name, asyncio.Lock()), self._turns:
                page = self._find(name, sequence) or await self._read(name, sequence)
        first = max(sequence + 1 - page[0].sequence, 0) if page else 0
        return next(_groups(page[first:], limit_bytes), ())

    def _find(self, name: tuple[RunKey, bool], sequence: int) -> Page | None:
        for page in self._pages.get(name, ()):
            if page[0].sequence <= sequence + 1 <= page[-1].sequence:
                return page
        return None

    async def _read(self, name: tuple[RunKey, bool], sequence: int) -> Page:
        key, payloads = name
        # Up to where the next that is kept begins: no event is kept twice.
        nexts = (page[0].sequence - 1 for page in self._pages.get(name, ()) if page[0].sequence > sequence + 1)
        limit = min((PAGE_ROWS - sequence % PAGE_ROWS, *(last - sequence for last in nexts)))
        rows = await self._journal.read(key, sequence, limit, payloads, PAGE_BYTES)
        page = [encode_update(key.run_id, row, payloads) for row in rows]
        if page:
            self._pages.setdefault(name, []).append(page)
            self._kept.append((name, page))
            self._bytes += _size(page)
            asyncio.get_running_loop().call_later(PAGE_SECONDS, self._drop, page)
            while self._bytes > PAGES_LIMIT_BYTES:
                self._drop_oldest()
        return page

    def _drop(self, page: Page) -> None:
        """Drops a page whose time is over, where it is kept: those before it were kept for longer."""
        while any(kept is page for _, kept in self._kept):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        name, page = self._kept.popleft()
        self._bytes -= _size(page)
        pages = self._pages[name]
        pages.remove(page)
        if not pages:
            del self._pages[name]


def _size(page: Page) -> int:
    return sum(len(update.data) + 200 for update in page)
