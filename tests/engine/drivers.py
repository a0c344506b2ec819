"""Drivers and live runs with nothing behind them, for tests that put in what they need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from orchestrator.domain.ids import RunKey
from orchestrator.domain.workflow import FailureMatch, Graph, RetryPolicy, Step, Target
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.machine import Machine
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.pace import Pace
from orchestrator.engine.timers import Timers


def driver() -> Driver:
    """A driver whose gateway and store are yet to be put in."""
    clock = DatabaseClock()
    nothing: Any = SimpleNamespace()
    return Driver(clock, Timers(clock), EngineLimits(), NullObserver(), nothing, nothing, Pace(Machine()))


def live_run(accepted: Any = None, steps: int = 1) -> LiveRun:
    """A run of so many steps of which none waits for another."""
    target = Target("a.v1.A/Do", RetryPolicy(FailureMatch()), False)
    compiled: Any = SimpleNamespace(graph=Graph(tuple(Step(index, f"s{index}", (target,)) for index in range(steps))))
    scope: Any = None
    live = LiveRun(RunKey("default", uuid4()), 1, compiled, scope, None)
    live.accepted = accepted
    live.run.expire_time = 1 << 60
    return live
