"""What must hold of every decision, checked from the events alone, with bookkeeping that is not the core's.

A `Witness` sees each decision of one run in order and keeps its own accounts of steps, attempts and deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.domain import events as ev
from orchestrator.domain import inputs
from orchestrator.domain.events import Event, SkipReason
from orchestrator.domain.failures import MESSAGE_LIMIT_BYTES, Failure, Origin
from orchestrator.domain.inputs import Input, Resumption
from orchestrator.domain.plan import MAX_DELIVERIES, NEVER_RETRIED, Decision
from orchestrator.domain.retry import backoff_us
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import Graph, StepRole

from .accounts import STANDS, Account, Accounts, Stand
from .graphs import Answers
from .witness_waits import Waits

TOLD = inputs.CallSucceeded | inputs.CallFailed | inputs.CallLost | inputs.CallSuspended


@dataclass
class Witness:
    """Checks the decisions of one run of `graph`."""

    graph: Graph
    answers: Answers
    event_limit: int
    events: list[Event] = field(default_factory=list)
    queued: set[int] = field(default_factory=set)
    watched: set[int] = field(default_factory=set)
    undoing: ev.RunUndoing | None = None
    undone_before: ev.RunUndoing | None = None

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.graph, self.answers)
        self.waits = Waits(self.accounts)
        self.shadow = Run(self.graph)
        self.paused = False

    def see(self, given: Input, now: int, decision: Decision, run: Run) -> None:
        """Checks one decision. `run` is how the run stands after it."""
        running = self._running()
        if isinstance(given, Resumption):
            self.queued.clear()
            self.watched.clear()
        for event in decision.events:
            self._see_event(event, given, now)
        self._see_stands(decision, run)
        self._see_queue(given, decision, run)
        self._see_cancellations(decision)
        left = running - self._running()
        told = {(given.step, given.attempt)} if isinstance(given, TOLD) else set()
        assert len(set(decision.cancelled)) == len(decision.cancelled)
        assert set(decision.cancelled) <= left, "only calls under way are cancelled"
        if not isinstance(given, Resumption):
            assert left <= set(decision.cancelled) | told, "every call that no longer matters is cancelled"

    def _running(self) -> set[tuple[int, int]]:
        return {(step.index, step.attempt) for step in self.accounts.all if step.stand is Stand.RUNS}

    def _see_stands(self, decision: Decision, run: Run) -> None:
        """Checks that the run stands as its events tell, and that what has its turn, and nothing else, is ready."""
        assert len(run.steps) == len(self.accounts.all)
        for account, step in zip(self.accounts.all, run.steps, strict=True):
            account.ready_time = step.ready_time
        for account, step in zip(self.accounts.all, run.steps, strict=True):
            assert account.id == step.spec.id
            assert STANDS[step.state] is account.stand
            assert step.wait == account.wait
            if account.stand is Stand.WAITS and run.sequence:
                assert (step.state is StepState.READY) is self.accounts.has_its_turn(account.index)
            if account.spec.map is not None and account.role is StepRole.WORKFLOW:
                begun = [run.steps[item].state not in (StepState.BLOCKED, *ENDED) for item in account.children]
                assert sum(begun) <= account.spec.map.max_parallel, "so many items are open at a time"
        assert run.unfinished == sum(not account.ended for account in self.accounts.all)

    def _see_queue(self, given: Input, decision: Decision, run: Run) -> None:
        assert len(set(decision.queued)) == len(decision.queued), "nothing is queued twice"
        assert len(set(decision.waiting)) == len(decision.waiting)
        self.queued |= set(decision.queued)
        self.watched |= set(decision.waiting)
        for index in decision.queued:
            again = isinstance(given, Resumption | inputs.CallLost) and self.accounts[index].stand is Stand.RUNS
            assert again or run.steps[index].state is StepState.READY
        for index in decision.waiting:
            assert run.steps[index].state is StepState.WAITING
        for index, step in enumerate(run.steps):
            if step.state is StepState.READY:
                assert index in self.queued, "a ready step is queued, or it would wait for ever"
                assert step.queue_time is not None
                assert step.ready_time is not None
            elif step.state is StepState.WAITING:
                assert index in self.watched, "a waiting step is watched, or it would wait for ever"
        if run.ended:
            assert not decision.queued
            assert not decision.waiting
            assert all(step.ended for step in self.accounts.all)

    def _see_cancellations(self, decision: Decision) -> None:
        """A step is cancelled with the run, or with one that it belongs to: where that succeeds, unless handed over."""
        with_run = any(isinstance(event, ev.RunUndoing | ENDS_OF_RUNS) for event in decision.events)
        ended = {event.step for event in decision.events if isinstance(event, ENDS_OF_STEPS)}
        for event in decision.events:
            if isinstance(event, ev.StepCancelled) and not with_run:
                step = self.accounts[event.step]
                above = self.accounts.lineage(event.step)[1:]
                failed = any(place in ended and self.accounts[place].stand is Stand.FAILED for place in above)
                left = not step.detached and step.parent in ended
                left |= any(place in ended and self.accounts[place].stand is Stand.CANCELLED for place in above)
                assert failed or left

    def _see_event(self, event: Event, given: Input, now: int) -> None:
        reopened = isinstance(event, ev.RunReopened)
        assert self.ended is reopened, "nothing follows a terminal event, but another round"
        assert event.sequence == len(self.events) + 1 <= self.event_limit
        assert event.time >= now
        if self.events:
            assert event.time > self.events[-1].time
        else:
            assert isinstance(event, ev.RunSubmitted)
        self.events.append(event)
        self.shadow.apply(event)
        failure = getattr(event, "failure", None)
        if isinstance(failure, Failure):
            assert len(failure.message.encode()) <= MESSAGE_LIMIT_BYTES
        match event:
            case ev.RunSubmitted():
                self.accounts.run_expire_time = event.expire_time
            case ev.AttemptStarted():
                self._attempt_started(event)
            case ev.DeliveryStarted():
                self._delivery_started(event)
            case ev.AttemptFailed():
                self._attempt_failed(event, given, now)
            case ev.FallbackTaken():
                self._fallback_taken(event)
            case ev.StepSucceeded():
                self._step_succeeded(event, given, now)
            case ev.StepFailed():
                self._step_failed(event, given, now)
            case ev.StepSkipped():
                self._step_skipped(event, given)
            case ev.StepCancelled():
                self._end(event.step, event, Stand.CANCELLED)
            case ev.RunUndoing():
                self._run_undoing(event, given, now)
            case ev.StepRetried():
                self._step_retried(event, given)
            case ev.RunPaused() | ev.RunResumed():
                assert self.paused is isinstance(event, ev.RunResumed)
                self.paused = not self.paused
            case ev.RunReopened():
                self._run_reopened(event, given)
            case ev.RunSucceeded() | ev.RunFailed() | ev.RunCancelled():
                self._run_ended(event, given, now)
            case _:
                self.waits.see(event, given, now)

    @property
    def ended(self) -> bool:
        """Whether a terminal event was seen."""
        return bool(self.events) and isinstance(self.events[-1], ENDS_OF_RUNS)

    # --- attempts

    def _attempt_started(self, event: ev.AttemptStarted) -> None:
        step = self.accounts[event.step]
        assert step.stand is Stand.WAITS
        assert self.accounts.may_call(event.step)
        assert not self.paused, "no attempt of a paused run starts"
        assert event.attempt == step.attempt + 1
        assert event.target == step.target
        step.stand, step.attempt, step.delivered, step.handed_over = Stand.RUNS, event.attempt, 1, 0
        step.of_target += 1
        target = step.targets[step.target]
        assert step.of_target <= target.retry.max_attempts
        assert event.method == target.method
        assert step.ready_time is not None
        assert event.ready_time >= step.ready_time
        assert step.hurried_time in (None, event.ready_time), "nothing is to be waited for any more"
        step.hurried_time = None
        self._see_deadline(step, event.time, event.expire_time)

    def _delivery_started(self, event: ev.DeliveryStarted) -> None:
        step = self.accounts[event.step]
        assert step.stand is Stand.RUNS
        assert event.attempt == step.attempt
        step.handed_over += event.handed_over
        assert event.delivery == step.delivered + 1
        assert event.delivery - step.handed_over <= MAX_DELIVERIES
        assert step.repeatable
        step.delivered = event.delivery
        self._see_deadline(step, event.time, event.expire_time)

    def _see_deadline(self, step: Account, time: int, expire_time: int) -> None:
        timeout_us = step.targets[step.target].attempt_timeout_us
        limit = self.accounts.limit(step.index, time)
        assert expire_time == (limit if timeout_us is None else min(limit, time + timeout_us))
        step.expire_time = expire_time
        self.queued.discard(step.index)

    def _attempt_failed(self, event: ev.AttemptFailed, given: Input, now: int) -> None:
        step = self.accounts[event.step]
        assert step.stand is Stand.RUNS
        assert event.attempt == step.attempt
        if event.failure.reason == "ATTEMPT_TIMEOUT":
            assert now >= step.expire_time, "no timeout passes early"
        at_most_once = not step.repeatable
        if event.retry_time is not None:
            assert event.retry_time >= event.time
            assert not (event.failure.outcome_unknown and at_most_once)
            assert event.failure.reason not in NEVER_RETRIED
            assert event.retry_time < self.accounts.limit(event.step, event.time)
        if isinstance(given, inputs.CallFailed) and given.step == event.step:
            assert event.retry_time == self._retry_time(step, event, given)
        step.stand = Stand.WAITS
        step.due_time = event.retry_time or 0
        step.unknown = event.failure.outcome_unknown and at_most_once

    def _retry_time(self, step: Account, event: ev.AttemptFailed, given: inputs.CallFailed) -> int | None:
        """Returns when a failed call is to be tried again; None for not."""
        policy, failure = step.targets[step.target].retry, given.failure
        if (failure.outcome_unknown and not step.repeatable) or failure.reason in NEVER_RETRIED:
            return None
        if not policy.retryable.matches(failure) or step.of_target >= policy.max_attempts:
            return None
        wait_us = max(backoff_us(policy, step.of_target, given.jitter_draw), given.retry_delay_us or 0)
        retry_time = event.time + wait_us
        return retry_time if retry_time < self.accounts.limit(event.step, event.time) else None

    def _fallback_taken(self, event: ev.FallbackTaken) -> None:
        step = self.accounts[event.step]
        assert step.stand is Stand.WAITS
        assert self.accounts.may_call(event.step)
        assert not step.unknown, "a call that may have taken effect is not made in another way"
        passed = range(step.target + 1, event.target)
        assert not any(step.targets[place].taken_for.matches(event.failure) for place in passed)
        assert step.target < event.target
        assert step.targets[event.target].taken_for.matches(event.failure)
        step.target, step.of_target = event.target, 0

    # --- ends

    def _step_succeeded(self, event: ev.StepSucceeded, given: Input, now: int) -> None:
        step = self.accounts[event.step]
        assert step.attempt == event.attempt
        assert not self.accounts.open_below(event.step, handed_over=False), "what was not handed over ends before it"
        if event.substituted_by:
            self._see_substitution(event.step, given)
            step.own_undo = False
        elif step.stand is Stand.IDLES:
            self.waits.succeed(step, event, given, now)
        else:
            assert step.stand is Stand.RUNS
            assert given == inputs.CallSucceeded(event.step, event.attempt, event.payload)  # type: ignore[arg-type]
        self._end(event.step, event, Stand.SUCCEEDED)

    def _step_failed(self, event: ev.StepFailed, given: Input, now: int) -> None:
        step = self.accounts[event.step]
        assert step.stand in (Stand.WAITS, Stand.IDLES)
        assert step.attempt == event.attempt
        assert not self.accounts.open_below(event.step, handed_over=True), "what belongs to it ends before it"
        self.waits.fail(step, event, given, now)
        is_of_workflow = step.role is StepRole.WORKFLOW
        branches = step.spec.on_failure if is_of_workflow else ()
        branch = next((branch for branch in branches if branch.match.matches(event.failure)), None)
        fatal = branch is None and (is_of_workflow or step.detached) and not self.accounts.undoing
        assert event.handled is not fatal
        assert event.branch == (branch.step if branch else None)
        step.handled, step.branch = event.handled, event.branch
        if event.branch is not None:
            self.accounts.chosen.add(event.branch)
        self._end(event.step, event, Stand.FAILED)

    def _step_skipped(self, event: ev.StepSkipped, given: Input) -> None:
        step = self.accounts[event.step]
        if event.skipped_by:
            assert event.reason is SkipReason.REQUESTED
            assert not self.accounts.open_below(event.step, handed_over=True)
            self._see_substitution(event.step, given)
            self._end(event.step, event, Stand.SKIPPED)
            return
        assert step.stand is Stand.WAITS
        assert step.role is StepRole.WORKFLOW
        assert step.attempt == step.earlier
        assert self.accounts.has_its_turn(event.step)
        not_chosen = bool(step.spec.handles) and event.step not in self.accounts.chosen
        assert event.reason is (SkipReason.BRANCH_NOT_TAKEN if not_chosen else SkipReason.CONDITION)
        assert not_chosen or (step.spec.has_condition and self.answers.holds[event.step] is False)
        self._end(event.step, event, Stand.SKIPPED)

    def _end(self, index: int, event: Event, stand: Stand) -> None:
        step = self.accounts[index]
        assert not step.ended
        self.waits.left(step)
        step.stand, step.wait, step.end_time = stand, None, event.time
        if step.role is StepRole.DELEGATED:
            self.waits.child_ended(step)
        self.queued.discard(index)

    def _see_substitution(self, index: int, given: Input) -> None:
        wish = given.substitution if isinstance(given, inputs.Reopening) else given
        wish = wish.substitution if isinstance(wish, inputs.StepRetry) else wish
        assert isinstance(wish, inputs.Substitution)
        assert self.shadow.steps[index].spec.id == self.accounts[index].id
        assert isinstance(given, inputs.Reopening) or wish.step == index

    def _step_retried(self, event: ev.StepRetried, given: Input) -> None:
        """Checks that a step is tried that can be, and opens accounts anew."""
        step = self.accounts[event.step]
        assert isinstance(given, inputs.StepRetry)
        assert given.step == event.step
        if not event.reset:
            places = [self.accounts[place] for place in self.accounts.below(event.step)]
            due = [one for one in places if one.stand is Stand.WAITS and one.due_time > event.time]
            assert due, "only what waits for its time is tried now"
            assert not step.ended
            for one in due:
                one.due_time, one.hurried_time = 0, event.time
            return
        assert not self.accounts.undoing
        assert step.role is StepRole.WORKFLOW
        assert step.ended
        assert not self.accounts.open_below(event.step, handed_over=True)
        after = self.accounts.dependents(event.step)
        assert set(event.reset) == after, "what depends on it begins anew with it, and nothing else"
        assert not any(self.accounts.has_begun(other) for other in after - {event.step}), "nothing done is forgotten"
        to_undo = self._to_undo()
        self.accounts.begin_anew(event.step)
        assert self._to_undo() == to_undo, "what may have to be taken back is not forgotten"
        self.waits.keys = {key for key in self.waits.keys if not self._was_left(*key)}
        self.queued -= after

    def _was_left(self, parent: int, key: str) -> bool:
        name = f"{self.accounts[parent].id}/{key}"
        return any(step.dropped and step.id == name for step in self.accounts.all)

    def _run_reopened(self, event: ev.RunReopened, given: Input) -> None:
        """Checks what is kept, and opens the accounts of the next round."""
        before, reset = self.accounts, set(event.reset)
        assert isinstance(given, inputs.Reopening)
        undo = [step for step in before.all if step.role is StepRole.UNDO and step.attempt and not given.undo]
        attempted = {before[step.parent].id for step in undo}
        known = {step.id: step for step in before.all}
        assert event.round == self.shadow.round
        assert before.run_expire_time or event.expire_time
        after = Accounts(self.graph, self.answers)
        after.take_over(before, self.shadow)
        for step in after.all:
            assert step.kept or step.role is not StepRole.WORKFLOW or step.id in reset
            if step.kept and step.role is not StepRole.UNDO:
                assert step.id not in reset
                old = known[step.id]
                assert old.stand is step.stand
                assert step.id not in attempted or step.stand is not Stand.SUCCEEDED, "what may be undone is not kept"
                assert given.undo or step.stand is not Stand.CANCELLED or step.parent >= 0
            elif step.id in known:
                assert step.attempt == known[step.id].attempt, "attempts are counted on"
        self.accounts, self.undone_before, self.undoing, self.paused = after, self.undoing, None, False
        self.waits.take_over(after, self.shadow)
        self.queued.clear()
        self.watched.clear()

    def _to_undo(self) -> list[int]:
        done = [step for step in self.accounts.all if step.own_undo and step.stand is Stand.SUCCEEDED]
        done = [step for step in done if not step.dropped]
        return [step.index for step in sorted(done, key=lambda step: -step.end_time)]

    def _run_undoing(self, event: ev.RunUndoing, given: Input, now: int) -> None:
        assert self.undoing is None, "a run is undone once"
        assert all(step.ended for step in self.accounts.all)
        assert event.steps
        if isinstance(given, inputs.Reopening) and given.undo:
            before = self.undone_before
            assert before is not None
            told = (event.failure, event.reason, event.principal)
            assert told == (before.failure, before.reason, before.principal), "it ends as it was going to"
            assert [index for index in self._to_undo() if index in event.steps] == list(event.steps)
            self._begin_undoing(event)
            return
        assert list(event.steps) == self._to_undo(), "each step that succeeded, the one that ended last first"
        if event.failure is not None:
            self._see_failure(event.failure, given, now)
        else:
            assert given == inputs.CancelRequest(event.reason, event.principal)
        self._begin_undoing(event)

    def _begin_undoing(self, event: ev.RunUndoing) -> None:
        self.undoing, self.accounts.undoing = event, True
        for number, index in enumerate(event.steps):
            self.accounts.add_undo(index, number)

    def _run_ended(self, event: ev.RunSucceeded | ev.RunFailed | ev.RunCancelled, given: Input, now: int) -> None:
        assert all(step.ended for step in self.accounts.all)
        if isinstance(event, ev.RunSucceeded):
            assert self.undoing is None
            assert all(step.handled for step in self.accounts.all)
            assert all(step.stand is not Stand.CANCELLED or step.parent >= 0 for step in self.accounts.all)
        elif self.undoing is not None:
            failure = event.failure if isinstance(event, ev.RunFailed) else None
            assert failure == self.undoing.failure, "a run that was undone ends as it was going to"
        else:
            assert not self._to_undo(), "what can be undone is undone"
            if isinstance(event, ev.RunFailed):
                self._see_failure(event.failure, given, now)

    def _see_failure(self, failure: Failure, given: Input, now: int) -> None:
        unhandled = [step.id for step in self.accounts.all if not step.handled]
        assert unhandled == ([failure.step] if unhandled else [])
        if failure.reason == "RUN_TIMEOUT" and not unhandled:
            assert now >= self.accounts.run_expire_time, "no timeout passes early"
        is_of_time = isinstance(given, inputs.TimeoutPassed | inputs.RunTimeoutPassed)
        if is_of_time and failure.origin is Origin.TIMEOUT and now >= self.accounts.run_expire_time:
            assert failure.reason == "RUN_TIMEOUT", "the run's time goes before that of its steps"


ENDED = (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED)

ENDS_OF_STEPS = ev.StepSucceeded | ev.StepFailed | ev.StepSkipped | ev.StepCancelled

ENDS_OF_RUNS = ev.RunSucceeded | ev.RunFailed | ev.RunCancelled
