"""WatchRun: its messages, its end, and that a caller who leaves is noticed by the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import grpc
import pytest
from baton.v1 import run_service_pb2, run_service_pb2_grpc
from baton.v1.run_service_pb2 import WatchRunResponse

from orchestrator.domain.errors import CursorExpired, WatchTooSlow
from orchestrator.rpc import layers
from orchestrator.rpc.server import RpcServer
from orchestrator.rpc.watches import Watches
from tests.rpc.conftest import make_server
from tests.rpc.fakes import FakeEngine, told

if TYPE_CHECKING:
    from baton.v1.run_service_pb2_grpc import RunServiceAsyncStub as Runs

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
REQUEST = run_service_pb2.WatchRunRequest(run_id=RUN_ID, cursor="c0")
UPDATES = [WatchRunResponse(cursor=f"c{n}", event={"sequence": n}) for n in (1, 2, 3)]  # type: ignore[arg-type]


async def test_updates_pass_until_the_engine_ends_them(engine: FakeEngine, runs: Runs) -> None:
    engine.updates = UPDATES
    assert [update async for update in runs.WatchRun(REQUEST)] == UPDATES
    assert engine.ended.is_set()


async def test_errors_after_updates_are_rich(engine: FakeEngine, runs: Runs) -> None:
    engine.updates, engine.error = UPDATES, CursorExpired("watch again without a cursor")
    watch = aiter(runs.WatchRun(REQUEST))
    assert [await anext(watch) for _ in UPDATES] == UPDATES
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(watch)
    assert (told(caught.value).code, told(caught.value).reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")


async def test_a_cancelled_watch_ends_the_engines_stream(engine: FakeEngine, runs: Runs) -> None:
    engine.updates, engine.hold = UPDATES, asyncio.Event()
    watch = runs.WatchRun(REQUEST)
    assert await anext(aiter(watch)) == UPDATES[0]
    watch.cancel()
    await asyncio.wait_for(engine.ended.wait(), 5)


async def test_who_reads_nothing_is_cut_off_and_told_so_behind_what_was_sent(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, too_slow = asyncio.Event(), layers._too_slow

    def give_up(seconds: float) -> WatchTooSlow:
        given_up.set()
        return too_slow(seconds)

    monkeypatch.setattr(layers, "_too_slow", give_up)
    engine.updates = [WatchRunResponse(cursor="x" * 1_000_000)] * 100
    server = make_server(engine, write_seconds=0.2)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub = run_service_pb2_grpc.RunServiceStub(channel)
        watch = stub.WatchRun(REQUEST)
        await asyncio.wait_for(given_up.wait(), 10)
        assert not engine.ended.is_set(), "room is given back while gRPC still has the message"
        read = []

        async def read_on() -> None:
            async for update in watch:
                read.append(update)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on()
        assert 0 < len(read) < 100
        answer = told(caught.value)
        assert (answer.code, answer.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
        await asyncio.wait_for(engine.ended.wait(), 5)
    await server.stop(0)
    await server.close()


async def test_slow_watchers_who_leave_end_the_engines_streams_and_are_no_error(
    engine: FakeEngine, server: RpcServer, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    engine.updates = [WatchRunResponse(cursor="x" * 1_000_000)] * 100
    for _ in range(5):
        engine.ended.clear()
        watch = runs.WatchRun(REQUEST)
        await anext(aiter(watch))  # The server is now held by flow control, inside a write.
        assert not engine.ended.is_set()
        watch.cancel()
        await asyncio.wait_for(engine.ended.wait(), 5)
    await server.stop(5)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_watcher_who_reads_nothing_does_not_hold_up_a_server_that_stops_and_is_no_error(
    engine: FakeEngine, server: RpcServer, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    engine.updates = [WatchRunResponse(cursor="x" * 1_000_000)] * 100
    watch = runs.WatchRun(REQUEST)
    await anext(aiter(watch))
    await server.stop(0)
    await server.close()
    await asyncio.wait_for(engine.ended.wait(), 5)
    await server.close()
    with contextlib.suppress(grpc.aio.AioRpcError):  # or its last message asks to reconnect
        async for _ in watch:
            pass
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_cancelled_unary_call_reaches_the_engine(engine: FakeEngine, runs: Runs) -> None:
    engine.hold = asyncio.Event()
    call = runs.WaitRun(run_service_pb2.WaitRunRequest(run_id=RUN_ID))
    waiting = asyncio.ensure_future(call)
    await asyncio.wait_for(engine.entered.wait(), 5)
    call.cancel()
    await asyncio.wait_for(engine.ended.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_draining_asks_watchers_to_reconnect(engine: FakeEngine, server: RpcServer, runs: Runs) -> None:
    engine.updates, engine.hold = UPDATES, asyncio.Event()
    seen = []
    async for update in runs.WatchRun(REQUEST, timeout=10):
        seen.append(update)
        if len(seen) == 3:
            await engine.entered.wait()
            await server.drain()
    assert seen[:3] == UPDATES
    assert len(seen) == 4
    assert (seen[3].cursor, seen[3].progress.reconnect) == ("c3", True)
    assert seen[3].progress.time.seconds > 0
    await asyncio.wait_for(engine.ended.wait(), 5)
    late = [update async for update in runs.WatchRun(REQUEST, timeout=10)]
    assert [(update.cursor, update.progress.reconnect) for update in late] == [("c0", True)]


async def test_streams_can_be_ended_again_while_they_end() -> None:
    """A server that stops ends its streams when it drains, and once more when it closes."""
    begun, closing, may_close = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def updates() -> AsyncGenerator[WatchRunResponse, None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield WatchRunResponse()
        finally:
            closing.set()
            await may_close.wait()

    async def follow() -> list[WatchRunResponse]:
        return [update async for update in watches.follow(updates(), WatchRunResponse, "c0")]

    watches = Watches()
    following = asyncio.ensure_future(follow())
    await begun.wait()
    watches.end()
    await closing.wait()
    watches.end()
    may_close.set()
    (last,) = await following
    assert (last.cursor, last.progress.reconnect) == ("c0", True)


async def test_an_old_watch_asks_to_reconnect(engine: FakeEngine) -> None:
    engine.updates, engine.hold = UPDATES, asyncio.Event()
    server = make_server(engine, watch_seconds=0.05)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub: Runs = run_service_pb2_grpc.RunServiceStub(channel)
        seen = [update async for update in stub.WatchRun(REQUEST, timeout=10)]
    assert [update.cursor for update in seen] == ["c1", "c2", "c3", "c3"]
    assert seen[-1].progress.reconnect
    await server.stop(0)
    await server.close()


async def test_a_timeout_of_the_engine_itself_is_not_taken_for_age(engine: FakeEngine, runs: Runs) -> None:
    engine.updates, engine.error = UPDATES, TimeoutError()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in runs.WatchRun(REQUEST, timeout=10):
            pass
    assert told(caught.value).reason == "INTERNAL"
