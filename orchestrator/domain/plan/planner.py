"""The planner: builds one decision. What its modules share is here: emitting, ending steps, and settling."""

from __future__ import annotations

from collections import deque

from orchestrator.domain import events as ev
from orchestrator.domain.events import Event, Payload, SkipReason
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.inputs import (
    Abandonment,
    CallFailed,
    CallLost,
    CallSucceeded,
    CallSuspended,
    CancelRequest,
    Checkpoint,
    ChildRunEnded,
    CircuitOpen,
    Decided,
    Delegation,
    HeartbeatMissed,
    Input,
    PauseRequest,
    Reopening,
    RequestUnbuildable,
    ResumeRequest,
    Resumption,
    RunTimeoutPassed,
    Signal,
    StepAdmitted,
    StepRetry,
    Submission,
    Substitution,
    TimeoutPassed,
)
from orchestrator.domain.plan import attempts, children, decision, ending, mending, waits
from orchestrator.domain.plan.decision import EVENTS_OF_AN_END, Conditions, Decision
from orchestrator.domain.plan.times import overdue_step
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.workflow import FailureBranch, StepKind, StepRole


class Planner:
    """Builds one decision. Every `emit` folds its event into the run before the next is decided."""

    __slots__ = ("conditions", "decision", "now", "released", "run")

    def __init__(self, run: Run, now: int, conditions: Conditions) -> None:
        self.run = run
        self.now = now
        self.conditions = conditions
        self.decision = Decision()
        self.released: deque[int] = deque()

    def take(self, given: Input) -> None:
        """Decides what follows from an input."""
        match given:
            case Submission():
                self._submit(given)
            case StepAdmitted():
                attempts.admit(self, given)
            case CallSucceeded():
                attempts.succeed(self, given)
            case CallFailed():
                attempts.fail(self, given)
            case CallLost():
                if self.run.is_current(given.step, given.attempt):
                    attempts.interrupt(self, given.step, "the stream to its worker was lost")
            case TimeoutPassed():
                self._time_out(given.step)
            case _:
                self._take_rare(given)
        self._settle()
        if self.decision.waiting:
            steps = self.run.steps
            self.decision.waiting = [
                index for index in self.decision.waiting if steps[index].state is StepState.WAITING
            ]

    def _take_rare(self, given: Input) -> None:
        match given:
            case CircuitOpen():
                attempts.circuit_open(self, given.step)
            case RequestUnbuildable():
                attempts.unbuildable(self, given.step, given.failure)
            case Delegation():
                children.delegate(self, given)
            case CallSuspended():
                children.suspend(self, given)
            case HeartbeatMissed():
                attempts.miss_heartbeat(self, given)
            case Checkpoint():
                attempts.record_checkpoint(self, given)
            case Signal():
                waits.signal(self, given)
            case Decided():
                waits.approve(self, given)
            case ChildRunEnded():
                waits.child_run_ended(self, given)
            case Resumption():
                self._resume(given)
            case RunTimeoutPassed():
                if self.now >= self.run.expire_time and self.run.state is not RunState.UNDOING:
                    ending.fail_run(self, attempts.timeout_failure("RUN_TIMEOUT", "the run's time was over"))
            case Abandonment():
                ending.fail_run(self, given.failure)
            case CancelRequest():
                ending.cancel(self, given)
            case Reopening():
                mending.reopen(self, given)
            case StepRetry():
                mending.retry_step(self, given)
            case Substitution():
                mending.substitute(self, given)
            case PauseRequest():
                mending.pause(self, given)
            case ResumeRequest():
                mending.resume(self, given)

    # --- inputs that concern every kind of step

    def _submit(self, given: Submission) -> None:
        sequence, time = self.stamp()
        self.emit(
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
                given.parent_run_id,
                given.parent_step,
                given.depth,
                given.forked_run_id,
                given.forked_step,
                given.priority,
            )
        )
        for index, payload in given.kept:
            self.succeed_step(index, payload, f"run {given.forked_run_id}")

    def _resume(self, given: Resumption) -> None:
        """Queues what is ready, and decides on each attempt that was under way. A decision is journaled as a whole, so
        that every ready step of a rebuilt run has passed its condition already; one that becomes ready here has not."""
        running = []
        for index, step in enumerate(self.run.steps):
            if step.state is StepState.READY:
                self.decision.queued.append(index)
            elif step.state is StepState.WAITING:
                self.decision.waiting.append(index)
            elif step.state is StepState.RUNNING:
                running.append(index)
        for index in running:
            if self.run.steps[index].state is StepState.RUNNING:
                attempts.interrupt(self, index, "its replica went away", handed_over=given.handed_over)

    def _time_out(self, index: int) -> None:
        step = self.run.steps[index]
        if step.state not in (StepState.READY, StepState.RUNNING, StepState.WAITING):
            return
        if self.now >= self.run.expire_time and self.run.state is not RunState.UNDOING:
            ending.fail_run(self, attempts.timeout_failure("RUN_TIMEOUT", "the run's time was over"))
            return
        index = overdue_step(self.run, index, self.now)
        if self.run.steps[index].state is StepState.WAITING:
            waits.time_out(self, index)
        else:
            attempts.time_out(self, index)

    # --- the ends of steps

    def succeed_step(self, index: int, payload: Payload | None, substituted_by: str = "") -> None:
        """Ends a step with its output, its own or one that stands in its place. What it delegated and did not hand over
        ends with it."""
        step = self.run.steps[index]
        if step.open_children:
            children.cancel_children(self, index, detached=False)
        self.conditions.step_ended(index, StepState.SUCCEEDED, None, payload)
        sequence, time = self.stamp()
        self.emit(ev.StepSucceeded(sequence, time, index, step.attempt, payload, substituted_by))
        if step.spec.parent >= 0:
            children.child_ended(self, index, None)

    def fail_step(self, index: int, failure: Failure) -> None:
        """Fails a step for good, and what belongs to it: the run goes on by a branch for that, or fails."""
        step = self.run.steps[index]
        if step.open_children:
            children.cancel_children(self, index, detached=True)
        branch = self._branch(index, failure)
        fatal = branch is None and children.fails_the_run(self.run, index)
        self.conditions.step_ended(index, StepState.FAILED, failure, None)
        sequence, time = self.stamp()
        target = branch.step if branch is not None else None
        self.emit(ev.StepFailed(sequence, time, index, step.attempt, failure, not fatal, target))
        if fatal:
            ending.fail_run_for(self, index, failure)
        elif step.spec.parent >= 0:
            children.child_ended(self, index, failure)

    def cancel_step(self, index: int) -> None:
        """Cancels a step that has not ended, and its call."""
        step = self.run.steps[index]
        if step.state is StepState.RUNNING:
            self.decision.cancelled.append((index, step.attempt))
        sequence, time = self.stamp()
        self.emit(ev.StepCancelled(sequence, time, index, step.attempt))

    def skip_step(self, index: int, reason: SkipReason, skipped_by: str = "") -> None:
        """Ends a step without running it, or any further."""
        sequence, time = self.stamp()
        self.conditions.step_ended(index, StepState.SKIPPED, None, None)
        self.emit(ev.StepSkipped(sequence, time, index, reason, skipped_by))

    def _branch(self, index: int, failure: Failure) -> FailureBranch | None:
        for branch in self.run.steps[index].spec.on_failure:
            if branch.match.matches(failure):
                return branch
        return None

    # --- what follows

    def _settle(self) -> None:
        """Works through the steps that became ready, then ends the run where nothing is left to do."""
        while not self.run.ended:
            if self.released:
                index = self.released.popleft()
                if self.run.steps[index].state is StepState.READY:
                    self._go_on(index)
            elif self.run.unfinished == 0:
                ending.finish(self)
            else:
                return

    def _go_on(self, index: int) -> None:
        """Begins a step that became ready; one that has begun before is queued again."""
        step = self.run.steps[index]
        spec = step.spec
        if step.attempt > step.earlier_attempts or spec.role is not StepRole.WORKFLOW:
            self._begin_part(index)
        elif spec.handles and not step.chosen:
            self.skip_step(index, SkipReason.BRANCH_NOT_TAKEN)
        elif not spec.has_condition:
            self._begin(index)
        else:
            held = self.conditions.holds(index)
            if isinstance(held, Failure):
                self.fail_step(index, held)
            elif held:
                self._begin(index)
            else:
                self.skip_step(index, SkipReason.CONDITION)

    def _begin(self, index: int) -> None:
        spec = self.run.steps[index].spec
        if spec.map is not None:
            children.begin_map(self, index)
        elif spec.repeat is not None:
            children.begin_repeat(self, index)
        elif spec.approval is not None:
            waits.begin_approval(self, index)
        else:
            self._begin_part(index)

    def _begin_part(self, index: int) -> None:
        if self.run.steps[index].spec.kind is StepKind.CALL:
            self.decision.queued.append(index)
        else:
            waits.begin(self, index)

    # --- events

    def has_room(self, added: int = 0, *, undo: bool = False) -> bool:
        """Tells whether one more event, which adds so many steps, leaves room for the run's end: EVENTS_OF_AN_END for
        each open step and for each undo call that may have to be made; and two, for the beginning of the undo calls
        and the last event. `undo` tells whether the added steps have undo calls."""
        ends = self.run.unfinished + self.run.undoable + added * (1 + undo)
        return self.run.sequence + 1 + EVENTS_OF_AN_END * ends + 2 <= decision.MAX_EVENTS

    def no_room(self) -> Failure:
        """Makes the failure of what would take the run over its limit of events."""
        message = f"the run would have more than {decision.MAX_EVENTS} events"
        return Failure(Code.RESOURCE_EXHAUSTED, "EVENT_LIMIT", message, Origin.ORCHESTRATOR)

    def stamp(self) -> tuple[int, int]:
        """Returns sequence and time of the next event."""
        return self.run.sequence + 1, max(self.now, self.run.time + 1)

    def emit(self, event: Event) -> None:
        """Adds an event to the decision and folds it in."""
        self.decision.events.append(event)
        self.released.extend(self.run.apply(event))
