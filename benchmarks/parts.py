"""Where the time of a process goes, by parts: functions that are wrapped while it works.

By CPU time of the thread, so that what else runs on the machine is not counted. What the timing itself costs (1 to 2 us
a call) is measured at the start and taken off.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

PARTS: dict[str, tuple[str, ...]] = {
    "door: validation": ("orchestrator.rpc.validation:RequestValidator.check",),
    "submit": ("orchestrator.engine.submit:Submitter.submit",),
    "submit: start": ("orchestrator.engine.submit:Submitter._start",),
    "submit: parse input": ("orchestrator.contracts.compiled:CompiledWorkflow.parse_input",),
    "wait for the end": ("orchestrator.engine.inspect:RunReader.wait_for_end",),
    "render": ("orchestrator.engine.inspect:render",),
    "drive": ("orchestrator.engine.drive:Driver.advance",),
    "decide": ("orchestrator.engine.drive:decide",),
    "encode": ("orchestrator.engine.journal:encode",),
    "stage": ("orchestrator.engine.journal:GroupCommit.stage",),
    "timers": (
        "orchestrator.engine.drive:Driver.set_timer",
        "orchestrator.engine.live:LiveRun.cancel_timer",
        "orchestrator.engine.live:LiveRun.cancel_timers",
    ),
    "admission": ("orchestrator.engine.admission:Admission.enqueue",),
    "admission: call ended": ("orchestrator.engine.admission:Admission.call_ended",),
    "admit": ("orchestrator.engine.drive:Driver._admit",),
    "build request": ("orchestrator.contracts.compiled:CompiledTarget.build_request",),
    "build output": ("orchestrator.engine.data:RunData.output",),
    "dispatch": ("orchestrator.engine.dispatch:Dispatcher.send", "orchestrator.engine.dispatch:Delivery.answered"),
    "dispatch: what is told": ("orchestrator.engine.dispatch:Dispatcher.call_of",),
    "dispatch: step token": ("orchestrator.security.tokens:TokenSigner.sign",),
    "judge": ("orchestrator.engine.dispatch:judge",),
    "record": ("orchestrator.engine.drive:Driver.record",),
    "journal: take batch": ("orchestrator.engine.journal:GroupCommit._take_batch",),
    "journal: layout": ("orchestrator.postgres.journal:statement_of",),
    "journal: write (asyncpg)": ("orchestrator.postgres.journal:PostgresJournalStore.write",),
    "journal: finish": ("orchestrator.engine.journal:GroupCommit._finish",),
    "written": ("orchestrator.engine.drive:Driver._written",),
    "publish": ("orchestrator.engine.live:LiveRun.publish",),
    "observers": ("orchestrator.telemetry.facts:LogObserver.committed",),
    "forget": ("orchestrator.engine.drive:Driver.forget",),
}
"""Name of a part -> functions (`module:qualified.name`). A name that is gone is left out and said."""


class Parts:
    """Times the parts from its making on, for as long as the process lives; make it before what it times is built.

    A part's time is without the parts that are called within it.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.missing: list[str] = []
        self._inside: list[float] = []
        self._own_seconds = self._around_seconds = 0.0
        self._calibrate()
        for label, places in PARTS.items():
            for place in places:
                self._wrap(label, place)

    def _calibrate(self) -> None:
        """Measures what timing costs within the time that it takes, and around it; both are taken off again."""
        label, calls = "nothing", 20_000
        nothing = self._timed(label, lambda: None)
        began = time.thread_time()
        for _ in range(calls):
            nothing()
        took = (time.thread_time() - began) / calls
        self._own_seconds = self.seconds[label] / calls
        self._around_seconds = took - self._own_seconds
        self.clear()

    def clear(self) -> None:
        """Forgets what was timed so far."""
        self.seconds.clear()
        self.calls.clear()

    def table(self, total_seconds: float, runs: int, steps: int) -> str:
        """Renders microseconds a run and a step, the largest first; what is in no part is the last line."""
        lines = [f"{'part':34}{'calls a run':>12}{'us a run':>10}{'us a step':>10}"]

        def add(name: str, calls: str, seconds: float) -> None:
            lines.append(f"{name:34}{calls:>12}{seconds * 1e6 / runs:10.1f}{seconds * 1e6 / steps:10.1f}")

        for label, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            add(label, f"{self.calls[label] / runs:.1f}", seconds)
        total_seconds -= sum(self.calls.values()) * (self._own_seconds + self._around_seconds)
        add("the rest: loop, driver, load", "", total_seconds - sum(self.seconds.values()))
        add("all, without the timing", "", total_seconds)
        lines += [f"not found: {place}" for place in self.missing]
        return "\n".join(lines)

    def around(
        self, label: str, function: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Wraps a coroutine function as one more part."""
        return self._timed_coroutine(label, function)

    def _wrap(self, label: str, place: str) -> None:
        module_name, _, path = place.partition(":")
        owner: Any = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        raw = inspect.getattr_static(owner, name, None)
        if raw is None:
            self.missing.append(place)
            return
        original = getattr(owner, name)
        timed = (
            self._timed_coroutine(label, original)
            if inspect.iscoroutinefunction(original)
            else self._timed(label, original)
        )
        setattr(owner, name, staticmethod(timed) if isinstance(raw, staticmethod) else timed)

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        seconds, calls, inside, clock = self.seconds, self.calls, self._inside, time.thread_time

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            calls[label] += 1
            inside.append(0.0)
            began = clock()
            try:
                return function(*arguments, **named)
            finally:
                took = clock() - began
                seconds[label] += took - inside.pop() - self._own_seconds
                if inside:
                    inside[-1] += took + self._around_seconds

        return timed

    def _timed_coroutine(
        self, label: str, function: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(function)
        async def timed(*arguments: Any, **named: Any) -> Any:
            return await _stepped(function(*arguments, **named), step)

        step = self._timed(label, lambda resume, value: resume(value))
        return timed


@coroutine
def _stepped(running: Coroutine[Any, Any, Any], step: Callable[..., Any]) -> Generator[Any, Any, Any]:
    """Runs a coroutine so that each of its turns goes through `step`."""
    resume: Callable[[Any], Any] = running.send
    value: Any = None
    while True:
        try:
            yielded = step(resume, value)
        except StopIteration as end:
            return end.value
        try:
            value = yield yielded
            resume = running.send
        except BaseException as error:  # it is the coroutine's own to see
            resume, value = running.throw, error
