"""A journal whose store is slow, fails, or does not answer: what it says of that, and what it counts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import Payload, StepSucceeded
from orchestrator.engine import journal
from orchestrator.engine.drive import Driver
from orchestrator.engine.live import LiveRun, Staged
from orchestrator.engine.ports import RunEntry, WriteResult, WriteState
from tests.engine.drivers import driver, live_run

Write = Callable[[object, Sequence[RunEntry]], Awaitable[list[WriteResult]]]


class AnswersWhenTold:
    """What a store does with a batch: it has been `sent`, and waits for its `answer`."""

    def __init__(self) -> None:
        self.sent, self.answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: object, entries: Sequence[RunEntry]) -> list[WriteResult]:
        self.sent.set()
        await self.answer.wait()
        return [WriteResult(WriteState.WRITTEN)] * len(entries)


@asynccontextmanager
async def journal_over(write: Write, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
    """A driver whose journal writes by `write`; what comes of a batch interests nobody."""
    made = driver()
    store: Any = SimpleNamespace(write=write)
    monkeypatch.setattr(made.journal, "_store", store)
    monkeypatch.setattr(made.journal, "_on_result", lambda *_: None)
    writing = asyncio.create_task(made.journal.run(uuid4()))
    try:
        yield made
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def stage(made: Driver, live: LiveRun) -> None:
    made.journal.stage(live, Staged([StepSucceeded(2, 1, 0, 1, None)], []))


async def sending(made: Driver, store: AnswersWhenTold) -> LiveRun:
    """A run of which something is on its way to the store."""
    live = live_run()
    made.adopt(live)
    stage(made, live)
    await asyncio.wait_for(store.sent.wait(), 20)
    return live


async def test_a_journal_that_writes_nothing_says_why_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "AWAY_SECONDS", 0.0)
    tries: asyncio.Queue[Exception | None] = asyncio.Queue()
    told: list[DatabaseUnavailable | None] = []

    async def write(*_: object) -> list[WriteResult]:
        told.append(made.journal.fault)
        error = await tries.get()
        if error is not None:
            raise error
        return [WriteResult(WriteState.WRITTEN)]

    full = DatabaseUnavailable("the database has no disk space left; try again")
    async with journal_over(write, monkeypatch) as made:
        live = live_run()
        made.adopt(live)
        stage(made, live)
        for outcome in (full, full, full, None):
            tries.put_nowait(outcome)
        await asyncio.wait_for(made.journal.wait_idle(), 20)
    assert told == [None, None, full, full]
    assert made.journal.fault is None


async def test_a_journal_that_is_not_answered_says_so_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnswersWhenTold()
    async with journal_over(store, monkeypatch) as made:
        await sending(made, store)
        assert made.journal.fault is None
        monkeypatch.setattr(journal, "SILENT_SECONDS", 0.0)
        fault = made.journal.fault
        assert fault is not None
        assert (fault.metadata, fault.retry_delay_seconds) == ({"cause": "SILENT"}, 1.0)
        store.answer.set()
        await asyncio.wait_for(made.journal.wait_idle(), 20)
        assert made.journal.fault is None


async def test_what_is_staged_in_the_turn_in_which_a_batch_is_taken_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []

    async def write(_: object, entries: Sequence[RunEntry]) -> list[WriteResult]:
        written.extend(len(entry.rows) for entry in entries)
        return [WriteResult(WriteState.WRITTEN)] * len(entries)

    async with journal_over(write, monkeypatch) as made:
        await asyncio.sleep(0)
        # The worklist has its turn before the second is staged, and the journal right after that.
        made._worklist.wake()
        asyncio.get_running_loop().call_soon(stage, made, live_run())
        stage(made, live_run())
        await asyncio.sleep(0)
        await asyncio.wait_for(made.journal.wait_idle(), 20)
    assert written == [1, 1]


async def test_what_a_run_staged_while_it_was_written_counts_no_more_once_it_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = AnswersWhenTold()
    async with journal_over(store, monkeypatch) as made:
        live = await sending(made, store)
        made.journal.stage(live, Staged([StepSucceeded(3, 2, 0, 1, Payload("a.v1.A", b"output"))], []))
        made.settle()
        made.forget(live, "given up")
        store.answer.set()
        await asyncio.wait_for(made.journal.wait_idle(), 20)
        assert (made.journal.queued_events, made.journal.queued_bytes, made.is_busy()) == (0, 0, False)
