"""Closing a client: what is under way ends with an error that says so, and nothing begins any more."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest
from baton import BatonError, Client
from baton.connection import Backoff, Connection, closed_error

from .double import Double, rich
from .test_load import LOAD, order
from .typing_ok import fulfil


@pytest.mark.parametrize("given", [False, True])
async def test_closing_the_client_ends_what_waits(double: Double, given: bool) -> None:
    channel = grpc.aio.insecure_channel(double.address) if given else None
    client = Client(double.address, channel=channel)
    run = await client.submit(fulfil, order(0))

    async def watch() -> None:
        async for _ in run.watch():
            pass

    async def watch_many() -> None:
        async for _ in client.watch_runs("state = FAILED"):
            pass

    waiting = [asyncio.ensure_future(client.execute(fulfil, order(0))) for _ in range(LOAD + 5)]
    waiting += [asyncio.ensure_future(each) for each in (client.run(run.id).wait(), watch(), watch_many())]
    await double.until("WatchRuns", 2)
    await double.until("WatchRun", 1)
    await double.until("WaitRun", 1)
    await client.close()
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [answer.code for answer in answers if isinstance(answer, BatonError)] == ["CANCELLED"] * len(waiting)
    if channel is not None:
        await channel.close()


@pytest.mark.parametrize("count", [1, LOAD + 5])
async def test_a_submission_that_is_to_be_tried_again_ends_at_once(
    double: Double, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    paused: list[BatonError] = []
    wait_after = Connection.wait_after

    def noted(self: Connection, error: BatonError, backoff: Backoff) -> float:
        paused.append(error)
        return wait_after(self, error, backoff)

    monkeypatch.setattr(Connection, "wait_after", noted)
    away = rich(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", "wait", delay=600)
    for method in ("SubmitRun", "SubmitRuns"):
        double.fail_next[method] = [away] * count
    client = Client(double.address, retry_timeout=3_600)
    waiting = [asyncio.ensure_future(client.submit(fulfil, order(0))) for _ in range(count)]
    async with asyncio.timeout(10):
        while len(paused) < count:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0)
        await client.close()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(answer) for answer in answers] == [str(closed_error())] * count


async def test_submissions_that_wait_for_their_turn_are_not_sent_any_more(double: Double) -> None:
    double.silent.add("SubmitRuns")
    client = Client(double.address)
    waiting = [asyncio.ensure_future(client.submit(fulfil, order(0), wait_timeout=60)) for _ in range(LOAD + 300)]
    await double.until("SubmitRuns", 1)
    await client.close()
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [str(answer) for answer in answers] == [str(closed_error())] * len(waiting)
    assert client._connection.batches_begun == 1


async def test_a_client_that_is_closed_says_so(double: Double) -> None:
    client = Client(double.address)
    waiting = [asyncio.ensure_future(client.execute(fulfil, order(0))) for _ in range(LOAD)]
    await double.until("SubmitRun", LOAD)
    handle = await client.submit(fulfil, order(1))
    assert double.requests["SubmitRuns"]
    await client.close()
    await asyncio.gather(*waiting, return_exceptions=True)

    unheard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context["message"]))
    late = [handle.wait(), *(client.submit(fulfil, order(number)) for number in range(LOAD + 5))]
    answers = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 10)
    assert [repr(answer) for answer in answers] == [repr(RuntimeError("the client is closed"))] * len(late)
    gc.collect()
    assert not unheard


async def test_a_call_that_is_cancelled_while_its_client_is_closed_is_cancelled(double: Double) -> None:
    client = Client(double.address)
    waiting = asyncio.ensure_future(client.execute(fulfil, order(0)))
    await double.until("SubmitRun", 1)
    waiting.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_wait_that_is_answered_early_ends_as_the_client_is_closed(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = asyncio.Event()
    pause = Connection.pause

    async def noted(self: Connection, seconds: float) -> None:
        paused.set()
        await pause(self, seconds)

    monkeypatch.setattr(Connection, "pause", noted)
    client = Client(double.address)
    run = await client.submit(fulfil, order(0))
    double.early = 1
    waiting = asyncio.ensure_future(run.wait())
    await asyncio.wait_for(paused.wait(), 10)
    await client.close()
    with pytest.raises(BatonError) as caught:
        await asyncio.wait_for(waiting, 10)
    assert caught.value.code == "CANCELLED"
