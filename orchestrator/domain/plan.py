"""What next? The only place that answers it.

`decide` takes a run and one input and gives the events to journal; it folds them into the run as it goes, so that it
costs O(affected steps). It is deterministic: the same run, input, time and conditions give the same decision. Nothing
here waits, reads a clock, draws a random number or does I/O. The effects of a decision (calls, cancellations, answers)
are the engine's, after the commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, Payload, SkipReason
from orchestrator.domain.failures import Code, Failure, Origin, cut_message
from orchestrator.domain.inputs import (
    Abandonment,
    CallFailed,
    CallLost,
    CallSucceeded,
    CancelRequest,
    CircuitOpen,
    Input,
    RequestUnbuildable,
    Resumption,
    RunTimeoutPassed,
    StepAdmitted,
    Submission,
    TimeoutPassed,
)
from orchestrator.domain.retry import backoff_us
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.domain.workflow import Delivery, FailureBranch

MAX_DELIVERIES = 3
"""Sendings of one attempt; an attempt that was sent so often without an answer fails."""

MAX_EVENTS = 100_000
"""Events of one run."""

NEVER_RETRIED = frozenset(
    {"DELIVERY_LIMIT", "OUTCOME_UNKNOWN", "STEP_TIMEOUT", "EVALUATION_FAILED", "PAYLOAD_TOO_LARGE", "INVALID_OUTPUT"}
)
"""Reasons that no retry policy tries again."""


class Conditions(Protocol):
    """What the core needs to know of a run's data, which it does not hold. Answers must not change between calls."""

    def step_ended(self, step: int, state: StepState, failure: Failure | None) -> None:
        """Takes note that a step has ended, so that later answers can depend on it."""
        ...

    def holds(self, step: int) -> bool | Failure:
        """Evaluates the `when` of a step whose predecessors have all ended."""
        ...

    def output(self) -> Payload | Failure | None:
        """Builds the output of a run whose steps have all ended."""
        ...


@dataclass(slots=True)
class Decision:
    """Events to journal, in order; steps that were queued (Run.steps[i].queue_time says when they may start); and
    attempts whose calls are to be cancelled after the commit."""

    events: list[Event] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    cancelled: list[tuple[int, int]] = field(default_factory=list)


def decide(run: Run, given: Input, now: int, conditions: Conditions) -> Decision:
    """Decides what follows from one input at the time `now`. An input that does not matter, or no longer,
    gives no events: only a submission begins a run, and only one."""
    planner = _Planner(run, now, conditions)
    if not run.ended and isinstance(given, Submission) is (run.sequence == 0):
        planner.take(given)
    return planner.decision


def step_expire_time(run: Run, step: int) -> int:
    """Returns when a step that has been ready fails unless it has ended: by its own timeout or the run's."""
    timeout, ready_time = run.graph.steps[step].step_timeout_us, run.steps[step].ready_time
    if timeout is None or ready_time is None:
        return run.expire_time
    return min(run.expire_time, ready_time + timeout)


def redelivery_expire_time(run: Run, step: int, now: int) -> int:
    """Returns until when a running step that was queued at `now` for redelivery may wait for it."""
    return max(run.steps[step].attempts[-1].expire_time, _attempt_expire_time(run, step, now))


def _attempt_expire_time(run: Run, step: int, time: int) -> int:
    timeout = run.graph.steps[step].targets[run.steps[step].target].attempt_timeout_us
    return run.expire_time if timeout is None else min(run.expire_time, time + timeout)


def queue_expire_time(run: Run, step: int) -> int | None:
    """Returns when a queued step fails unless an attempt has started; None without a queue timeout."""
    timeout, queue_time = run.graph.steps[step].queue_timeout_us, run.steps[step].queue_time
    if timeout is None or queue_time is None:
        return None
    return queue_time + timeout


def _timeout(reason: str, message: str, *, outcome_unknown: bool = False) -> Failure:
    return Failure(Code.DEADLINE_EXCEEDED, reason, message, Origin.TIMEOUT, outcome_unknown=outcome_unknown)


class _Planner:
    """Builds one decision. Every `_emit` folds its event into the run before the next is decided."""

    __slots__ = ("conditions", "decision", "now", "released", "run")

    def __init__(self, run: Run, now: int, conditions: Conditions) -> None:
        self.run = run
        self.now = now
        self.conditions = conditions
        self.decision = Decision()
        self.released: list[int] = []

    def take(self, given: Input) -> None:
        match given:
            case Submission():
                self._submit(given)
            case StepAdmitted():
                self._admit(given)
            case CallSucceeded():
                self._succeed(given)
            case CallFailed():
                if self.run.is_current(given.step, given.attempt):
                    self._fail_attempt(given.step, given.failure, given.retry_delay_us, given.jitter_draw)
            case CircuitOpen():
                self._circuit_open(given.step)
            case RequestUnbuildable():
                ready = self.run.steps[given.step].state is StepState.READY
                if ready and not self._take_fallback(given.step, given.failure):
                    self._fail_step(given.step, given.failure)
            case CallLost():
                if self.run.is_current(given.step, given.attempt):
                    self._interrupt(given.step, "the stream to its worker was lost")
            case Resumption():
                self._resume()
            case TimeoutPassed():
                self._time_out_step(given.step)
            case RunTimeoutPassed():
                if self.now >= self.run.expire_time:
                    self._fail_run(_timeout("RUN_TIMEOUT", "the run's time was over"))
            case Abandonment():
                self._fail_run(given.failure)
            case CancelRequest():
                self._cancel_run(given)
        self._settle()

    # --- the inputs

    def _submit(self, given: Submission) -> None:
        sequence, time = self._stamp()
        self._emit(
            ev.RunSubmitted(
                sequence,
                time,
                given.workflow,
                given.revision,
                given.expire_time,
                given.principal,
                given.channel,
                given.workspace,
                given.labels,
                given.attributes,
                given.traceparent,
                given.request_id,
                given.payload,
            )
        )

    def _admit(self, given: StepAdmitted) -> None:
        step = self.run.steps[given.step]
        again = step.state is StepState.RUNNING
        if again and (step.attempts[-1].deliveries >= MAX_DELIVERIES or self._at_most_once(given.step)):
            return
        if not again and step.state is not StepState.READY:
            return
        if not self._has_room():
            message = f"the run would have more than {MAX_EVENTS} events"
            self._fail_run(Failure(Code.RESOURCE_EXHAUSTED, "EVENT_LIMIT", message, Origin.ORCHESTRATOR))
        elif again:
            delivery = step.attempts[-1].deliveries + 1
            sequence, time = self._stamp()
            expire_time = self._call_expire_time(given.step, time)
            self._emit(
                ev.DeliveryStarted(
                    sequence, time, given.step, step.attempt, delivery, given.worker, given.address, expire_time
                )
            )
        else:
            self._start_attempt(given)

    def _start_attempt(self, given: StepAdmitted) -> None:
        step = self.run.steps[given.step]
        target = self.run.graph.steps[given.step].targets[step.target]
        sequence, time = self._stamp()
        expire_time = self._call_expire_time(given.step, time)
        self._emit(
            ev.AttemptStarted(
                sequence,
                time,
                given.step,
                step.attempt + 1,
                step.target,
                target.method,
                given.worker,
                given.address,
                step.queue_time or time,
                expire_time,
            )
        )

    def _call_expire_time(self, index: int, time: int) -> int:
        """The deadline of a call that starts at `time`. A redelivery has the attempt's whole time again: while no
        replica drove the run, no worker worked on it."""
        return min(step_expire_time(self.run, index), _attempt_expire_time(self.run, index, time))

    def _succeed(self, given: CallSucceeded) -> None:
        if not self.run.is_current(given.step, given.attempt):
            return
        sequence, time = self._stamp()
        self.conditions.step_ended(given.step, StepState.SUCCEEDED, None)
        self._emit(ev.StepSucceeded(sequence, time, given.step, given.attempt, given.payload))

    def _circuit_open(self, index: int) -> None:
        if self.run.steps[index].state is not StepState.READY:
            return
        failure = Failure(
            Code.UNAVAILABLE, "CIRCUIT_OPEN", "the circuit of every endpoint is open", Origin.ORCHESTRATOR
        )
        self._take_fallback(index, failure)

    def _resume(self) -> None:
        """Queues what is ready and decides on each attempt that was under way. A decision is journaled as a whole, so
        that every ready step of a rebuilt run has passed its condition already; one that becomes ready here has not."""
        running = [index for index, step in enumerate(self.run.steps) if step.state is StepState.RUNNING]
        self.decision.queued.extend(index for index, step in enumerate(self.run.steps) if step.state is StepState.READY)
        for index in running:
            if not self.run.ended:
                self._interrupt(index, "its replica went away")

    def _interrupt(self, index: int, cause: str) -> None:
        if self.run.steps[index].attempts[-1].deliveries >= MAX_DELIVERIES:
            message = f"the call was sent {MAX_DELIVERIES} times without an answer"
            failure = Failure(Code.INTERNAL, "DELIVERY_LIMIT", message, Origin.ORCHESTRATOR, outcome_unknown=True)
            self._fail_attempt(index, failure, None, 0.0)
        elif self._at_most_once(index):
            failure = Failure(
                Code.UNKNOWN,
                "OUTCOME_UNKNOWN",
                f"the call was under way when {cause}, and the step is delivered at most once",
                Origin.TRANSPORT,
                outcome_unknown=True,
            )
            self._fail_attempt(index, failure, None, 0.0)
        else:
            self.decision.queued.append(index)

    def _time_out_step(self, index: int) -> None:
        step = self.run.steps[index]
        if step.state not in (StepState.READY, StepState.RUNNING):
            return
        if self.now >= self.run.expire_time:
            self._fail_run(_timeout("RUN_TIMEOUT", "the run's time was over"))
        elif self.now >= step_expire_time(self.run, index):
            running = step.state is StepState.RUNNING
            failure = _timeout("STEP_TIMEOUT", "the step's time was over", outcome_unknown=running)
            if running:
                self.decision.cancelled.append((index, step.attempt))
                self._end_attempt(index, failure, None)
            self._fail_step(index, failure)
        elif step.state is StepState.READY:
            queue_expire_time_ = queue_expire_time(self.run, index)
            if queue_expire_time_ is not None and self.now >= queue_expire_time_:
                failure = _timeout("QUEUE_TIMEOUT", "no attempt could start within the queue timeout")
                if not self._take_fallback(index, failure):
                    self._fail_step(index, failure)
        elif self.now >= step.attempts[-1].expire_time:
            failure = _timeout("ATTEMPT_TIMEOUT", "the attempt's time was over", outcome_unknown=True)
            self.decision.cancelled.append((index, step.attempt))
            self._fail_attempt(index, failure, None, 0.0)

    def _cancel_run(self, given: CancelRequest) -> None:
        self._cancel_steps()
        sequence, time = self._stamp()
        self._emit(ev.RunCancelled(sequence, time, given.reason, given.principal))

    # --- failures

    def _fail_attempt(self, index: int, failure: Failure, retry_delay_us: int | None, jitter_draw: float) -> None:
        """Ends the running attempt and decides between another attempt, a fallback and failing the step."""
        step, spec = self.run.steps[index], self.run.graph.steps[index]
        target = spec.targets[step.target]
        unknown = failure.outcome_unknown and self._at_most_once(index)
        if unknown or failure.reason in NEVER_RETRIED:
            self._end_attempt(index, failure, None)
            if unknown and failure.reason != "OUTCOME_UNKNOWN":
                message = f"the step is delivered at most once, and its call may have taken effect: {failure.message}"
                message = cut_message(message)
                failure = Failure(failure.code, "OUTCOME_UNKNOWN", message, failure.origin, failure.details, "", True)
            if unknown or not self._take_fallback(index, failure):
                self._fail_step(index, failure)
            return
        if target.retry.retryable.matches(failure) and step.target_attempts < target.retry.max_attempts:
            wait_us = max(backoff_us(target.retry, step.target_attempts, jitter_draw), retry_delay_us or 0)
            retry_time = max(self.now, self.run.time + 1) + wait_us
            if retry_time < step_expire_time(self.run, index):
                self._end_attempt(index, failure, retry_time)
                self.decision.queued.append(index)
                return
        self._end_attempt(index, failure, None)
        if not self._take_fallback(index, failure):
            self._fail_step(index, failure)

    def _end_attempt(self, index: int, failure: Failure, retry_time: int | None) -> None:
        sequence, time = self._stamp()
        self._emit(ev.AttemptFailed(sequence, time, index, self.run.steps[index].attempt, failure, retry_time))

    def _take_fallback(self, index: int, failure: Failure) -> bool:
        step, spec = self.run.steps[index], self.run.graph.steps[index]
        if not self._has_room():
            return False
        for number in range(step.target + 1, len(spec.targets)):
            target = spec.targets[number]
            if target.taken_for.matches(failure):
                sequence, time = self._stamp()
                self._emit(ev.FallbackTaken(sequence, time, index, number, target.method, failure))
                self.decision.queued.append(index)
                return True
        return False

    def _fail_step(self, index: int, failure: Failure) -> None:
        branch = self._branch(index, failure)
        sequence, time = self._stamp()
        self.conditions.step_ended(index, StepState.FAILED, failure)
        self._emit(
            ev.StepFailed(
                sequence,
                time,
                index,
                self.run.steps[index].attempt,
                failure,
                branch is not None,
                branch.step if branch is not None else None,
            )
        )
        if branch is None:
            name = self.run.graph.steps[index].id
            message = f"step {name} failed: {failure.message}" if failure.message else f"step {name} failed"
            self._fail_run(
                Failure(
                    failure.code,
                    failure.reason,
                    cut_message(message),
                    failure.origin,
                    failure.details,
                    name,
                    failure.outcome_unknown,
                )
            )

    def _branch(self, index: int, failure: Failure) -> FailureBranch | None:
        for branch in self.run.graph.steps[index].on_failure:
            if branch.match.matches(failure):
                return branch
        return None

    def _fail_run(self, failure: Failure) -> None:
        self._cancel_steps()
        sequence, time = self._stamp()
        self._emit(ev.RunFailed(sequence, time, failure))

    def _cancel_steps(self) -> None:
        self.released.clear()
        self.decision.queued.clear()
        for index, step in enumerate(self.run.steps):
            if step.state in ENDED_STEP:
                continue
            if step.state is StepState.RUNNING:
                self.decision.cancelled.append((index, step.attempt))
            sequence, time = self._stamp()
            self._emit(ev.StepCancelled(sequence, time, index, step.attempt))

    # --- what follows

    def _settle(self) -> None:
        """Works through the steps that became ready, then ends the run where nothing is left to do."""
        for index in self.released:  # Grows while it is worked through.
            if self.run.ended:
                break
            spec, step = self.run.graph.steps[index], self.run.steps[index]
            if spec.handles and not step.chosen:
                self._skip(index, SkipReason.BRANCH_NOT_TAKEN)
            elif not spec.has_condition:
                self.decision.queued.append(index)
            else:
                held = self.conditions.holds(index)
                if isinstance(held, Failure):
                    self._fail_step(index, held)
                elif held:
                    self.decision.queued.append(index)
                else:
                    self._skip(index, SkipReason.CONDITION)
        if self.run.unfinished == 0 and not self.run.ended:
            self._finish()

    def _skip(self, index: int, reason: SkipReason) -> None:
        sequence, time = self._stamp()
        self.conditions.step_ended(index, StepState.SKIPPED, None)
        self._emit(ev.StepSkipped(sequence, time, index, reason))

    def _finish(self) -> None:
        output = self.conditions.output()
        if isinstance(output, Failure):
            self._fail_run(output)
            return
        sequence, time = self._stamp()
        self._emit(ev.RunSucceeded(sequence, time, output))

    # --- what is asked above

    def _at_most_once(self, index: int) -> bool:
        """Tells whether the step's target in use must not be called again where a call may have taken effect."""
        spec = self.run.graph.steps[index]
        return spec.delivery is Delivery.AT_MOST_ONCE and not spec.targets[self.run.steps[index].target].repeatable

    def _has_room(self) -> bool:
        """Tells whether one more event leaves room for the run's end: two events for each step, and the last one."""
        return self.run.sequence + 1 + 2 * len(self.run.steps) < MAX_EVENTS

    def _stamp(self) -> tuple[int, int]:
        return self.run.sequence + 1, max(self.now, self.run.time + 1)

    def _emit(self, event: Event) -> None:
        self.decision.events.append(event)
        self.released.extend(self.run.apply(event))
