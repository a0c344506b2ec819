"""Work that goes on together: it ends as one, and whoever cancels it is heard, at whatever moment that is."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.engine.together import run_together


class Failed(Exception):
    pass


async def fail(when: asyncio.Event) -> None:
    await when.wait()
    raise Failed


async def test_one_that_fails_ends_the_others() -> None:
    failing, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    failing.set()
    with pytest.raises(ExceptionGroup) as caught:
        await run_together(wait(), fail(failing))
    assert [type(each) for each in caught.value.exceptions] == [Failed]
    assert ended.is_set()


async def test_it_ends_when_all_have() -> None:
    done: list[int] = []

    async def note(number: int) -> None:
        done.append(number)

    await run_together(note(1), note(2))
    assert sorted(done) == [1, 2]


@pytest.mark.parametrize("turns_before", range(4))
@pytest.mark.parametrize("turns_after", range(4))
async def test_a_cancellation_is_heard_also_as_a_part_fails(turns_before: int, turns_after: int) -> None:
    """Whoever takes the failure must not go on."""
    failing = asyncio.Event()

    async def again_and_again() -> None:
        while True:
            try:
                await run_together(fail(failing), asyncio.sleep(3_600))
            except* Failed:
                failing.clear()

    running = asyncio.create_task(again_and_again())
    for _ in range(turns_before):
        await asyncio.sleep(0)
    failing.set()
    for _ in range(turns_after):
        await asyncio.sleep(0)
    running.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({running})
    assert running.cancelled()
