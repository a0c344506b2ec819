"""Runs for these tests, driven through the real core with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.inputs import (
    CallFailed,
    CallSucceeded,
    CancelRequest,
    CircuitOpen,
    Input,
    StepAdmitted,
    Submission,
)
from orchestrator.domain.plan import decide
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import FailureMatch, Graph, RetryPolicy, Step, Target
from orchestrator.engine.observer import NullObserver, Observer
from orchestrator.telemetry.ended import ended
from orchestrator.telemetry.span import Span
from orchestrator.telemetry.spans import spans_of

RUN_ID = UUID("01912d68-783e-7a03-8467-5661c1243ad4")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = TRACEPARENT[:-2] + "00"
SECRET = "4111-1111-1111-1111"
START = 1_760_000_000_000_000

RETRIED = RetryPolicy(FailureMatch(codes=frozenset({Code.UNAVAILABLE})), max_attempts=3, jitter=0.0)


def whole_run_spans(run: Run) -> list[Span]:
    """Every span of an ended run, such as one read back from the journal, sampled or not."""
    return spans_of(ended("default", RUN_ID, run, range(len(run.steps))))


def graph(waits: Mapping[str, tuple[str, ...]], fallback_of: str = "") -> Graph:
    """A graph of steps, each with the steps it waits for; `fallback_of` names one with a second target."""
    ids = list(waits)
    steps = []
    for index, (step, before) in enumerate(waits.items()):
        targets = [Target(f"shop.v1.{step.title()}Service/Do", RETRIED, repeatable=True)]
        if step == fallback_of:
            targets.append(Target("shop.v1.SpareService/Do", RETRIED, repeatable=True))
        successors = tuple(ids.index(other) for other, needs in waits.items() if step in needs)
        predecessors = tuple(ids.index(need) for need in before)
        steps.append(Step(index, step, tuple(targets), predecessors, successors))
    return Graph(tuple(steps))


CHAIN = graph({"reserve": (), "charge": ("reserve",), "ship": ("charge",)})
DIAMOND = graph({"split": (), "left": ("split",), "right": ("split",), "join": ("left", "right")})


class _NoConditions:
    def step_ended(self, step: int, state: StepState, failure: Failure | None, payload: Payload | None) -> None:
        pass

    def begun_anew(self, steps: Sequence[int]) -> None:
        pass

    def reopened(self) -> None:
        pass

    def holds(self, step: int) -> bool | Failure:
        return True

    def output(self) -> Payload | Failure | None:
        return None


class Story:
    """One run, told input by input. What is committed goes to `observer`, as the engine would tell it."""

    def __init__(self, of: Graph, observer: Observer | None = None, traceparent: str = TRACEPARENT) -> None:
        self.run = Run(of)
        self.now = START
        self.events: list[Event] = []
        self._observer = observer or NullObserver()
        self._ids = [step.id for step in of.steps]
        payload = Payload("shop.v1.Order", SECRET.encode())
        expire_time = START + 3_600_000_000
        attributes = {"card": SECRET}
        self.given(
            Submission("orders", "r1", expire_time, "ann", "grpc", "", (), attributes, traceparent, "q1", payload)
        )

    def given(self, given: Input) -> None:
        """Commits what follows from `given`."""
        events = decide(self.run, given, self.now, _NoConditions()).events
        self.events += events
        self._observer.committed("default", RUN_ID, self.run, events)

    def wait(self, milliseconds: float) -> Story:
        """Lets time pass."""
        self.now += int(milliseconds * 1_000)
        return self

    def start(self, step: str, address: str = "payments.internal:7001") -> Story:
        """Admits a queued step."""
        self.given(StepAdmitted(self._ids.index(step), f"{step}-worker", address))
        return self

    def succeed(self, step: str) -> Story:
        """Ends the running attempt with success."""
        index = self._ids.index(step)
        payload = Payload("shop.v1.Receipt", SECRET.encode())
        self.given(CallSucceeded(index, self.run.steps[index].attempt, payload))
        return self

    def fail(self, step: str, code: Code = Code.UNAVAILABLE) -> Story:
        """Ends the running attempt with a failure whose message must not be seen."""
        index = self._ids.index(step)
        failure = Failure(code, code.name, f"card {SECRET} was not taken", Origin.WORKER)
        self.given(CallFailed(index, self.run.steps[index].attempt, failure, None, 0.0))
        return self

    def open_circuit(self, step: str) -> Story:
        """Tells that all endpoints of a queued step have an open circuit."""
        self.given(CircuitOpen(self._ids.index(step)))
        return self

    def cancel(self) -> Story:
        """Cancels the run."""
        self.given(CancelRequest("no longer wanted", "ann"))
        return self


def told_chain(observer: Observer | None = None, traceparent: str = TRACEPARENT) -> Story:
    """Three steps one after the other; the queue of the second is visible, the others start at once."""
    story = Story(CHAIN, observer, traceparent).start("reserve").wait(12).succeed("reserve")
    story.wait(3).start("charge").wait(30).succeed("charge")
    return story.start("ship").wait(5).succeed("ship")
