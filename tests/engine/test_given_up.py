"""Runs that are given up for a fault of ours, in the whole engine: each is failed from its last durable state, nobody
is told of anything that is not durable, and the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from baton.v1 import run_pb2, run_service_pb2

from benchmarks import hotpath
from orchestrator.domain import events as ev
from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import Event
from orchestrator.domain.run import Run
from orchestrator.engine import journal
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import JournalRow
from orchestrator.engine.queues import Grant
from tests.engine.engines import Place, engine_on, submission, told_by, until

FAILED, SUCCEEDED = run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_SUCCEEDED


def fail_once(monkeypatch: pytest.MonkeyPatch, is_it: Callable[[Event], bool]) -> None:
    """Lets one event be one that cannot be encoded."""
    left, encode = [1], journal.encode

    def faulty(event: Event, run: Run) -> JournalRow:
        if left and is_it(event):
            left.clear()
            raise RuntimeError("a fault of ours")
        return encode(event, run)

    monkeypatch.setattr(journal, "encode", faulty)


async def end_of(place: Place, live: LiveRun) -> int:
    """Waits until a run has ended, and returns its state."""
    run = await place.engine._reader.wait_for_end(live.key, 20.0, run_service_pb2.RUN_VIEW_RESULT)
    return run.state


async def begun(place: Place, work: str, calls: int) -> LiveRun:
    """Submits a run, and waits until so many calls of it are made and nothing is to be written."""
    await place.engine.runs.submit_many([(hotpath.CALLER, submission(work))])
    await until(lambda: len(place.worker.calls) == calls and not place.driver.journal.queued_events)
    (live,) = place.driver.runs.values()
    return live


async def test_a_run_that_is_given_up_while_it_is_written_is_failed_once_that_is_known(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(database, monkeypatch) as place:
        live = await begun(place, "W3", 100)
        fail_once(monkeypatch, lambda event: isinstance(event, ev.StepSucceeded) and event.step == 1)
        place.gate.open.clear()
        place.worker.answer(0)
        await until(lambda: place.gate.waiting)
        place.worker.answer(1)
        await until(lambda: live.forgotten)
        await place.engine._recovery._fail_refused()
        assert (list(place.driver.refused), place.driver.runs) == ([live.key], {})
        place.gate.open.set()
        place.engine._recovery.look()
        assert await end_of(place, live) == FAILED
        assert len(place.worker.calls) == 100


async def test_a_submission_that_is_written_though_its_run_was_given_up_meanwhile_is_accepted_and_failed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(database, monkeypatch, EngineLimits(max_calls_in_flight=1)) as place:
        first = await begun(place, "W1", 1)
        place.gate.open.clear()
        submitting = asyncio.create_task(place.engine.runs.submit(hotpath.CALLER, submission("W1")))
        await until(lambda: place.gate.waiting)
        (second,) = (live for live in place.driver.runs.values() if live is not first)
        admit: Any = place.driver.admission._admit

        def faulty(live: LiveRun, step: int, grant: Grant) -> bool:
            if live is second:
                raise RuntimeError("a fault of ours")
            return bool(admit(live, step, grant))

        monkeypatch.setattr(place.driver.admission, "_admit", faulty)
        place.worker.answer(0)
        await until(lambda: second.forgotten)
        assert not submitting.done()
        place.gate.open.set()
        answer = await submitting
        assert answer.run.run_id == second.run_id
        place.engine._recovery.look()
        assert (await end_of(place, second), await end_of(place, first)) == (FAILED, SUCCEEDED)


async def test_an_end_that_is_lost_with_its_run_is_told_to_nobody(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    async def watch() -> None:
        async for message in place.engine.runs.watch_ends(hotpath.CALLER, (), "", 1, False):
            told.extend(run.state for run in told_by(message).runs)

    async with engine_on(database, monkeypatch) as place:
        watching = asyncio.create_task(watch())
        live = await begun(place, "W3", 100)
        fail_once(monkeypatch, lambda event: isinstance(event, ev.RunCancelled))
        place.gate.open.clear()
        place.worker.answer(0)
        await until(lambda: place.gate.waiting)
        cancelling = asyncio.create_task(place.engine.runs.cancel(hotpath.CALLER, live.key.run_id, ""))
        await until(lambda: live.forgotten)
        place.gate.open.set()
        place.engine._recovery.look()
        assert await end_of(place, live) == FAILED
        await until(lambda: told)
        watching.cancel()
        await asyncio.gather(watching, cancelling, return_exceptions=True)
        assert told == [FAILED]


async def test_a_fault_in_what_follows_a_commit_ends_one_run(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [1]

    def on_end(live: LiveRun) -> None:
        if left:
            left.clear()
            raise RuntimeError("a fault of ours")
        told(live)

    async with engine_on(database, monkeypatch) as place:
        told = place.driver.on_end
        monkeypatch.setattr(place.driver, "on_end", on_end)
        first = await begun(place, "W1", 1)
        place.worker.answer(0)
        await until(lambda: not place.driver.runs)
        second = await begun(place, "W1", 2)
        place.worker.answer(1)
        assert (await end_of(place, first), await end_of(place, second)) == (SUCCEEDED, SUCCEEDED)


async def test_a_submission_that_fails_holds_up_no_other_of_its_batch(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1]

    def trace() -> str:
        if left:
            left.clear()
            raise RuntimeError("a fault of ours")
        return ""

    async with engine_on(database, monkeypatch) as place:
        monkeypatch.setattr(place.engine._submitter, "_trace", trace)
        many = [(hotpath.CALLER, submission("W1")) for _ in range(3)]
        answers, _ = await asyncio.wait_for(place.engine.runs.submit_many(many), 20)
        assert [isinstance(answer, BaseException) for answer in answers] == [True, False, False]


async def test_an_end_is_told_though_its_run_was_given_up_while_it_was_written(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(database, monkeypatch) as place:
        live = await begun(place, "W1", 1)
        basic = run_service_pb2.RUN_VIEW_BASIC
        async with (
            asyncio.timeout(20),
            aclosing(place.engine.runs.watch_ends(hotpath.CALLER, (), "", basic, False)) as watch,
        ):
            assert told_by(await anext(watch)).HasField("progress")
            place.gate.open.clear()
            place.worker.answer(0)
            await until(lambda: place.gate.waiting and live.run.ended)
            place.driver._worklist.fail(live)
            place.gate.open.set()
            assert await end_of(place, live) == SUCCEEDED
            while not (told := told_by(await anext(watch)).runs):
                pass
            assert [(run.run_id, run.state) for run in told] == [(live.run_id, SUCCEEDED)]


async def test_a_submission_that_was_accepted_is_answered_so_while_the_run_cannot_be_read(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submitted without a request_id, and heard of a fault, would make another run."""
    async with engine_on(database, monkeypatch) as place:
        request = submission("W1", wait_timeout=1)
        answered = asyncio.ensure_future(place.engine.runs.submit(hotpath.CALLER, request))
        await until(lambda: len(place.worker.calls) == 1 and not place.driver.journal.queued_events)
        (live,) = place.driver.runs.values()

        async def away(_: object) -> None:
            raise DatabaseUnavailable("away")

        place.gate.open.clear()
        monkeypatch.setattr(place.engine._reader._runs, "get_run", away)
        place.worker.answer(0)
        answer = await answered
        assert (answer.run.run_id, answer.run.state) == (live.run_id, run_pb2.RUN_STATE_PENDING)
        place.gate.open.set()
