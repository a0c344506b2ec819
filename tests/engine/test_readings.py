"""Readings of catalogues that have changed."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine import readings
from orchestrator.engine.readings import Readings


class Store:
    """Something to read, which answers when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.answers: asyncio.Queue[Exception | None] = asyncio.Queue()
        self.moved = asyncio.Condition()

    async def read(self, namespace: str) -> None:
        """Reads a namespace."""
        async with self.moved:
            self.begun.append(namespace)
            self.moved.notify_all()
        answer = await self.answers.get()
        if answer is not None:
            raise answer

    async def wait_begun(self, count: int) -> None:
        """Waits for the beginning of a number of readings."""
        async with asyncio.timeout(10), self.moved:
            await self.moved.wait_for(lambda: len(self.begun) >= count)


async def test_a_namespace_waits_once_and_is_read_again_where_it_changed_while_it_was_read() -> None:
    store = Store()
    asked = Readings(store.read)
    for _ in range(1_000):
        asked.ask("acme")
        asked.ask("umbrella")
    running = asyncio.create_task(asked.run())
    await store.wait_begun(1)
    for _ in range(1_000):
        asked.ask("acme")
    for _ in range(3):
        store.answers.put_nowait(None)
    await store.wait_begun(3)
    assert store.begun == ["acme", "umbrella", "acme"]
    asked.ask("last")
    await store.wait_begun(4)
    running.cancel()
    assert store.begun[3:] == ["last"]


async def test_a_reading_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "RETRY_SECONDS", 0.0)
    store = Store()
    asked = Readings(store.read)
    asked.ask("acme")
    running = asyncio.create_task(asked.run())
    store.answers.put_nowait(DatabaseUnavailable("it is away", retry_delay_seconds=0.1))
    await store.wait_begun(2)
    running.cancel()
    assert store.begun == ["acme", "acme"]


async def test_what_is_asked_for_again_after_a_reading_was_cut_off_is_read() -> None:
    store = Store()
    asked = Readings(store.read)
    asked.ask("acme")
    running = asyncio.create_task(asked.run())
    await store.wait_begun(1)
    running.cancel()
    await asyncio.wait({running})
    asked.ask("acme")
    running = asyncio.create_task(asked.run())
    await store.wait_begun(2)
    running.cancel()
    assert store.begun == ["acme", "acme"]
