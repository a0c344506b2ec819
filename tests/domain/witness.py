"""What must hold of every decision, checked from the events alone, with bookkeeping that is not the core's.

A `Witness` sees each decision of one run in order and keeps its own account of steps, attempts and deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, SkipReason
from orchestrator.domain.failures import MESSAGE_LIMIT_BYTES, Failure, Origin
from orchestrator.domain.inputs import CallFailed, CallLost, CallSucceeded, Input, Resumption
from orchestrator.domain.plan import NEVER_RETRIED, Decision
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import Delivery, Graph


@dataclass
class Account:
    """What the witness knows of a step."""

    state: str = "waits"
    attempt: int = 0
    target: int = 0
    of_target: int = 0
    delivery: int = 0
    expire_time: int = 0
    ready_time: int | None = None
    handled: bool = True
    unknown: bool = False


@dataclass
class Witness:
    """Checks the decisions of one run of `graph`; `answers` are those of its conditions."""

    graph: Graph
    answers: dict[int, bool | Failure]
    event_limit: int
    events: list[Event] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    chosen: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    expire_time: int = 0

    def __post_init__(self) -> None:
        self.accounts = [Account() for _ in self.graph.steps]

    def see(self, given: Input, now: int, decision: Decision, run: Run) -> None:
        """Checks one decision. `run` is how the run stands after it."""
        running = {(index, step.attempt) for index, step in enumerate(self.accounts) if step.state == "runs"}
        if isinstance(given, Resumption):
            self.waiting.clear()
        for event in decision.events:
            self._see_event(event, now)
        self._see_queue(given, decision, run)
        still = {(index, step.attempt) for index, step in enumerate(self.accounts) if step.state == "runs"}
        told = {(given.step, given.attempt)} if isinstance(given, CallSucceeded | CallFailed | CallLost) else set()
        assert len(set(decision.cancelled)) == len(decision.cancelled)
        assert set(decision.cancelled) <= running - still, "only calls under way are cancelled"
        if not isinstance(given, Resumption):
            assert running - still <= set(decision.cancelled) | told, "every call that no longer matters is cancelled"

    def _see_queue(self, given: Input, decision: Decision, run: Run) -> None:
        assert len(set(decision.queued)) == len(decision.queued), "nothing is queued twice"
        self.waiting |= set(decision.queued)
        for index in decision.queued:
            again = isinstance(given, Resumption | CallLost) and self.accounts[index].state == "runs"
            assert again or run.steps[index].state is StepState.READY
            account = self.accounts[index]
            if account.ready_time is None:
                # Queued for the first time: what it may start from is when it became ready.
                account.ready_time = run.steps[index].queue_time
        for index, step in enumerate(run.steps):
            if step.state is StepState.READY:
                assert index in self.waiting, "a ready step is queued, or it would wait for ever"
                assert step.queue_time is not None
                assert step.ready_time is not None
        if run.ended:
            assert not decision.queued
            assert all(step.state == "ended" for step in self.accounts)

    def _see_event(self, event: Event, now: int) -> None:
        assert not self.ended, "nothing follows a terminal event"
        assert event.sequence == len(self.events) + 1 <= self.event_limit
        assert event.time >= now
        if self.events:
            assert event.time > self.events[-1].time
        else:
            assert isinstance(event, ev.RunSubmitted)
        self.events.append(event)
        failure = getattr(event, "failure", None)
        if isinstance(failure, Failure):
            assert len(failure.message.encode()) <= MESSAGE_LIMIT_BYTES
        match event:
            case ev.RunSubmitted():
                self.expire_time = event.expire_time
            case ev.AttemptStarted():
                self._attempt_started(event)
            case ev.DeliveryStarted():
                self._delivery_started(event)
            case ev.AttemptFailed():
                self._attempt_failed(event, now)
            case ev.FallbackTaken():
                self._fallback_taken(event)
            case ev.StepSucceeded():
                assert self._end(event.step, "runs").attempt == event.attempt
            case ev.StepFailed():
                self._step_failed(event)
            case ev.StepSkipped():
                self._step_skipped(event)
            case ev.StepCancelled():
                self._end(event.step, "waits", "runs", "failed")
            case ev.RunSucceeded():
                assert all(step.state == "ended" and step.handled for step in self.accounts)
            case ev.RunFailed():
                self._run_failed(event, now)

    @property
    def ended(self) -> bool:
        """Whether a terminal event was seen."""
        return bool(self.events) and isinstance(self.events[-1], ev.RunSucceeded | ev.RunFailed | ev.RunCancelled)

    def _may_run(self, index: int) -> bool:
        """Tells whether the step was reached, chosen where it handles failures, and its condition held."""
        step = self.graph.steps[index]
        reached = all(self.accounts[before].state == "ended" for before in step.predecessors)
        chosen = not step.handles or index in self.chosen
        return reached and chosen and (not step.has_condition or self.answers.get(index, True) is True)

    def _attempt_started(self, event: ev.AttemptStarted) -> None:
        step, spec = self.accounts[event.step], self.graph.steps[event.step]
        assert step.state in ("waits", "failed")
        assert self._may_run(event.step)
        assert event.attempt == step.attempt + 1
        assert event.target == step.target
        step.state, step.attempt, step.delivery = "runs", event.attempt, 1
        step.of_target += 1
        target = spec.targets[step.target]
        assert step.of_target <= target.retry.max_attempts
        assert event.method == target.method
        assert event.expire_time <= self.expire_time
        assert target.attempt_timeout_us is None or event.expire_time <= event.time + target.attempt_timeout_us
        assert step.ready_time is not None
        assert event.ready_time >= step.ready_time
        step.expire_time = event.expire_time
        self.waiting.discard(event.step)

    def _delivery_started(self, event: ev.DeliveryStarted) -> None:
        step, spec = self.accounts[event.step], self.graph.steps[event.step]
        assert step.state == "runs"
        assert event.attempt == step.attempt
        assert event.delivery == step.delivery + 1 <= 3
        assert spec.delivery is Delivery.AT_LEAST_ONCE or spec.targets[step.target].repeatable
        timeout_us = spec.targets[step.target].attempt_timeout_us
        assert event.expire_time <= self.expire_time
        assert timeout_us is None or event.expire_time <= event.time + timeout_us
        step.delivery = event.delivery
        step.expire_time = event.expire_time
        self.waiting.discard(event.step)

    def _attempt_failed(self, event: ev.AttemptFailed, now: int) -> None:
        step, spec = self.accounts[event.step], self.graph.steps[event.step]
        assert step.state == "runs"
        assert event.attempt == step.attempt
        if event.failure.reason == "ATTEMPT_TIMEOUT":
            assert now >= step.expire_time, "no timeout passes early"
        at_most_once = spec.delivery is Delivery.AT_MOST_ONCE and not spec.targets[step.target].repeatable
        if event.retry_time is not None:
            assert event.retry_time >= event.time
            assert not (event.failure.outcome_unknown and at_most_once)
            assert event.failure.reason not in NEVER_RETRIED
            assert event.retry_time < self.expire_time
            assert step.ready_time is not None
            assert spec.step_timeout_us is None or event.retry_time < step.ready_time + spec.step_timeout_us
        step.state = "failed"
        step.unknown = event.failure.outcome_unknown and at_most_once

    def _fallback_taken(self, event: ev.FallbackTaken) -> None:
        step, spec = self.accounts[event.step], self.graph.steps[event.step]
        assert step.state in ("waits", "failed")
        assert self._may_run(event.step)
        assert not step.unknown, "a call that may have taken effect is not made in another way"
        passed = range(step.target + 1, event.target)
        assert not any(spec.targets[place].taken_for.matches(event.failure) for place in passed)
        assert step.target < event.target
        assert spec.targets[event.target].taken_for.matches(event.failure)
        step.target, step.of_target = event.target, 0

    def _step_failed(self, event: ev.StepFailed) -> None:
        spec = self.graph.steps[event.step]
        step = self._end(event.step, "waits", "failed")
        assert step.attempt == event.attempt
        branch = next((branch for branch in spec.on_failure if branch.match.matches(event.failure)), None)
        assert event.handled is (branch is not None)
        assert event.branch == (branch.step if branch else None)
        step.handled = event.handled
        if event.branch is not None:
            self.chosen.add(event.branch)

    def _step_skipped(self, event: ev.StepSkipped) -> None:
        spec = self.graph.steps[event.step]
        step = self._end(event.step, "waits")
        assert step.attempt == 0
        assert all(self.accounts[before].state == "ended" for before in spec.predecessors)
        not_chosen = bool(spec.handles) and event.step not in self.chosen
        assert event.reason is (SkipReason.BRANCH_NOT_TAKEN if not_chosen else SkipReason.CONDITION)
        assert not_chosen or (spec.has_condition and self.answers[event.step] is False)

    def _run_failed(self, event: ev.RunFailed, now: int) -> None:
        unhandled = [index for index, step in enumerate(self.accounts) if not step.handled]
        assert [self.graph.steps[index].id for index in unhandled] == ([event.failure.step] if unhandled else [])
        if event.failure.reason == "RUN_TIMEOUT" and not unhandled:
            assert now >= self.expire_time, "no timeout passes early"
        if event.failure.origin is Origin.TIMEOUT and now >= self.expire_time:
            assert event.failure.reason == "RUN_TIMEOUT", "the run's time goes before that of its steps"

    def _end(self, index: int, *states: str) -> Account:
        step = self.accounts[index]
        assert step.state in states
        step.state = "ended"
        self.waiting.discard(index)
        return step
