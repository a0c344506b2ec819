"""The state of a run: the fold of its events. Every change goes through `Run.apply`, nothing else changes a run.

Counters are folded in place, so that applying an event costs O(affected steps). What may not enter: decisions.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.domain import growth, reopening, retrying
from orchestrator.domain.events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    AttemptStarted,
    AttemptSuspended,
    CheckpointRecorded,
    DeliveryStarted,
    Event,
    FallbackTaken,
    IterationStarted,
    Payload,
    RunCancelled,
    RunFailed,
    RunPaused,
    RunReopened,
    RunResumed,
    RunSubmitted,
    RunSucceeded,
    RunUndoing,
    SignalReceived,
    StepCancelled,
    StepDelegated,
    StepFailed,
    StepRetried,
    StepSkipped,
    StepSucceeded,
    StepWaiting,
)
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.states import (
    ENDED_RUN,
    RunState,
    StepState,
    next_run_state,
    next_step_state,
)
from orchestrator.domain.step_run import AttemptRecord, StepRun
from orchestrator.domain.waits import SignalAwaited
from orchestrator.domain.workflow import Graph, Step


class SequenceGap(Exception):
    """An event does not follow the one before it: the journal has a gap, does not begin with the submission, or ends
    before what was written last."""


class Run:
    """A run in one replica's memory. `sequence` and `time` are those of the last event applied.

    `steps` begins with those of the graph; steps that they add follow. `signals` holds what no step has taken yet, by
    name, `signal_waiters` the steps that wait. `undoable` counts undo calls that may have to be made, while none is:
    those of steps that succeeded or may; `undoing` is why they are made, once they are, and `undone` holds their steps.
    `moved` tells, after a reopening, where each step that was kept stood before, and where it stands. `next_graph` is
    that of the revision that the run is to be reopened with; `former` holds the attempts of steps that were dropped.
    `round_time` is when the round began, `resume_time` when the run was last paused or resumed.
    `life` counts how often steps began anew, with the run or without; `dropped` are steps that the one they belong to
    has left behind as it did.
    """

    __slots__ = (
        "_indexes",
        "attributes",
        "channel",
        "create_time",
        "depth",
        "dropped",
        "end_time",
        "expire_time",
        "failure",
        "forked_run_id",
        "forked_step",
        "former",
        "graph",
        "input",
        "labels",
        "life",
        "moved",
        "next_graph",
        "output",
        "parent_run_id",
        "parent_step",
        "paused",
        "principal",
        "priority",
        "request_id",
        "resume_time",
        "revision",
        "round",
        "round_time",
        "sequence",
        "signal_request_ids",
        "signal_waiters",
        "signals",
        "start_time",
        "state",
        "steps",
        "time",
        "traceparent",
        "undoable",
        "undoing",
        "undone",
        "unfinished",
        "workflow",
        "workspace",
    )

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.state = RunState.PENDING
        self.steps = [StepRun(step) for step in graph.steps]
        self._indexes: dict[str, int] | None = None
        self.unfinished = len(graph.steps)
        self.sequence = 0
        self.time = 0
        self.round = 1
        self.round_time = 0
        self.workflow = ""
        self.revision = ""
        self.principal = ""
        self.priority = 0
        self.channel = ""
        self.workspace = ""
        self.labels: tuple[str, ...] = ()
        self.attributes: Mapping[str, str] = {}
        self.traceparent = ""
        self.request_id = ""
        self.create_time = 0
        self.start_time: int | None = None
        self.end_time: int | None = None
        self.expire_time = 0
        self.failure: Failure | None = None
        self.input: Payload | None = None
        self.output: Payload | None = None
        self.parent_run_id = ""
        self.parent_step = ""
        self.depth = 0
        self.paused = False
        self.resume_time = 0
        self.signals: dict[str, list[Payload]] = {}
        self.signal_waiters: dict[str, list[int]] = {}
        self.signal_request_ids: set[str] = set()
        self.undoable = sum(step.is_undone for step in graph.steps)
        self.undoing: RunUndoing | None = None
        self.undone: list[int] = []
        self.forked_run_id = ""
        self.forked_step = ""
        self.moved: dict[int, int] = {}
        self.next_graph: Graph | None = None
        self.former: dict[str, list[AttemptRecord]] = {}
        self.life = 1
        self.dropped: set[int] = set()

    @property
    def indexes(self) -> dict[str, int]:
        """Maps the ids of steps to their indexes; made when it is first asked for."""
        if self._indexes is None:
            self._indexes = {step.spec.id: index for index, step in enumerate(self.steps)}
        return self._indexes

    def forget_indexes(self) -> None:
        """Lets `indexes` be made anew. For the fold alone."""
        self._indexes = None

    @staticmethod
    def new_step(spec: Step) -> StepRun:
        """Makes a step that no round before knew. For the fold alone."""
        return StepRun(spec)

    def add_step(self, spec: Step) -> StepRun:
        """Adds a step that belongs to another. For the fold alone."""
        step = StepRun(spec)
        if self.former:
            step.attempts = self.former.pop(spec.id, step.attempts)
            step.earlier_attempts = len(step.attempts)
        step.life = self.life
        self.steps.append(step)
        self.unfinished += 1
        self.undoable += spec.is_undone
        if self._indexes is not None:
            self._indexes[spec.id] = spec.index
        return step

    @property
    def ended(self) -> bool:
        """Whether the run is in a terminal state."""
        return self.state in ENDED_RUN

    def is_current(self, step: int, attempt: int) -> bool:
        """Whether `attempt` of `step` is the one whose outcome is awaited."""
        record = self.steps[step]
        return not self.ended and record.state is StepState.RUNNING and record.attempt == attempt

    def apply(self, event: Event) -> list[int]:
        """Folds one event in and returns the steps that it made ready, in the order of the graph.

        Errors: SequenceGap, IllegalTransition; the run is then no longer to be used.
        """
        if event.sequence != self.sequence + 1:
            raise SequenceGap(f"event {event.sequence} after {self.sequence}")
        if isinstance(event, RunSubmitted) is not (event.sequence == 1):
            raise SequenceGap(
                f"{event.kind.name} as event {event.sequence}: the submission is the first, and only that"
            )
        self.state = next_run_state(self.state, event.kind)
        self.sequence = event.sequence
        self.time = event.time
        match event:
            case AttemptStarted():
                return self._attempt_started(event)
            case StepSucceeded() | StepFailed() | StepSkipped() | StepCancelled():
                return self._step_ended(event)
            case AttemptFailed():
                return self._attempt_failed(event)
            case FallbackTaken():
                return self._fallback_taken(event)
            case DeliveryStarted():
                return self._delivery_started(event)
            case RunSubmitted():
                return self._submitted(event)
            case RunSucceeded() | RunFailed() | RunCancelled():
                return self._ended(event)
            case StepWaiting():
                return growth.step_waiting(self, event)
            case ApprovalRequested():
                return growth.approval_requested(self, event)
            case StepDelegated():
                return growth.step_delegated(self, event)
            case IterationStarted():
                return growth.iteration_started(self, event)
            case AttemptSuspended():
                return growth.attempt_suspended(self, event)
            case RunUndoing():
                return growth.run_undoing(self, event)
            case SignalReceived():
                return growth.signal_received(self, event)
            case ApprovalDecided():
                return growth.approval_decided(self, event)
            case CheckpointRecorded():
                return growth.checkpoint_recorded(self, event)
            case RunPaused() | RunResumed():
                self.paused = isinstance(event, RunPaused)
                self.resume_time = event.time
                return []
            case RunReopened():
                return reopening.run_reopened(self, event)
            case StepRetried():
                return retrying.step_retried(self, event)

    def _submitted(self, event: RunSubmitted) -> list[int]:
        self.workflow, self.revision = event.workflow, event.revision
        self.principal, self.channel, self.workspace = event.principal, event.channel, event.workspace
        self.labels, self.attributes = event.labels, event.attributes
        self.traceparent, self.request_id = event.traceparent, event.request_id
        self.parent_run_id, self.parent_step, self.depth = event.parent_run_id, event.parent_step, event.depth
        self.forked_run_id, self.forked_step = event.forked_run_id, event.forked_step
        self.create_time = self.round_time = event.time
        self.expire_time = event.expire_time
        self.input, self.priority = event.payload, event.priority
        roots = [step.index for step in self.graph.steps if not step.predecessors]
        for index in roots:
            self.make_ready(index, event.time)
        return roots

    def make_ready(self, index: int, time: int) -> None:
        """Lets a step go on. For the fold alone."""
        step = self.steps[index]
        step.state = StepState.READY
        step.queue_time = time
        if step.ready_time is None:
            step.ready_time = time

    def _attempt_started(self, event: AttemptStarted) -> list[int]:
        step = self.steps[event.step]
        step.state = next_step_state(step.state, event.kind)
        step.target_attempts += 1
        step.attempts.append(
            AttemptRecord(
                event.attempt,
                event.target,
                event.method,
                event.worker,
                event.address,
                event.ready_time,
                event.time,
                event.expire_time,
                waited_for=event.waited_for,
            )
        )
        if self.start_time is None:
            self.start_time = event.time
        return []

    def _delivery_started(self, event: DeliveryStarted) -> list[int]:
        step = self.steps[event.step]
        step.state = next_step_state(step.state, event.kind)
        record = step.attempts[-1]
        record.deliveries = event.delivery
        record.handed_over += event.handed_over
        record.worker, record.address = event.worker, event.address
        record.expire_time = event.expire_time
        return []

    def _attempt_failed(self, event: AttemptFailed) -> list[int]:
        step = self.steps[event.step]
        step.state = next_step_state(step.state, event.kind)
        record = step.attempts[-1]
        record.end_time, record.failure = event.time, event.failure
        step.queue_time = event.time if event.retry_time is None else event.retry_time
        return []

    def _fallback_taken(self, event: FallbackTaken) -> list[int]:
        step = self.steps[event.step]
        step.state = next_step_state(step.state, event.kind)
        step.target, step.target_attempts = event.target, 0
        step.queue_time = event.time
        return []

    def _step_ended(self, event: StepSucceeded | StepFailed | StepSkipped | StepCancelled) -> list[int]:
        step = self.steps[event.step]
        was_running = step.state is StepState.RUNNING
        step.state = next_step_state(step.state, event.kind)
        step.end_time = event.time
        self.unfinished -= 1
        if step.spec.undo is not None and not isinstance(event, StepSucceeded):
            self.undoable -= step.spec.is_undone
        if was_running:
            step.attempts[-1].end_time = event.time
        if step.wait is not None:
            self._wait_ended(event.step, step, event.time)
        match event:
            case StepSucceeded():
                step.output, step.substituted_by = event.payload, event.substituted_by
                if event.substituted_by:
                    self.undoable -= step.spec.is_undone
                if event.payload is None and step.spec.repeat is not None and step.children:
                    step.output = self.steps[step.children[-1]].output
            case StepFailed():
                step.failure = event.failure
                if event.branch is not None:
                    self.steps[event.branch].chosen = True
            case StepSkipped():
                step.skip_reason, step.substituted_by = event.reason, event.skipped_by
            case StepCancelled():
                if was_running:
                    step.attempts[-1].failure = CANCELLED_WITH_RUN
        if step.spec.parent >= 0:
            return growth.child_ended(self, event.step, event)
        if isinstance(event, StepCancelled) or step.open_children:
            return []
        return self.release(event.step, event.time)

    def _wait_ended(self, index: int, step: StepRun, time: int) -> None:
        """A step that waited has ended. A signal that it waited for is taken, where it has come."""
        if isinstance(step.wait, SignalAwaited):
            name = step.wait.signal
            self.signal_waiters[name].remove(index)
            if step.state is StepState.SUCCEEDED and self.signals.get(name):
                self.signals[name].pop(0)
        step.end_wait(time)

    def release(self, index: int, time: int) -> list[int]:
        """Lets go on what waits for a step, all of which has ended. For the fold alone."""
        released = []
        for successor in self.steps[index].spec.successors:
            step = self.steps[successor]
            step.blockers -= 1
            if step.blockers == 0 and step.state is StepState.BLOCKED:
                self.make_ready(successor, time)
                released.append(successor)
        return released

    def _ended(self, event: RunSucceeded | RunFailed | RunCancelled) -> list[int]:
        self.end_time = event.time
        match event:
            case RunSucceeded():
                self.output = event.payload
            case RunFailed():
                self.failure = event.failure
            case RunCancelled():
                self.failure = cancelled_failure(event.reason)
        return []


CANCELLED_WITH_RUN = Failure(Code.CANCELLED, "CANCELLED", "the run ended", Origin.CANCELLATION, outcome_unknown=True)


def cancelled_failure(reason: str) -> Failure:
    """Makes the failure of a run that was cancelled."""
    return Failure(Code.CANCELLED, "CANCELLED", reason or "cancelled by the caller", Origin.CANCELLATION)
