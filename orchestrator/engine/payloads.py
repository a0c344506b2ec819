"""Payloads of stored runs, read last: a run is folded with stand-ins for them, and only those that are shown are read.

So a look at a run costs what it shows, whatever its results have come to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from baton.v1 import run_pb2
from google.protobuf.any_pb2 import Any

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import JournalRow, JournalStore
from orchestrator.engine.room import SMALL_READ_BYTES, ReadRoom
from orchestrator.engine.view import PAGE_LIMIT_BYTES, VIEW_LIMIT_BYTES

READ_BYTES = 4 * VIEW_LIMIT_BYTES
"""What the answer to a read may take until it is on its way: as read, as a message, and encoded."""

_STAND_IN_BYTES = 8


def with_stand_in(row: JournalRow) -> JournalRow:
    """Returns a row that was read without its payload with what stands for it: its sequence."""
    return row._replace(payload=row.sequence.to_bytes(_STAND_IN_BYTES)) if row.payload_type else row


class PayloadReader:
    """Puts payloads in the place of their stand-ins, within the room for reads."""

    def __init__(self, journal: JournalStore, room: ReadRoom) -> None:
        self._journal, self._room = journal, room

    async def fill_run(self, key: RunKey, message: run_pb2.Run, has_room: bool = False) -> None:
        """Fills in a run; of its steps it keeps the first that fit VIEW_LIMIT_BYTES with it. `has_room`: the caller has
        taken room for it. Errors: TooManyReads, DatabaseUnavailable."""
        wanted = [*_payloads(message, "input", "output"), *_payloads_of(message.steps)]
        found = await self._read_small(key, wanted)
        if found is not None:
            _fill_run(message, found)
        elif has_room:
            _fill_run(message, await self._read(key, wanted, VIEW_LIMIT_BYTES))
        else:
            async with self._room.lend(READ_BYTES):
                _fill_run(message, await self._read(key, wanted, VIEW_LIMIT_BYTES))

    async def fill_steps(self, key: RunKey, steps: list[run_pb2.RunStep]) -> None:
        """Fills in steps; keeps them up to the one with which they are more than PAGE_LIMIT_BYTES. Errors: as
        fill_run."""
        wanted = list(_payloads_of(steps))
        found = await self._read_small(key, wanted)
        if found is not None:
            _fill_steps(steps, found)
            return
        async with self._room.lend(READ_BYTES):
            _fill_steps(steps, await self._read(key, wanted, PAGE_LIMIT_BYTES))

    async def _read_small(self, key: RunKey, wanted: Sequence[Any]) -> dict[int, bytes] | None:
        """Reads what is wanted where it is little; None where it is much."""
        found = await self._read(key, wanted, SMALL_READ_BYTES)
        return found if sum(map(len, found.values())) <= SMALL_READ_BYTES else None

    async def _read(self, key: RunKey, wanted: Sequence[Any], limit_bytes: int) -> dict[int, bytes]:
        if not wanted:
            return {}
        return dict(await self._journal.read_payloads(key, [_sequence(one) for one in wanted], limit_bytes))


def _payloads(message: run_pb2.Run | run_pb2.RunStep, *names: str) -> Iterator[Any]:
    for name in names:
        if message.HasField(name):  # type: ignore[arg-type]
            yield getattr(message, name)


def _payloads_of(steps: Sequence[run_pb2.RunStep]) -> Iterator[Any]:
    for step in steps:
        yield from _payloads(step, "output", "checkpoint")


def _sequence(payload: Any) -> int:
    return int.from_bytes(payload.value)


def _fill_run(message: run_pb2.Run, found: dict[int, bytes]) -> None:
    room = VIEW_LIMIT_BYTES - message.ByteSize() + sum(step.ByteSize() for step in message.steps)
    for payload in _payloads(message, "input", "output"):
        payload.value = found.get(_sequence(payload), b"")
        room -= len(payload.value)
    for number, step in enumerate(message.steps):
        if _fill(step, found):
            room -= step.ByteSize()
            if room >= 0:
                continue
        del message.steps[number:]
        return


def _fill_steps(steps: list[run_pb2.RunStep], found: dict[int, bytes]) -> None:
    room = PAGE_LIMIT_BYTES
    for number, step in enumerate(steps):
        if room < 0 or not _fill(step, found):
            del steps[number:]
            return
        room -= step.ByteSize()


def _fill(step: run_pb2.RunStep, found: dict[int, bytes]) -> bool:
    """Puts the payloads of a step in; False where they were not read."""
    for payload in _payloads(step, "output", "checkpoint"):
        data = found.get(_sequence(payload))
        if data is None:
            return False
        payload.value = data
    return True
