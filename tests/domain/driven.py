"""A run that is driven with a witness, and what drives it: inputs by hand, or an engine's work until the run ends."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.plan import decide, queue_expire_time, step_expire_time, wait_due_time
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.waits import ApprovalAwaited, RunAwaited, SignalAwaited
from orchestrator.domain.workflow import Graph, StepRole

from .graphs import OUTPUT, Answers, FixedConditions, contents, replay
from .witness import Witness

START_TIME = 1_700_000_000_000_000

DRIVER_LIMIT = 2_000
"""Rounds within which a fair driver ends any of the small runs here."""

ENDED_BY_ITSELF = (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED)

OPEN = (StepState.READY, StepState.RUNNING, StepState.WAITING)

Answering = Callable[[int, int], inputs.Input | None]
"""Gives the outcome of a call (a step and its attempt), or None for a worker that is silent."""

Waking = Callable[[int], inputs.Input | None]
"""Gives what a waiting step waits for, or None."""


class Driven:
    """A run with its witness; every input is decided twice, on the run and on one rebuilt from the events."""

    def __init__(self, graph: Graph, answers: Answers, event_limit: int) -> None:
        self.graph = graph
        self.answers = answers
        self.run = Run(graph)
        self.conditions = FixedConditions(answers, self.run)
        self.witness = Witness(graph, answers, event_limit)
        self.now = START_TIME

    def give(self, given: inputs.Input) -> None:
        """Gives an input to the run, and checks everything that must hold of the decision."""
        rebuilt = replay(self.graph, self.witness.events)
        assert contents(rebuilt) == contents(self.run)
        twin_conditions = FixedConditions(self.answers, rebuilt)
        twin = decide(rebuilt, given, self.now, twin_conditions)
        if isinstance(given, inputs.Resumption):
            self.run = self.conditions.run = replay(self.graph, self.witness.events)
        decision = decide(self.run, given, self.now, self.conditions)
        assert twin == decision
        assert contents(rebuilt) == contents(self.run)
        self.witness.see(given, self.now, decision, self.run)
        for index, step in enumerate(self.run.steps):
            told = self.conditions.ended.get(index)
            is_kept_undo = step.spec.role is StepRole.UNDO and told is None
            was_dropped = index in self.run.dropped
            assert is_kept_undo or was_dropped or told is (step.state if step.state in ENDED_BY_ITSELF else None)

    def submit(self, run_timeout_us: int) -> None:
        """Submits the run."""
        expire_time = self.now + run_timeout_us
        labels = ("untrusted",)
        self.give(
            inputs.Submission("order", "r1", expire_time, "ann", "grpc", "w", labels, {"k": "v"}, "t", "q", OUTPUT)
        )

    def reopen(self, again: list[int], substituted: int | None, payload: Payload | None, *, undo: bool) -> None:
        """Reopens the run: with these steps of the workflow begun anew, or with the undo calls that failed."""
        count = len(self.graph.steps)
        places = [index % count for index in again]
        substitution = None
        if substituted is not None:
            places.append(substituted % count)
            substitution = inputs.Substitution(substituted % count, OUTPUT, "bob")
        failed = [self.run.steps[index] for index in self.run.undone]
        parents = tuple(step.spec.parent for step in failed if undo and step.state is StepState.FAILED)
        substitution = None if parents else substitution
        expire_time = self.now + 3_600_000_000
        self.give(inputs.Reopening(tuple(places), parents, substitution, "r1", expire_time, "bob", "again", payload))

    def admit(self, step: int, *, handed_over: bool = False) -> None:
        """Admits a step."""
        self.give(inputs.StepAdmitted(step, "worker", "worker:1", handed_over=handed_over))

    def due(self) -> list[int]:
        """Returns the steps that are queued and may start."""
        if self.run.paused:
            return [
                index
                for index, step in enumerate(self.run.steps)
                if index in self.witness.queued and step.state is StepState.RUNNING
            ]
        return sorted(index for index in self.witness.queued if (self.run.steps[index].queue_time or 0) <= self.now)

    def running(self) -> list[tuple[int, int]]:
        """Returns the attempts under way whose calls are not queued again."""
        return [
            (index, step.attempt)
            for index, step in enumerate(self.run.steps)
            if step.state is StepState.RUNNING and index not in self.witness.queued
        ]

    def waiting(self) -> list[int]:
        """Returns the steps that wait for somebody or something outside the run."""
        outside = (SignalAwaited, ApprovalAwaited, RunAwaited)
        return [index for index, step in enumerate(self.run.steps) if isinstance(step.wait, outside)]

    def keys(self, step: int) -> list[str]:
        """Returns the keys that a step has delegated under."""
        children = self.run.steps[step].children or ()
        found = [self.run.steps[child].delegated for child in children]
        return [delegated.key for delegated in found if delegated is not None]

    def next_timer(self) -> int:
        """Returns the next moment at which something is due: a start, a timeout, or the end of a wait."""
        times = [] if self.run.state is RunState.UNDOING else [self.run.expire_time]
        for index, step in enumerate(self.run.steps):
            if step.state in OPEN:
                times.append(step_expire_time(self.run, index))
            if step.state is StepState.READY:
                times += [step.queue_time or 0, queue_expire_time(self.run, index) or 0]
            elif step.state is StepState.RUNNING:
                times.append(step.attempts[-1].expire_time)
            elif step.state is StepState.WAITING:
                times.append(wait_due_time(self.run, index) or 0)
        return min([time for time in times if time > self.now], default=self.now)

    def drive(self, answer: Answering, wake: Waking) -> None:
        """Does what an engine does until the run ends: starts what is due, answers calls, wakes what waits, lets time
        pass."""
        for _ in range(DRIVER_LIMIT):
            if self.run.ended:
                return
            before = self.run.sequence
            for step in self.due():
                self.admit(step)
            for step, attempt in self.running():
                self._give(answer(step, attempt))
            for step in self.waiting():
                if step in self.waiting():
                    self._give(wake(step))
            # Also where something is due that the core does not let start, such as a redelivery of what was sent too
            # often by then: an engine watches its time too.
            if self.run.sequence == before:
                self.now = self.next_timer()
                for step in range(len(self.run.steps)):
                    self.give(inputs.TimeoutPassed(step))
                self.give(inputs.RunTimeoutPassed())
        raise AssertionError("the run does not end")

    def _give(self, given: inputs.Input | None) -> None:
        if given is not None:
            self.give(given)

    def wake(self, step: int) -> inputs.Input | None:
        """Gives what a waiting step waits for."""
        match self.run.steps[step].wait:
            case SignalAwaited() as wait:
                return inputs.Signal(wait.signal, "ann", "", OUTPUT)
            case ApprovalAwaited() as wait:
                return inputs.Decided(step, wait.request_hash, True, "bob", "")
            case RunAwaited() as wait:
                return inputs.ChildRunEnded(step, wait.run_id, None, OUTPUT)
        return None


def success(step: int, attempt: int) -> inputs.Input:
    """Returns the outcome of a call that succeeds."""
    return inputs.CallSucceeded(step, attempt, Payload("shop.v1.Output", b"%d" % step))


def silent(*_: int) -> None:
    """Answers and wakes nothing."""
