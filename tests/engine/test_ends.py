"""The cursor of a watch of many runs: it never passes an end that was not told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from baton.v1 import run_pb2, run_service_pb2
from baton.v1.run_service_pb2 import WatchRunsResponse

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import DatabaseUnavailable, RunNotFound, RunUnreadable, TooManyReads
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.states import RunState
from orchestrator.engine import room
from orchestrator.engine.ends import Ends
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.ports import EndedPage, FilterTerm, RunRow
from orchestrator.engine.room import ReadRoom
from orchestrator.engine.turns import UPDATES_A_TURN, Turns
from orchestrator.engine.updates import Encoded, encode_field
from tests.engine.engines import told_by

CALLER = Caller("default", "anonymous", "grpc")
BASIC = run_service_pb2.RUN_VIEW_BASIC
LIMITS = EngineLimits(foreign_poll_seconds=0.001, watch_progress_seconds=0.01)


class Store:
    """Tells of no end, at the position `p1` and then at what a test says; counts the looks at ends of others. Who asks
    from a position on which is not the last is told the `rows`."""

    def __init__(self, rows: Sequence[RunRow] = ()) -> None:
        self.position = "p1"
        self.rows = list(rows)
        self.looks = 0
        self.looked = asyncio.Event()

    async def end_position(self) -> str:
        return self.position

    async def list_ended(
        self, namespace: str, terms: Sequence[FilterTerm], position: str, limit: int, but_of: UUID | None
    ) -> EndedPage:
        if but_of is not None:
            self.looks += 1
            self.looked.set()
        return EndedPage(self.rows if position != self.position else [], self.position, False)

    async def look_again(self) -> None:
        """Waits for two looks from now on: the first may have begun before."""
        for _ in range(2):
            self.looked.clear()
            await self.looked.wait()


class Reader:
    """Reads runs of `size` bytes, as they are in `state` and `round`; none where it is told to raise."""

    def __init__(self, size: int = 0, limit_bytes: int = LIMITS.max_watch_bytes) -> None:
        self.size, self.state, self.round = size, run_pb2.RUN_STATE_FAILED, 1
        self.error: Exception | None = None
        self.turns, self.watch_room = Turns(lambda: False), ReadRoom(limit_bytes)

    async def read_ended(self, key: RunKey, view: int, steps: bool) -> run_pb2.Run:
        if self.error is not None:
            raise self.error
        return run_pb2.Run(run_id=str(key.run_id), state=self.state, round=self.round, workspace="x" * self.size)


def ends_of(reader: Reader, store: Store, journal: object) -> Ends:
    clock = SimpleNamespace(now=lambda: 0)
    return Ends(cast(Any, reader), cast(Any, store), cast(Any, journal), cast(Any, clock), LIMITS)


def failed_row() -> RunRow:
    key, failed = RunKey("default", uuid4()), int(RunState.FAILED)
    return RunRow(key, RevisionKey("default", "w", "r"), failed, 1, 3, 1, 1, "", "", "", (), {}, 0, 0, 0, 0)


@asynccontextmanager
async def watched(
    store: Store, journal: object
) -> AsyncIterator[tuple[Ends, AsyncGenerator[WatchRunsResponse | Encoded, None]]]:
    """Ends that look for those of others, and one watch of them that has caught up to `p1`."""
    ends = ends_of(Reader(), store, journal)
    following = asyncio.ensure_future(ends.run(uuid4()))
    try:
        async with aclosing(ends.watch(CALLER, (), "", BASIC, False)) as watch:
            assert (await anext(watch)).cursor == "p1"
            yield ends, watch
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_cursor_waits_for_the_commit_that_its_position_may_hold_already() -> None:
    """A run that this replica ends is left out of what it reads, and told when its commit is answered."""
    store, journal = Store(), SimpleNamespace(batches_begun=1, batches_ended=0)
    async with watched(store, journal) as (_, watch), asyncio.timeout(20):
        store.position = "p2"
        await store.look_again()
        for _ in range(3):
            assert (await anext(watch)).cursor == "p1", "an end in this commit would be left out"
        journal.batches_ended = 1
        while (await anext(watch)).cursor != "p2":
            pass


async def test_a_watch_ends_with_the_lease_at_the_cursor_that_it_has() -> None:
    """The answer to a commit that may have gone through is lost with it: who watches again reads its ends."""
    store, journal = Store(), SimpleNamespace(batches_begun=1, batches_ended=0)
    async with watched(store, journal) as (ends, watch), asyncio.timeout(20):
        store.position = "p2"
        await store.look_again()
        ends.lose()
        journal.batches_ended = 1
        last = told_by([message async for message in watch][-1])
        assert (last.cursor, last.progress.reconnect) == ("p1", True)


async def test_a_database_that_is_away_ends_no_watch() -> None:
    store, journal = Store(), SimpleNamespace(batches_begun=0, batches_ended=0)
    async with watched(store, journal) as (_, watch), asyncio.timeout(20):
        answer = store.list_ended

        async def refuse(*_: object) -> EndedPage:
            store.looked.set()
            raise DatabaseUnavailable("away")

        store.list_ended = refuse  # type: ignore[method-assign]
        await store.look_again()
        store.list_ended = answer  # type: ignore[method-assign]
        store.position = "p2"
        while (await anext(watch)).cursor != "p2":
            pass


async def caught_up(ends: Ends) -> list[run_pb2.Run]:
    """What a watch from before tells until it has caught up."""
    runs: list[run_pb2.Run] = []
    async with asyncio.timeout(20), aclosing(ends.watch(CALLER, (), "p0", BASIC, False)) as watch:
        async for message in watch:
            runs += told_by(message).runs
            if told_by(message).HasField("progress"):
                break
    return runs


@pytest.mark.parametrize("error", [RunNotFound("deleted"), RunUnreadable("damaged")])
async def test_a_run_that_cannot_be_read_any_more_is_told_by_its_row(error: Exception) -> None:
    reader, row = Reader(), failed_row()
    reader.error = error
    (run,) = await caught_up(ends_of(reader, Store([row]), SimpleNamespace(batches_begun=0, batches_ended=0)))
    assert (run.run_id, run.state) == (str(row.key.run_id), run_pb2.RUN_STATE_FAILED)


async def test_a_run_that_was_reopened_is_told_as_it_ended() -> None:
    reader, journal = Reader(size=10), SimpleNamespace(batches_begun=0, batches_ended=0)
    for state, life in (
        (run_pb2.RUN_STATE_RUNNING, 2),
        (run_pb2.RUN_STATE_SUCCEEDED, 2),
        (run_pb2.RUN_STATE_RUNNING, 1),
    ):
        reader.state, reader.round = state, life
        (run,) = await caught_up(ends_of(reader, Store([failed_row()]), journal))
        assert (run.state, run.round, run.workspace) == (run_pb2.RUN_STATE_FAILED, 1, "")
    reader.state, reader.round = run_pb2.RUN_STATE_FAILED, 1
    (run,) = await caught_up(ends_of(reader, Store([failed_row()]), journal))
    assert run.workspace == "x" * 10


async def test_what_waits_for_watchers_that_do_not_read_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WAIT_SECONDS", 0.05)
    reader = Reader(size=1 << 20, limit_bytes=4 << 20)
    ends = ends_of(reader, Store([failed_row() for _ in range(4)]), SimpleNamespace(batches_begun=0, batches_ended=0))
    async with asyncio.timeout(20), aclosing(ends.watch(CALLER, (), "p0", BASIC, False)) as stopped:
        assert len(told_by(await anext(stopped)).runs) == 1
        assert reader.watch_room.taken_bytes >= 4 << 20
        with pytest.raises(TooManyReads):
            await caught_up(ends)
        assert [len(told_by(await anext(stopped)).runs) for _ in range(3)] == [1, 1, 1]
        assert told_by(await anext(stopped)).HasField("progress")
        assert reader.watch_room.taken_bytes == 0
    assert len(await caught_up(ends)) == 4


async def test_watchers_go_on_in_turns_and_what_ends_meanwhile_goes_along() -> None:
    reader, store = Reader(), Store()
    reader.turns = Turns(lambda: True)
    ends = ends_of(reader, store, SimpleNamespace(batches_begun=0, batches_ended=0))
    watches = [ends.watch(CALLER, (), "", BASIC, False) for _ in range(20 * UPDATES_A_TURN)]
    for watch in watches:
        assert told_by(await anext(watch)).HasField("progress")
    messages = [asyncio.ensure_future(anext(watch)) for watch in watches]
    (space,) = ends._spaces.values()
    for name in ("first", "second"):
        for watcher in space.watchers():
            watcher.tell(encode_field(2, run_pb2.Run(run_id=name).SerializeToString()))
        await asyncio.wait(messages, return_when=asyncio.FIRST_COMPLETED)
    told = [[run.run_id for run in told_by(await message).runs] for message in messages]
    assert told[0] == ["first"]
    assert told[-1] == ["first", "second"]
    for watch in watches:
        await watch.aclose()


async def test_a_watcher_that_is_to_leave_as_it_waits_for_its_turn_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, turn, asked = Reader(), asyncio.Event(), asyncio.Event()

    async def take() -> None:
        asked.set()
        await turn.wait()

    monkeypatch.setattr(reader.turns, "take", take)
    ends = ends_of(reader, Store(), SimpleNamespace(batches_begun=0, batches_ended=0))
    async with asyncio.timeout(20), aclosing(ends.watch(CALLER, (), "", BASIC, False)) as watch:
        assert told_by(await anext(watch)).HasField("progress")
        (space,) = ends._spaces.values()
        (watcher,) = space.watchers()
        watcher.tell(b"an end")
        told = asyncio.ensure_future(anext(watch))
        await asked.wait()
        ends.lose()
        turn.set()
        assert told_by(await told).progress.reconnect
        assert [message async for message in watch] == []


async def test_watchers_who_all_read_are_never_refused_for_each_other() -> None:
    reader = Reader(size=300 << 10, limit_bytes=8 << 20)
    read_ended = reader.read_ended

    async def read_later(*arguments: Any) -> run_pb2.Run:
        await asyncio.sleep(0)  # so that all are at it together
        return await read_ended(*arguments)

    reader.read_ended = read_later  # type: ignore[method-assign]
    ends = ends_of(reader, Store([failed_row() for _ in range(12)]), SimpleNamespace(batches_begun=0, batches_ended=0))
    told = await asyncio.gather(*(caught_up(ends) for _ in range(40)))
    assert {len(runs) for runs in told} == {12}
    assert reader.watch_room.taken_bytes == 0
