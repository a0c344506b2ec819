"""Properties of the core: random graphs, random inputs in any order, and what must hold whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.plan import MAX_EVENTS, decide, queue_expire_time, step_expire_time
from orchestrator.domain.plan import decision as limits
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.workflow import Graph

from .generated import ANSWERS, FAILURES, graphs, without_timeouts
from .graphs import EVALUATION_FAILED, OUTPUT, Answers, FixedConditions, contents, replay
from .witness import Witness

START_TIME = 1_700_000_000_000_000

STEP = st.integers(0, 5)

DRAW = st.sampled_from([0.0, 0.5, 1.0])

DELAY = st.none() | st.sampled_from([0, 1, 10_000_000_000])

DRIVER_LIMIT = 1_000
"""Inputs within which a fair driver ends any of the small runs here."""


class Driven:
    """A run with its witness; every input is decided twice, on the run and on one rebuilt from the events."""

    def __init__(
        self, graph: Graph, holds: dict[int, bool | Failure], output: Payload | Failure | None, event_limit: int
    ) -> None:
        self.graph = graph
        self.answers = Answers(holds, output=output)
        self.run = Run(graph)
        self.conditions = FixedConditions(self.answers, self.run)
        self.witness = Witness(graph, holds, event_limit)
        self.now = START_TIME

    def give(self, given: inputs.Input) -> None:
        """Gives an input to the run, and checks everything that must hold of the decision."""
        rebuilt = replay(self.graph, self.witness.events)
        assert contents(rebuilt) == contents(self.run)
        twin = decide(rebuilt, given, self.now, FixedConditions(self.answers, rebuilt))
        if isinstance(given, inputs.Resumption):
            self.run = self.conditions.run = replay(self.graph, self.witness.events)
        decision = decide(self.run, given, self.now, self.conditions)
        assert twin == decision
        assert contents(rebuilt) == contents(self.run)
        self.witness.see(given, self.now, decision, self.run)
        for index, step in enumerate(self.run.steps):
            told = self.conditions.ended.get(index)
            assert told is (step.state if step.state in ENDED_BY_ITSELF else None)

    def submit(self, run_timeout_us: int) -> None:
        """Submits the run."""
        expire_time = self.now + run_timeout_us
        labels = ("untrusted",)
        self.give(
            inputs.Submission("order", "r1", expire_time, "ann", "grpc", "w", labels, {"k": "v"}, "t", "q", OUTPUT)
        )

    def admit(self, step: int) -> None:
        """Admits a step."""
        self.give(inputs.StepAdmitted(step, "worker", "worker:1"))

    def due(self) -> list[int]:
        """Returns the steps that wait and may start."""
        return sorted(index for index in self.witness.waiting if (self.run.steps[index].queue_time or 0) <= self.now)

    def running(self) -> list[tuple[int, int]]:
        """Returns the attempts under way whose calls are not queued again."""
        return [
            (index, step.attempt)
            for index, step in enumerate(self.run.steps)
            if step.state is StepState.RUNNING and index not in self.witness.waiting
        ]

    def next_timer(self) -> int:
        """Returns the next moment at which something is due: a start or a timeout."""
        times = [self.run.expire_time]
        for index, step in enumerate(self.run.steps):
            if step.state in (StepState.READY, StepState.RUNNING):
                times.append(step_expire_time(self.run, index))
            if step.state is StepState.READY:
                times += [step.queue_time or 0, queue_expire_time(self.run, index) or self.run.expire_time]
            if step.state is StepState.RUNNING:
                times.append(step.attempts[-1].expire_time)
        return min([time for time in times if time > self.now], default=self.now)

    def drive(self, answer: Callable[[int, int], inputs.Input | None]) -> None:
        """Does what an engine does until the run ends: starts what is due, answers calls, lets time pass.

        `answer` gives the outcome of a call, or None for a worker that is silent.
        """
        for _ in range(DRIVER_LIMIT):
            if self.run.ended:
                return
            for step in self.due():
                self.admit(step)
            for step, attempt in self.running():
                outcome = answer(step, attempt)
                if outcome is not None:
                    self.give(outcome)
            if not self.run.ended and not self.due():
                self.now = self.next_timer()
                for step in range(len(self.run.steps)):
                    self.give(inputs.TimeoutPassed(step))
                self.give(inputs.RunTimeoutPassed())
        raise AssertionError("the run does not end")


ENDED_BY_ITSELF = (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED)


def success(step: int, attempt: int) -> inputs.Input:
    """Returns the outcome of a call that succeeds."""
    return inputs.CallSucceeded(step, attempt, Payload("shop.v1.Output", b"%d" % step))


class RunMachine(RuleBasedStateMachine):
    """Any input at any time, stale and absurd ones among them; at the end a fair driver finishes the run."""

    driven: Driven

    @initialize(
        graph=graphs(),
        answers=st.dictionaries(STEP, ANSWERS),
        output=st.sampled_from([OUTPUT, None, EVALUATION_FAILED]),
        spare_events=st.sampled_from([0, 3, 10, 100_000]),
        seed=st.integers(0, 1_000),
        run_timeout_us=st.sampled_from([1_000_000, 3_600_000_000]),
        first=st.sampled_from([True, True, True, False]),
    )
    def begin(
        self,
        graph: Graph,
        answers: dict[int, bool | Failure],
        output: Payload | Failure | None,
        spare_events: int,
        seed: int,
        run_timeout_us: int,
        first: bool,
    ) -> None:
        limits.MAX_EVENTS = 3 + 3 * len(graph.steps) + spare_events
        self.random = random.Random(seed)
        self.run_timeout_us = run_timeout_us
        self.driven = Driven(graph, answers, output, limits.MAX_EVENTS)
        if first:
            self.driven.submit(run_timeout_us)

    @precondition(lambda self: self.driven.run.ended)
    @rule()
    def begin_again(self) -> None:
        driven = self.driven
        self.driven = Driven(driven.graph, driven.answers.holds, driven.answers.output, limits.MAX_EVENTS)
        self.driven.submit(self.run_timeout_us)

    @rule()
    def submit(self) -> None:
        self.driven.submit(self.run_timeout_us)

    @rule(step_us=st.sampled_from([-1, 0, 1, 1_000, 100_000, 1_000_000]))
    def let_time_pass(self, step_us: int) -> None:
        self.driven.now += step_us

    @precondition(lambda self: self.driven.run.sequence)
    @rule()
    def let_time_pass_to_the_next_timer(self) -> None:
        self.driven.now = self.driven.next_timer()

    @precondition(lambda self: self.driven.due())
    @rule(place=STEP)
    def admit_what_is_due(self, place: int) -> None:
        due = self.driven.due()
        self.driven.admit(due[place % len(due)])

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP)
    def succeed(self, place: int) -> None:
        running = self.driven.running()
        self.driven.give(success(*running[place % len(running)]))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, failure=FAILURES, delay_us=DELAY, draw=DRAW)
    def fail(self, place: int, failure: Failure, delay_us: int | None, draw: float) -> None:
        step, attempt = self.driven.running()[place % len(self.driven.running())]
        self.driven.give(inputs.CallFailed(step, attempt, failure, delay_us, draw))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP)
    def lose_the_stream(self, place: int) -> None:
        step, attempt = self.driven.running()[place % len(self.driven.running())]
        self.driven.give(inputs.CallLost(step, attempt))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, times=st.integers(1, 3))
    def admit_what_runs_already(self, place: int, times: int) -> None:
        running = self.driven.running()
        for _ in range(times):
            self.driven.admit(running[place % len(running)][0])

    @rule(step=STEP)
    def time_out(self, step: int) -> None:
        self.driven.give(inputs.TimeoutPassed(step % len(self.driven.graph.steps)))

    @rule(step=STEP)
    def open_the_circuit(self, step: int) -> None:
        self.driven.give(inputs.CircuitOpen(step % len(self.driven.graph.steps)))

    @rule()
    def resume(self) -> None:
        self.driven.give(inputs.Resumption())

    @precondition(lambda self: self.driven.running())
    @rule(times=st.integers(1, 3))
    def lose_the_owner_while_calls_are_under_way(self, times: int) -> None:
        for _ in range(times):
            self.driven.give(inputs.Resumption())
            for step in self.driven.due():
                self.driven.admit(step)

    @rule(
        kind=st.sampled_from(["admit", "succeed", "fail", "lose", "unbuildable", "run_timeout", "cancel"]),
        step=STEP,
        attempt=st.integers(-1, 4),
        failure=FAILURES,
    )
    def stray(self, kind: str, step: int, attempt: int, failure: Failure) -> None:
        step %= len(self.driven.graph.steps)
        match kind:
            case "admit":
                self.driven.admit(step)
            case "succeed":
                self.driven.give(success(step, attempt))
            case "fail":
                self.driven.give(inputs.CallFailed(step, attempt, failure, None, 0.0))
            case "lose":
                self.driven.give(inputs.CallLost(step, attempt))
            case "unbuildable":
                self.driven.give(inputs.RequestUnbuildable(step, EVALUATION_FAILED))
            case "run_timeout":
                self.driven.give(inputs.RunTimeoutPassed())
            case "cancel" if attempt == 0:
                self.driven.give(inputs.CancelRequest("", "ann"))

    def answer(self, step: int, attempt: int) -> inputs.Input | None:
        """Gives an outcome of a call, as the seed says."""
        chance = self.random.random()
        if chance < 0.5:
            return success(step, attempt)
        if chance < 0.6:
            return None
        if chance < 0.65:
            return inputs.CallLost(step, attempt)
        if chance < 0.7:
            return inputs.Resumption()
        failure = Failure(self.random.choice(list(Code)[1:]), "DECLINED", "no", Origin.WORKER)
        return inputs.CallFailed(step, attempt, failure, None, self.random.random())

    def teardown(self) -> None:
        try:
            if hasattr(self, "driven"):
                self.driven.submit(self.run_timeout_us)
                self.driven.drive(self.answer)
        finally:
            limits.MAX_EVENTS = MAX_EVENTS


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(max_examples=150, deadline=None)
@given(graphs().map(without_timeouts), st.dictionaries(STEP, st.booleans()))
def test_a_run_whose_calls_succeed_succeeds(graph: Graph, answers: dict[int, bool | Failure]) -> None:
    driven = Driven(graph, answers, OUTPUT, 100_000)
    driven.submit(1_000_000)
    driven.drive(success)
    assert driven.run.state is RunState.SUCCEEDED
    assert driven.run.output == OUTPUT
    for step, record in zip(graph.steps, driven.run.steps, strict=True):
        skipped = bool(step.handles) or (step.has_condition and answers.get(step.index) is False)
        assert record.state is (StepState.SKIPPED if skipped else StepState.SUCCEEDED)
        assert record.attempt == (0 if skipped else 1)


@settings(max_examples=100, deadline=None)
@given(graphs(), st.dictionaries(STEP, ANSWERS))
def test_a_run_whose_workers_are_silent_ends(graph: Graph, answers: dict[int, bool | Failure]) -> None:
    driven = Driven(graph, answers, OUTPUT, 100_000)
    driven.submit(5_000_000)
    driven.drive(lambda step, attempt: None)
    assert driven.run.ended
    assert driven.now <= driven.run.expire_time
