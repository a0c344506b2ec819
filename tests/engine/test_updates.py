"""What many watchers of one run cost: each event is encoded and read once for all, and they never hold up the loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from baton.v1 import event_pb2, run_service_pb2

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import EventKind, RunState
from orchestrator.engine import live as live_module
from orchestrator.engine import updates as updates_module
from orchestrator.engine.codec import total_bytes
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import JournalRow
from orchestrator.engine.turns import PAUSE_SECONDS, UPDATES_A_TURN, Turns
from orchestrator.engine.updates import (
    JOINED_LIMIT,
    MESSAGE_BYTES,
    PAGE_ROWS,
    PAGES_LIMIT_BYTES,
    READS_AT_ONCE,
    Joined,
    Update,
    UpdatePages,
    encode_cursor,
    encode_update,
    join,
)
from tests.engine.drivers import live_run
from tests.engine.test_live import publish, row

WATCHERS = 1_000
BASIC = run_service_pb2.RUN_VIEW_BASIC
RUN = RunKey("default", uuid4())


class Journal:
    """A journal of one ended run, which counts how often it is read."""

    def __init__(self, length: int, payload_bytes: int = 0) -> None:
        self.reads = self.reading = self.most_reading = 0
        end = event_pb2.RunEvent(sequence=length).SerializeToString()
        self._rows = [row(sequence, payload_bytes) for sequence in range(1, length)]
        self._rows.append(JournalRow(length, int(EventKind.RUN_SUCCEEDED), "", 0, length, end, None, ""))

    async def read(
        self, key: RunKey, after_sequence: int, limit: int, payloads: bool, limit_bytes: int
    ) -> Sequence[JournalRow]:
        self.reads += 1
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        await asyncio.sleep(0)
        self.reading -= 1
        rows = self._rows[after_sequence : after_sequence + limit]
        return [row for number, row in enumerate(rows) if total_bytes(rows[:number]) <= limit_bytes]


def reader_of(live: LiveRun, journal: Journal) -> tuple[RunReader, Any]:
    """A reader of one run that is driven here, and who may read it."""
    rows: Any = SimpleNamespace(
        get_run=lambda key: asyncio.sleep(0, SimpleNamespace(next_sequence=10, state=RunState.SUCCEEDED))
    )
    driver: Any = SimpleNamespace(runs={live.key: live}, is_busy=lambda: False)
    nothing: Any = SimpleNamespace()
    reader = RunReader(driver, nothing, rows, cast(Any, journal), nothing, EngineLimits())
    return reader, SimpleNamespace(namespace="default")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    counted: Counter[int] = Counter()

    def encode(run_id: UUID, one: JournalRow, payloads: bool) -> Update:
        counted[one.sequence] += 1
        return encode_update(run_id, one, payloads)

    monkeypatch.setattr(live_module, "encode_update", encode)
    monkeypatch.setattr(updates_module, "encode_update", encode)
    return counted


async def test_an_event_is_encoded_once_for_all_who_watch(encoded: Counter[int]) -> None:
    live = live_run()
    seen: list[list[Update]] = [[] for _ in range(WATCHERS)]
    for sequence in range(1, 6):
        publish(live, [row(sequence)])
        for each in seen:
            each.extend(live.updates_after(sequence - 1, False) or ())
    assert encoded == dict.fromkeys(range(1, 6), 1)
    message = run_service_pb2.WatchRunResponse.FromString(seen[-1][2].data)
    assert (message.event.sequence, message.cursor) == (3, seen[-1][2].cursor)


async def test_an_event_that_nobody_watches_is_not_encoded(encoded: Counter[int]) -> None:
    publish(live_run(), [row(sequence) for sequence in range(1, 1_000)])
    assert not encoded


async def test_those_who_are_behind_share_what_is_read(encoded: Counter[int]) -> None:
    journal = Journal(3 * PAGE_ROWS + 10)
    pages, key = UpdatePages(cast(Any, journal)), RunKey("default", uuid4())
    for number in range(WATCHERS):
        sequence, is_last = number % PAGE_ROWS, False
        while not is_last:
            updates = await pages.after(key, sequence, False, MESSAGE_BYTES)
            assert updates[0].sequence == sequence + 1
            sequence, is_last = updates[-1].sequence, updates[-1].is_last
        assert sequence == 3 * PAGE_ROWS + 10
    assert journal.reads == 4
    assert set(encoded.values()) == {1}


def parts(update: Update) -> list[run_service_pb2.WatchRunResponse]:
    message = run_service_pb2.WatchRunResponse.FromString(update.data)
    more = list(message.more)
    message.ClearField("more")
    return [message, *more]


def updates_of(count: int, payload_bytes: int = 0) -> list[Update]:
    return [encode_update(RUN.run_id, row(sequence, payload_bytes), True) for sequence in range(1, count + 1)]


@pytest.mark.parametrize("payload_bytes", [0, 100, 20_000])
def test_joined_updates_are_those_that_others_are_sent(payload_bytes: int) -> None:
    updates = updates_of(4, payload_bytes)
    joined = join(updates)
    assert parts(joined) == [run_service_pb2.WatchRunResponse.FromString(update.data) for update in updates]
    assert (joined.cursor, joined.sequence, joined.is_last) == (updates[-1].cursor, 4, False)


def test_updates_are_joined_once_for_all_who_are_at_the_same_place() -> None:
    joined, updates = Joined(), updates_of(6)
    first = joined.of(RUN, True, updates)
    assert len(first) == 1
    assert joined.of(RUN, True, updates) is first
    assert [part.event.sequence for part in parts(joined.of(RUN, True, updates[2:])[0])] == [3, 4, 5, 6]
    assert joined.of(RUN, True, updates[:1]) == updates[:1]


def test_messages_of_joined_updates_and_what_is_kept_of_them_have_limits() -> None:
    joined, updates = Joined(), updates_of(50, MESSAGE_BYTES // 8)
    for begin in range(2 * JOINED_LIMIT):
        messages = joined.of(RUN, True, updates[begin:])
        assert len(messages) > 1
        assert all(len(message.data) < 1.01 * MESSAGE_BYTES for message in messages)
        sequences = [part.event.sequence for message in messages for part in parts(message)]
        assert sequences == list(range(begin + 1, 51))
    assert len(joined._kept) == JOINED_LIMIT
    large = updates_of(3, MESSAGE_BYTES)
    assert list(joined.of(RUN, True, large)) == large


async def test_who_takes_batches_gets_all_that_was_missed_in_one_message() -> None:
    live, journal = live_run(), Journal(10)
    reader, caller = reader_of(live, journal)
    publish(live, journal._rows[:3])
    watch = reader.watch(caller, live.key.run_id, encode_cursor(live.key.run_id, 3), BASIC, True)
    first = asyncio.ensure_future(anext(watch))
    for _ in range(20):
        await asyncio.sleep(0)
    assert live._changed._waiting
    for event in journal._rows[3:]:
        publish(live, [event])  # All before the watcher has its turn.
    last = cast(Update, await first)
    assert [part.event.sequence for part in parts(last)] == list(range(4, 11))
    assert last.is_last
    assert [update async for update in watch] == []


async def test_a_page_that_may_grow_is_read_again() -> None:
    journal = Journal(PAGE_ROWS - 1)
    del journal._rows[5:]
    pages, key = UpdatePages(cast(Any, journal)), RunKey("default", uuid4())
    assert len(await pages.after(key, 0, False, MESSAGE_BYTES)) == 5
    journal._rows.append(row(6))
    assert [update.sequence for update in await pages.after(key, 5, False, MESSAGE_BYTES)] == [6]


async def test_pages_are_bounded_in_size() -> None:
    journal = Journal(100 * PAGE_ROWS, payload_bytes=8_000)
    pages, key = UpdatePages(cast(Any, journal)), RunKey("default", uuid4())
    for first in range(0, 100 * PAGE_ROWS, PAGE_ROWS):
        await pages.after(key, first, True, MESSAGE_BYTES)
    assert 0 < pages._bytes <= PAGES_LIMIT_BYTES
    kept = [page for pages_of_run in pages._pages.values() for page in pages_of_run]
    assert pages._bytes == sum(len(update.data) + 200 for page in kept for update in page)


async def test_a_watcher_holds_no_more_than_a_message_and_those_behind_together_read_in_turns() -> None:
    length = 100
    journal = Journal(length, payload_bytes=10_000)
    pages, keys = UpdatePages(cast(Any, journal)), [RunKey("default", uuid4()) for _ in range(8)]

    async def watch(key: RunKey, sequence: int) -> int:
        while sequence < length:
            updates = await pages.after(key, sequence, True, MESSAGE_BYTES)
            assert updates[0].sequence == sequence + 1
            assert sum(len(update.data) for update in updates[:-1]) <= MESSAGE_BYTES
            sequence = updates[-1].sequence
        return sequence

    assert set(await asyncio.gather(*(watch(keys[number % 8], number % length) for number in range(400)))) == {length}
    assert journal.most_reading == READS_AT_ONCE
    assert journal.reads < length, "watchers of the same run do not share what is read"


async def test_watchers_go_on_a_few_in_each_turn_of_the_loop() -> None:
    turns, live = Turns(lambda: False), live_run()
    loop = asyncio.get_running_loop()
    turn, woken = 0, Counter[int]()

    def count() -> None:
        nonlocal turn
        turn += 1
        if woken.total() < 2 * WATCHERS:
            loop.call_soon(count)

    async def watch() -> None:
        assert await live.changed(turns, 60)
        woken[turn] += 1
        await turns.take()
        woken[turn] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(WATCHERS):
            group.create_task(watch())
        await asyncio.sleep(0)
        publish(live, [row(1)])
        count()
    assert woken.total() == 2 * WATCHERS
    assert max(woken.values()) <= UPDATES_A_TURN


async def test_a_watcher_that_leaves_takes_no_turn_from_others() -> None:
    turns, live = Turns(lambda: False), live_run()
    tasks = [asyncio.create_task(live.changed(turns, 60)) for _ in range(2 * UPDATES_A_TURN)]
    await asyncio.sleep(0)
    for task in tasks[:UPDATES_A_TURN]:
        task.cancel()
    await asyncio.sleep(0)
    publish(live, [row(1)])
    assert await asyncio.gather(*tasks[UPDATES_A_TURN:]) == [True] * UPDATES_A_TURN
    assert not live._changed._waiting


async def test_a_silent_run_is_told_in_time() -> None:
    live = live_run()
    assert not await live.changed(Turns(lambda: False), 0.01)
    assert not live._changed._waiting


async def test_while_runs_have_something_to_do_the_loop_waits_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    call_later = loop.call_later

    def counted(delay: float, *given: Any, **more: Any) -> Any:
        pauses.append(delay)
        return call_later(delay, *given, **more)

    monkeypatch.setattr(loop, "call_later", counted)
    busy = True
    turns = Turns(lambda: busy)
    await asyncio.gather(*(turns.take() for _ in range(10 * UPDATES_A_TURN)))
    assert pauses == [PAUSE_SECONDS] * 8
    busy = False
    await asyncio.gather(*(turns.take() for _ in range(10 * UPDATES_A_TURN)))
    assert len(pauses) == 8


async def test_a_run_that_ended_is_told_from_the_memory_that_it_had() -> None:
    live, journal = live_run(), Journal(10)
    reader, caller = reader_of(live, journal)
    publish(live, journal._rows[:3])
    watch = reader.watch(caller, live.key.run_id, encode_cursor(live.key.run_id, 3), BASIC, False)
    first = asyncio.ensure_future(anext(watch))
    for _ in range(20):
        await asyncio.sleep(0)
    assert live._changed._waiting
    publish(live, journal._rows[3:])
    live.forgotten = True
    del cast(Any, reader)._driver.runs[live.key]
    told = [await first, *[update async for update in watch]]
    assert [cast(Update, update).sequence for update in told] == list(range(4, 11))
    assert journal.reads == 0
