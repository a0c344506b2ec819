"""Observers: the one for tests can be awaited, the fan-out keeps a faulty one from the others."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.domain.events import RunSucceeded
from orchestrator.domain.ids import EndpointKey, RunKey
from orchestrator.engine.observer import (
    CircuitChanged,
    Committed,
    JournalFlushed,
    LoopStalled,
    NullObserver,
    Observer,
    RecordingObserver,
    RunForgotten,
    fan_out,
)
from tests.telemetry.stories import RUN_ID, told_chain

ENDPOINT = EndpointKey("default", "payments", "127.0.0.1:1")
RUN = RunKey("default", RUN_ID)


def tell_all(observer: Observer) -> None:
    observer.circuit_changed(ENDPOINT, "open")
    observer.journal_flushed(2, 5, 0.001)
    observer.run_forgotten(RUN, "ended")
    observer.loop_stalled(0.2)


ALL_FACTS = [
    CircuitChanged(ENDPOINT, "open"),
    JournalFlushed(2, 5, 0.001),
    RunForgotten(RUN, "ended"),
    LoopStalled(0.2),
]


async def test_a_fact_of_the_past_is_found_at_once() -> None:
    observer = RecordingObserver()
    tell_all(observer)
    assert observer.facts == ALL_FACTS
    assert await observer.wait_for(lambda fact: isinstance(fact, RunForgotten)) == RunForgotten(RUN, "ended")


async def test_a_coming_fact_is_waited_for() -> None:
    observer = RecordingObserver()
    waiting = asyncio.ensure_future(
        observer.wait_for(lambda fact: isinstance(fact, Committed) and isinstance(fact.events[-1], RunSucceeded))
    )
    asyncio.get_running_loop().call_soon(told_chain, observer)
    assert await waiting == observer.facts[-1]
    assert isinstance(observer.facts[0], Committed)


async def test_a_fact_from_another_thread_is_heard() -> None:
    observer = RecordingObserver()
    waiting = asyncio.ensure_future(observer.wait_for(lambda fact: isinstance(fact, LoopStalled)))
    thread = threading.Thread(target=observer.loop_stalled, args=(0.5,))
    asyncio.get_running_loop().call_soon(thread.start)
    assert await waiting == LoopStalled(0.5)
    thread.join(5)


async def test_waiting_ends_with_its_time() -> None:
    observer = RecordingObserver()
    tell_all(observer)
    with pytest.raises(TimeoutError):
        await observer.wait_for(lambda fact: isinstance(fact, Committed), timeout_seconds=0.01)


def test_one_faulty_observer_does_not_silence_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(NullObserver):
        def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
            raise RuntimeError("broken")

    observer = RecordingObserver()
    tell_all(fan_out([Faulty(), observer]))
    assert observer.facts == ALL_FACTS
    assert "Faulty" in caplog.text


def test_commits_reach_every_observer() -> None:
    one, other = RecordingObserver(), RecordingObserver()
    story = told_chain(fan_out([one, other]))
    told = [event for fact in other.facts if isinstance(fact, Committed) for event in fact.events]
    assert told == story.events
    assert one.facts == other.facts


def test_with_no_observer_nothing_happens() -> None:
    observer = fan_out([])
    assert isinstance(observer, NullObserver)
    tell_all(observer)
