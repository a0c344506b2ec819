"""A watch tells every event once, in order and without a gap, whatever happens to its connection."""

from __future__ import annotations

import asyncio

import pytest
from baton import BatonError, Client, NotFound, RunHandle, Unavailable, connection
from baton import ends as ends_module
from baton import runs as runs_module
from baton import watch as watch_module
from baton.ends import PATIENCE_SECONDS
from baton.v1 import event_pb2, failure_pb2, run_pb2, run_service_pb2
from teashop.v1.teashop_pb2 import OrderInput, OrderOutput

from .double import UNAVAILABLE, Double
from .typing_ok import fulfil

EVENTS = 12


async def submitted(client: Client) -> RunHandle[OrderOutput]:
    return await client.submit(fulfil, OrderInput(order_id="o-1"))


async def journal(double: Double, run_id: str, count: int = EVENTS) -> None:
    """Journals `count` events and ends the run."""
    for _ in range(count):
        await double.add(run_id, attempt_started=event_pb2.AttemptStarted())
    await double.finish(run_id, OrderOutput())


async def sequences(run: RunHandle[OrderOutput]) -> list[int]:
    async with asyncio.timeout(20):
        return [update.event.sequence async for update in run.watch() if update.HasField("event")]


async def test_a_watch_goes_on_after_the_submission_to_the_end(double: Double, client: Client) -> None:
    run = await submitted(client)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(sequences(run))
        await double.until("WatchRun", 1)
        await journal(double, run.id)
    assert watching.result() == list(range(2, EVENTS + 3))
    assert run.cursor == f"c{EVENTS + 2}"


async def test_a_watch_without_a_cursor_starts_with_a_snapshot(double: Double, client: Client) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    updates = [update async for update in client.run(run.id).watch(full=True)]
    assert [update.WhichOneof("update") for update in updates] == ["snapshot"]
    assert updates[0].snapshot.last_sequence == EVENTS + 2
    assert double.requests["WatchRun"][0].view == run_service_pb2.RUN_VIEW_FULL


@pytest.mark.parametrize(
    "cuts",
    [
        ["unavailable"],
        ["internal"],
        ["end"],
        ["reconnect"],
        ["repeat"],
        ["gap"],
        ["", "unavailable", "repeat", "end", "gap", "internal", "", "reconnect", "repeat"],
    ],
    ids="-".join,
)
async def test_a_broken_watch_goes_on_without_gap_or_repeat(double: Double, client: Client, cuts: list[str]) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    double.cuts = list(cuts)
    assert await sequences(run) == list(range(2, EVENTS + 3))
    assert not double.cuts


async def test_events_that_come_together_are_told_one_by_one(double: Double, client: Client) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    updates = [update async for update in run.watch()]
    assert double.requests["WatchRun"][0].batch
    assert [(update.event.sequence, update.cursor) for update in updates] == [
        (sequence, f"c{sequence}") for sequence in range(2, EVENTS + 3)
    ]
    assert not any(update.more for update in updates)


async def test_a_watch_outlives_a_restart_of_baton(double: Double, client: Client) -> None:
    run = await submitted(client)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(sequences(run))
        await double.until("WatchRun", 1)
        await double.add(run.id, attempt_started=event_pb2.AttemptStarted())
        await double.stop()
        await double.start()
        await double.until("WatchRun", 2)
        await journal(double, run.id)
    assert watching.result() == list(range(2, EVENTS + 4))


@pytest.mark.parametrize(
    ("cuts", "causes"),
    [(["internal", "end"], ["INTERNAL", "UNAVAILABLE"]), (["reconnect"], [])],
    ids=["lost", "asked-to-reconnect"],
)
async def test_each_loss_is_told_with_its_cause(
    double: Double, client: Client, cuts: list[str], causes: list[str]
) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    double.cuts = cuts
    told: list[str] = []
    seen = [update.event.sequence async for update in run.watch(lost=lambda error: told.append(error.code))]
    assert seen == list(range(2, EVENTS + 3))
    assert told == causes


async def test_a_loss_that_lasts_is_told_once(double: Double, client: Client) -> None:
    run = await submitted(client)
    told = asyncio.Event()
    losses: list[str] = []

    def lost(error: BatonError) -> None:
        losses.append(error.code)
        told.set()

    async def follow() -> None:
        async for _ in run.watch(lost=lost):
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await double.until("WatchRun", 1)
        await double.stop()
        await asyncio.wait_for(told.wait(), 10)
        await double.start()
        await double.until("WatchRun", 2)
        await journal(double, run.id)
    assert losses == ["UNAVAILABLE"]


async def test_an_expired_cursor_starts_again_with_a_snapshot(double: Double, client: Client) -> None:
    run = await submitted(client)
    for _ in range(3):
        await double.add(run.id, attempt_started=event_pb2.AttemptStarted())
    double.cursors_expired = True
    watch = run.watch()
    first = await anext(watch)
    assert first.snapshot.last_sequence == 4
    await double.finish(run.id, OrderOutput())
    assert [update.event.sequence async for update in watch] == [5]


async def test_a_watch_can_be_left_and_taken_up_elsewhere(double: Double, client: Client) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    async for update in run.watch():
        if update.event.sequence == 5:
            break
    elsewhere = client.run(run.id, cursor=run.cursor, output=OrderOutput)
    assert await sequences(elsewhere) == list(range(6, EVENTS + 3))
    assert await sequences(elsewhere) == []


async def test_a_watch_over_rounds_goes_on_where_a_run_is_mended(
    double: Double, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_LOOK_SECONDS", 0.01)
    run = await submitted(client)
    await double.finish(run.id, failure=failure_pb2.Failure(reason="NO"))
    seen: asyncio.Queue[run_service_pb2.WatchRunResponse] = asyncio.Queue()

    async def follow() -> None:
        async for update in run.watch(rounds=True):
            seen.put_nowait(update)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        assert (await seen.get()).event.WhichOneof("kind") == "run_failed"
        looks = len(double.requests["GetRun"])
        await double.until("GetRun", looks + 2)
        double.held[run.id].run.state = run_pb2.RUN_STATE_RUNNING
        await double.add(run.id, run_reopened=event_pb2.RunReopened(round=2))
        await double.finish(run.id, OrderOutput())
        told = [(await seen.get()).event for _ in range(2)]
        await double.until("GetRun", len(double.requests["GetRun"]) + 2)
        following.cancel()
    assert [event.WhichOneof("kind") for event in told] == ["run_reopened", "run_succeeded"]
    assert [event.sequence for event in told] == [3, 4]
    assert seen.empty()


async def test_a_watch_of_no_run_fails_at_once(client: Client) -> None:
    with pytest.raises(NotFound, match="RUN_NOT_FOUND"):
        [update async for update in client.run("nothing").watch()]


async def test_a_watch_gives_up_in_the_end(double: Double, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "PATIENCE_SECONDS", 0.3)
    run = await submitted(client)
    double.fail_next["WatchRun"] = [UNAVAILABLE] * 100
    with pytest.raises(Unavailable, match="SHUTTING_DOWN"):
        await sequences(run)
    assert 1 < len(double.requests["WatchRun"]) < 100


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("many", [False, True])
async def test_a_watch_is_patient_however_long_its_reader_takes(
    double: Double, client: Client, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(ends_module if many else watch_module, "time", clock)
    run, other = await submitted(client), await submitted(client)
    double.cuts = ["unavailable"]
    watch = client.watch_runs('client_id = ""') if many else client.run(run.id).watch()
    await anext(watch)
    await journal(double, run.id)
    await anext(watch)
    clock.now += 2 * PATIENCE_SECONDS  # and its connection is lost meanwhile
    await double.finish(other.id, OrderOutput())
    await anext(watch)
    assert len(double.requests["WatchRuns" if many else "WatchRun"]) == 2


async def test_watches_of_one_handle_take_nothing_from_each_other(double: Double, client: Client) -> None:
    run = await submitted(client)
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(sequences(run)) for _ in range(2)]
        await double.until("WatchRun", 2)
        await journal(double, run.id)
    assert [each.result() for each in watching] == [list(range(2, EVENTS + 3))] * 2
    assert run.cursor == f"c{EVENTS + 2}"


async def test_a_watch_that_is_behind_does_not_move_its_handle_back(double: Double, client: Client) -> None:
    run = await submitted(client)
    await journal(double, run.id)
    behind = run.watch()
    assert (await anext(behind)).event.sequence == 2
    assert await sequences(run) == list(range(3, EVENTS + 3))
    assert (await anext(behind)).event.sequence == 3
    assert run.cursor == f"c{EVENTS + 2}"


@pytest.mark.parametrize("many", [False, True])
async def test_a_server_that_drains_is_not_asked_again_at_once(
    double: Double, client: Client, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    waits: list[float] = []

    class Noted(connection.Backoff):
        def next_seconds(self) -> float:
            waits.append(super().next_seconds())
            return 0.0

    monkeypatch.setattr(ends_module if many else watch_module, "Backoff", Noted)
    run = await submitted(client)
    double.draining = 4
    async with asyncio.timeout(20):
        async for message in client.watch_runs() if many else client.run(run.id).watch():
            if not message.progress.reconnect:
                break
    assert len(double.requests["WatchRuns" if many else "WatchRun"]) == 5
    assert len(waits) == 4
    assert waits[0] < waits[3]
