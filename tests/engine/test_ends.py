"""The cursor of a watch of many runs: it never passes an end that was not told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

from baton.v1 import run_service_pb2
from baton.v1.run_service_pb2 import WatchRunsResponse

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.ends import Ends
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.ports import EndedPage, FilterTerm

CALLER = Caller("default", "anonymous", "grpc")
BASIC = run_service_pb2.RUN_VIEW_BASIC
LIMITS = EngineLimits(foreign_poll_seconds=0.001, watch_progress_seconds=0.01)


class Store:
    """Tells of no end, at the position `p1` and then at what a test says; counts the looks at ends of others."""

    def __init__(self) -> None:
        self.position = "p1"
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
        return EndedPage([], self.position, False)

    async def look_again(self) -> None:
        """Waits for two looks from now on: the first may have begun before."""
        for _ in range(2):
            self.looked.clear()
            await self.looked.wait()


@asynccontextmanager
async def watched(store: Store, journal: object) -> AsyncIterator[tuple[Ends, AsyncGenerator[WatchRunsResponse, None]]]:
    """Ends that look for those of others, and one watch of them that has caught up to `p1`."""
    clock = SimpleNamespace(now=lambda: 0)
    ends = Ends(cast(Any, None), cast(Any, store), cast(Any, journal), cast(Any, clock), LIMITS)
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
        last = [message async for message in watch][-1]
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
