"""What a live run keeps for those who watch: the newest durable rows, bounded in number and size."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from baton.v1 import event_pb2

from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RunKey
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.codec import total_bytes
from orchestrator.engine.live import RECENT_BYTES, RECENT_ROWS, LiveRun, LiveRuns
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.ports import JournalRow
from orchestrator.engine.turns import Turns
from tests.engine.drivers import live_run

TURNS = Turns(lambda: False)


def row(sequence: int, payload_bytes: int = 0) -> JournalRow:
    payload = b"x" * payload_bytes if payload_bytes else None
    header = event_pb2.RunEvent(sequence=sequence).SerializeToString()
    return JournalRow(sequence, 15, "a", 1, sequence, header, payload, "shop.v1.Output")


def publish(live: LiveRun, rows: list[JournalRow]) -> None:
    live.publish(rows, total_bytes(rows))


async def test_the_newest_rows_are_answered_from_memory_and_older_ones_are_not() -> None:
    live = live_run()
    newest = 2 * RECENT_ROWS
    publish(live, [row(sequence) for sequence in range(1, newest + 1)])
    assert [each.sequence for each in live.updates_after(newest - 3, False) or ()] == [newest - 2, newest - 1, newest]
    assert live.updates_after(newest, False) == []
    assert live.updates_after(newest - RECENT_ROWS, False) is not None
    assert live.updates_after(newest - RECENT_ROWS - 1, False) is None


async def test_large_payloads_are_not_kept() -> None:
    live = live_run()
    publish(live, [row(1), row(2, RECENT_BYTES + 1)])
    assert live.updates_after(1, True) is None
    assert live.updates_after(2, True) == []
    publish(live, [row(3)])
    assert [each.sequence for each in live.updates_after(2, True) or ()] == [3]


async def test_everybody_who_waits_is_woken_and_who_gave_up_is_not() -> None:
    live = live_run()
    gives_up = asyncio.create_task(live.changed(TURNS, 60.0))
    waiting = [asyncio.create_task(live.changed(TURNS, 60.0)) for _ in range(3)]
    late = await live.changed(TURNS, 0.0)
    await asyncio.sleep(0)
    gives_up.cancel()
    publish(live, [row(1)])
    assert await asyncio.gather(*waiting) == [True] * 3
    assert late is False
    with pytest.raises(asyncio.CancelledError):
        await gives_up


async def test_waiting_again_waits_for_what_comes_next() -> None:
    live = live_run()
    first = asyncio.create_task(live.changed(TURNS, 60.0))
    await asyncio.sleep(0)
    publish(live, [row(1)])
    assert await first
    assert not await live.changed(TURNS, 0.0)


async def test_who_waits_for_the_end_is_not_woken_by_events() -> None:
    live = live_run()
    left = asyncio.create_task(live.left(60.0))
    changed = asyncio.create_task(live.changed(TURNS, 60.0))
    await asyncio.sleep(0)
    publish(live, [row(1)])
    assert await changed
    assert not left.done()
    live.leave()
    await left


def test_what_runs_hold_is_counted_by_namespace_and_goes_with_them() -> None:
    runs, first, second = LiveRuns(), live_run(), live_run()
    second.key = RunKey("shop", second.key.run_id)
    first.held_bytes = 100  # As it was rebuilt.
    runs.grow(first, 50)
    for live in (first, second, first):
        runs[live.key] = live
    runs.grow(second, 7)
    runs.grow(first, -30)
    assert (runs.held_bytes, runs.share("default").held_bytes, runs.share("shop").held_bytes) == (127, 120, 7)
    assert (runs.share("default").runs, runs.share("shop").runs) == (1, 1)
    again = live_run()
    again.held_bytes = 3
    runs[first.key] = again  # Rebuilt in place of the other.
    runs.grow(first, 1_000)
    assert (runs.held_bytes, runs.share("default").runs) == (10, 1)
    del runs[first.key]
    del runs[second.key]
    assert (runs.held_bytes, runs.share("default").runs, runs.share("shop").held_bytes) == (0, 0, 0)


def test_a_checkpoint_that_is_replaced_is_held_no_more() -> None:
    runs, live = LiveRuns(), live_run()
    runs[live.key] = live

    def advance(_: LiveRun, given: Any) -> None:
        live.run.steps[0].checkpoint = given.payload
        runs.grow(live, len(given.payload.data))

    liveness = Liveness(DatabaseClock(), advance, lambda *_: None, runs.grow)
    flight: Any = SimpleNamespace(step=0, attempt=1, checkpoint=None, checkpoint_time=0)
    for size in (1_000, 400, 700):
        flight.checkpoint = Payload("shop.v1.Mark", b"x" * size)
        liveness.keep_checkpoint(live, flight)
    assert runs.held_bytes == 700
