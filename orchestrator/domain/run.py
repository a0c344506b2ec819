"""The state of a run: the fold of its events. Every change goes through `Run.apply`, nothing else changes a run.

Counters are folded in place, so that applying an event costs O(affected steps). What may not enter: decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.events import (
    AttemptFailed,
    AttemptStarted,
    DeliveryStarted,
    Event,
    FallbackTaken,
    Payload,
    RunCancelled,
    RunFailed,
    RunSubmitted,
    RunSucceeded,
    SkipReason,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.states import ENDED_RUN, RunState, StepState, next_run_state, next_step_state
from orchestrator.domain.workflow import Graph


class SequenceGap(Exception):
    """An event does not follow the one before it: the journal has a gap, or does not begin with the submission."""


@dataclass(slots=True)
class AttemptRecord:
    """What is known of one attempt."""

    attempt: int
    target: int
    method: str
    worker: str
    address: str
    ready_time: int
    start_time: int
    expire_time: int
    deliveries: int = 1
    end_time: int | None = None
    failure: Failure | None = None


class StepRun:
    """A step in one run.

    `blockers` counts predecessors that have not ended. `ready_time` is when the step first became ready, `queue_time`
    when it may start its next attempt (the end of a backoff lies in the future). `chosen` is set by a failure branch.
    """

    __slots__ = (
        "attempts",
        "blockers",
        "chosen",
        "end_time",
        "failure",
        "output",
        "queue_time",
        "ready_time",
        "skip_reason",
        "state",
        "target",
        "target_attempts",
    )

    def __init__(self, blockers: int) -> None:
        self.state = StepState.BLOCKED
        self.blockers = blockers
        self.chosen = False
        self.target = 0
        self.target_attempts = 0
        self.attempts: list[AttemptRecord] = []
        self.ready_time: int | None = None
        self.queue_time: int | None = None
        self.end_time: int | None = None
        self.failure: Failure | None = None
        self.skip_reason: SkipReason | None = None
        self.output: Payload | None = None

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return len(self.attempts)


class Run:
    """A run in one replica's memory. `sequence` and `time` are those of the last event applied."""

    __slots__ = (
        "attributes",
        "channel",
        "create_time",
        "end_time",
        "expire_time",
        "failure",
        "graph",
        "input",
        "labels",
        "output",
        "principal",
        "request_id",
        "revision",
        "round",
        "sequence",
        "start_time",
        "state",
        "steps",
        "time",
        "traceparent",
        "unfinished",
        "workflow",
        "workspace",
    )

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.state = RunState.PENDING
        self.steps = [StepRun(len(step.predecessors)) for step in graph.steps]
        self.unfinished = len(graph.steps)
        self.sequence = 0
        self.time = 0
        self.round = 1
        self.workflow = ""
        self.revision = ""
        self.principal = ""
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

    def _submitted(self, event: RunSubmitted) -> list[int]:
        self.workflow, self.revision = event.workflow, event.revision
        self.principal, self.channel, self.workspace = event.principal, event.channel, event.workspace
        self.labels, self.attributes = event.labels, event.attributes
        self.traceparent, self.request_id = event.traceparent, event.request_id
        self.create_time, self.expire_time = event.time, event.expire_time
        self.input = event.payload
        roots = [step.index for step in self.graph.steps if not step.predecessors]
        for index in roots:
            self._ready(index, event.time)
        return roots

    def _ready(self, index: int, time: int) -> None:
        step = self.steps[index]
        step.state = StepState.READY
        step.ready_time = step.queue_time = time

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
        if was_running:
            step.attempts[-1].end_time = event.time
        match event:
            case StepSucceeded():
                step.output = event.payload
            case StepFailed():
                step.failure = event.failure
                if event.branch is not None:
                    self.steps[event.branch].chosen = True
            case StepSkipped():
                step.skip_reason = event.reason
            case StepCancelled():
                if was_running:
                    step.attempts[-1].failure = CANCELLED_WITH_RUN
                return []
        return self._release(event.step, event.time)

    def _release(self, index: int, time: int) -> list[int]:
        released = []
        for successor in self.graph.steps[index].successors:
            step = self.steps[successor]
            step.blockers -= 1
            if step.blockers == 0 and step.state is StepState.BLOCKED:
                self._ready(successor, time)
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
                message = event.reason or "cancelled by the caller"
                self.failure = Failure(Code.CANCELLED, "CANCELLED", message, Origin.CANCELLATION)
        return []


CANCELLED_WITH_RUN = Failure(Code.CANCELLED, "CANCELLED", "the run ended", Origin.CANCELLATION, outcome_unknown=True)
