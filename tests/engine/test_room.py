"""Room for reads: what finds none waits in turn, not for ever, and takes none with it when it leaves."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.errors import TooManyReads
from orchestrator.engine import room as room_module
from orchestrator.engine.room import SMALL_READ_BYTES, ReadRoom

LIMIT_BYTES = 10 * SMALL_READ_BYTES
HALF = LIMIT_BYTES // 2


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_reads_beyond_the_room_wait_in_turn_and_small_ones_do_not() -> None:
    room, order = ReadRoom(LIMIT_BYTES), list[int]()

    async def read(number: int, size: int) -> None:
        async with room.lend(size):
            order.append(number)

    async with room.lend(LIMIT_BYTES):
        waiting = [asyncio.create_task(read(number, HALF)) for number in range(3)]
        await settle()
        await read(9, SMALL_READ_BYTES)
        assert order == [9]
    await asyncio.gather(*waiting)
    assert order == [9, 0, 1, 2]
    assert room.taken_bytes == 0


async def test_one_that_is_alone_is_taken_whatever_its_size_and_what_is_held_counts() -> None:
    room = ReadRoom(LIMIT_BYTES)
    assert await room.take(3 * LIMIT_BYTES) == 3 * LIMIT_BYTES
    room.give(3 * LIMIT_BYTES)
    room.hold(LIMIT_BYTES)
    waiting = asyncio.create_task(room.take(HALF))
    await settle()
    assert not waiting.done()
    room.give(LIMIT_BYTES)
    assert await waiting == HALF


async def test_who_waits_too_long_is_refused_and_those_behind_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "WAIT_SECONDS", 0.05)
    room = ReadRoom(LIMIT_BYTES)
    await room.take(HALF)
    large = asyncio.create_task(room.take(LIMIT_BYTES))
    await settle()
    monkeypatch.setattr(room_module, "WAIT_SECONDS", 60.0)
    behind = asyncio.create_task(room.take(HALF))
    with pytest.raises(TooManyReads):
        await large
    assert await behind == HALF
    assert room.taken_bytes == LIMIT_BYTES


async def test_who_leaves_takes_no_room_with_it() -> None:
    room = ReadRoom(LIMIT_BYTES)
    await room.take(LIMIT_BYTES)
    leaving, granted = (asyncio.create_task(room.take(HALF)) for _ in range(2))
    await settle()
    leaving.cancel()
    room.give(LIMIT_BYTES)
    granted.cancel()  # In the moment in which it has its turn.
    await asyncio.gather(leaving, granted, return_exceptions=True)
    assert room.taken_bytes == 0
    assert await room.take(LIMIT_BYTES) == LIMIT_BYTES
