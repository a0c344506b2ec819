"""What watchers of a run are sent: each event is encoded once for all of them, and read once where memory lacks it.

Who reads many updates in one message gets all that it has missed in one, whose parts are those that others are sent.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from baton.v1.run_service_pb2 import WatchRunResponse

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import TERMINAL_EVENTS
from orchestrator.engine.codec import to_message
from orchestrator.engine.ports import JournalRow, JournalStore

PAGE_ROWS = 256
"""Events that are read from the journal at once; pages begin at multiples of it, so that all who watch share them."""

PAGES_LIMIT_BYTES = 16 << 20
"""Size of the pages that are kept."""

PAGE_SECONDS = 1.0
"""How long a page is kept: for those who are behind together. What is deleted from the journal is told no longer."""


MESSAGE_BYTES = 256 << 10
"""Size of a message above which no more updates are joined to it."""

JOINED_LIMIT = 16
"""Most joined updates that are kept, for others who are at the same place."""

_MORE_TAG = bytes((WatchRunResponse.MORE_FIELD_NUMBER << 3 | 2,))


@dataclass(frozen=True, slots=True)
class Update:
    """One event, or some that follow each other, as a serialized WatchRunResponse; the cursor and sequence of the last
    of them, and whether that is the last of a round."""

    cursor: str
    data: bytes
    sequence: int
    is_last: bool


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
    parts = [updates[0].data]
    for update in updates[1:]:
        parts += (_MORE_TAG, _varint(len(update.data)), update.data)
    last = updates[-1]
    return Update(last.cursor, b"".join(parts), last.sequence, last.is_last)


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


def _groups(updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
    first = size = 0
    for number, update in enumerate(updates):
        if number > first and size + len(update.data) > MESSAGE_BYTES:
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

    Pages that no event can be added to, but by reopening their run, are kept for a moment.
    """

    def __init__(self, journal: JournalStore) -> None:
        self._journal = journal
        self._pages: dict[tuple[RunKey, int, bool], Sequence[Update]] = {}
        self._bytes = 0

    async def after(self, key: RunKey, sequence: int, payloads: bool) -> Sequence[Update]:
        """Returns durable updates above `sequence`, not necessarily all; none where there is none."""
        first = sequence - sequence % PAGE_ROWS
        name = (key, first, payloads)
        page = self._pages.get(name)
        if page is None:
            rows = await self._journal.read(key, first, PAGE_ROWS, payloads)
            page = [encode_update(key.run_id, row, payloads) for row in rows]
            if page and (len(page) == PAGE_ROWS or page[-1].is_last):
                self._keep(name, page)
        return [update for update in page if update.sequence > sequence]

    def forget(self, key: RunKey, sequence: int) -> None:
        """Reads the events after `sequence` anew when they are asked for next: an ended run was reopened."""
        first = sequence - sequence % PAGE_ROWS
        for payloads in (False, True):
            self._drop((key, first, payloads))

    def _keep(self, name: tuple[RunKey, int, bool], page: Sequence[Update]) -> None:
        self._drop(name)
        self._bytes += _size(page)
        self._pages[name] = page
        asyncio.get_running_loop().call_later(PAGE_SECONDS, self._drop_page, name, page)
        while self._bytes > PAGES_LIMIT_BYTES:
            self._drop(next(iter(self._pages)))

    def _drop_page(self, name: tuple[RunKey, int, bool], page: Sequence[Update]) -> None:
        if self._pages.get(name) is page:
            self._drop(name)

    def _drop(self, name: tuple[RunKey, int, bool]) -> None:
        self._bytes -= _size(self._pages.pop(name, ()))


def _size(page: Sequence[Update]) -> int:
    return sum(len(update.data) + 200 for update in page)
