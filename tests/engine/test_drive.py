"""A fault of ours in one run, done by hand: the run is given up, and nothing beside it is harmed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Resumption, RunTimeoutPassed
from orchestrator.domain.workflow import FailureMatch, Graph, RetryPolicy, Step, Target
from orchestrator.engine import drive
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun, Staged
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.timers import Timers


def driver() -> Driver:
    clock = DatabaseClock()
    nothing: Any = SimpleNamespace()
    return Driver(clock, Timers(clock), EngineLimits(), NullObserver(), nothing, nothing)


def live_run(accepted: Any = None) -> LiveRun:
    target = Target("a.v1.A/Do", RetryPolicy(FailureMatch()), False)
    compiled: Any = SimpleNamespace(graph=Graph((Step(0, "a", (target,)),)))
    scope: Any = None
    live = LiveRun(RunKey("default", uuid4()), 1, compiled, scope, None)
    live.accepted = accepted
    live.run.expire_time = 1 << 60
    return live


def fail(*_: object) -> None:
    raise RuntimeError("a fault of ours")


async def test_a_run_without_a_decision_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "decide", fail)
    made, live = driver(), live_run()
    made.adopt(live)
    assert made.advance(live, Resumption()).events == []
    assert live.forgotten
    assert made.refused == [live.key]
    assert made.runs == {}
    made.advance(live, RunTimeoutPassed())
    assert made.refused == [live.key]


async def test_entries_of_a_run_that_was_given_up_are_not_written() -> None:
    made, live = driver(), live_run()
    made.adopt(live)
    row: Any = SimpleNamespace(header=b"", payload=None)
    made.journal.stage(live, Staged([SimpleNamespace()], [row], [], 64))  # type: ignore[list-item]
    made.forget(live, "gone")
    assert made.journal._take_batch() == []
    assert made.journal.queued_events == 0
