"""What a live run keeps for those who watch: the newest durable rows, bounded in number and size."""

from __future__ import annotations

from orchestrator.engine.live import RECENT_BYTES, RECENT_ROWS
from orchestrator.engine.ports import JournalRow
from tests.engine.test_drive import live_run


def row(sequence: int, payload_bytes: int = 0) -> JournalRow:
    payload = b"x" * payload_bytes if payload_bytes else None
    return JournalRow(sequence, 15, "a", 1, sequence, b"header", payload, "shop.v1.Output")


async def test_the_newest_rows_are_answered_from_memory_and_older_ones_are_not() -> None:
    live = live_run()
    newest = 2 * RECENT_ROWS
    live.publish([row(sequence) for sequence in range(1, newest + 1)])
    assert [each.sequence for each in live.rows_after(newest - 3) or ()] == [newest - 2, newest - 1, newest]
    assert live.rows_after(newest) == []
    assert live.rows_after(newest - RECENT_ROWS) is not None
    assert live.rows_after(newest - RECENT_ROWS - 1) is None


async def test_large_payloads_are_not_kept() -> None:
    live = live_run()
    live.publish([row(1), row(2, RECENT_BYTES + 1)])
    assert live.rows_after(1) is None
    assert live.rows_after(2) == []
    live.publish([row(3)])
    assert [each.sequence for each in live.rows_after(2) or ()] == [3]
