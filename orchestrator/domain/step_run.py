"""The state of a step in one run, and the records of its attempts and waits. Changed by the fold alone: see run.py."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.events import ApprovalDecided, Payload, SkipReason, StepDelegated
from orchestrator.domain.failures import Failure
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import Wait
from orchestrator.domain.workflow import Step


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
    suspended: bool = False
    """Whether it ended without outcome, to go on in another attempt."""
    waited_for: int = 0
    """QueueReason of the wait before it."""
    handed_over: int = 0
    """Of its deliveries, how many were cut off by a replica that was stopped in good order."""


@dataclass(slots=True)
class WaitRecord:
    """What is known of one wait for something other than a worker."""

    wait: Wait
    start_time: int
    end_time: int | None = None


class StepRun:
    """A step in one run.

    `blockers` counts predecessors that have not ended. `ready_time` is when the step first became ready, `queue_time`
    when it may start its next attempt (the end of a backoff lies in the future). `chosen` is set by a failure branch.
    `wait` is set while the step is WAITING; `waited` holds that and those before, None where there was none.
    `children` are the steps that belong to this one, in the order they were
    added, of which `open_children` have not ended, or have children of their own that have not; `ended_children` have
    ended themselves, `failed_children` of them by a failure; `next_child` is the first item that was not begun.
    `request` is set where a person decides on it or the step was delegated, and `decided` once a person has.
    `life` is that of the run in which the step began, `earlier_attempts` counts attempts of lives before.
    `substituted_by` is who gave the output in place of the step.
    """

    __slots__ = (
        "attempts",
        "blockers",
        "checkpoint",
        "child_run_id",
        "children",
        "chosen",
        "decided",
        "delegated",
        "earlier_attempts",
        "end_time",
        "ended_children",
        "failed_children",
        "failure",
        "life",
        "next_child",
        "open_children",
        "output",
        "queue_time",
        "ready_time",
        "request",
        "skip_reason",
        "spec",
        "state",
        "substituted_by",
        "target",
        "target_attempts",
        "wait",
        "waited",
    )

    def __init__(self, spec: Step) -> None:
        self.spec = spec
        self.state = StepState.BLOCKED
        self.blockers = len(spec.predecessors)
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
        self.wait: Wait | None = None
        self.waited: list[WaitRecord] | None = None
        self.children: list[int] | None = None
        self.open_children = self.ended_children = self.failed_children = self.next_child = 0
        self.request: Payload | None = None
        self.decided: ApprovalDecided | None = None
        self.delegated: StepDelegated | None = None
        self.checkpoint: Payload | None = None
        self.child_run_id = ""
        self.earlier_attempts = 0
        self.life = 1
        self.substituted_by = ""

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return len(self.attempts)

    @property
    def retried_worker(self) -> str:
        """The worker at which its newest attempt failed, where the step is ready for another one; else empty."""
        if self.state is not StepState.READY or not self.attempts or self.attempts[-1].suspended:
            return ""
        return self.attempts[-1].worker

    def begin_wait(self, wait: Wait, time: int) -> None:
        """Begins a wait, in place of the one that there is. For the fold alone."""
        if self.wait is not None:
            self.end_wait(time)
        self.wait = wait
        if self.waited is None:
            self.waited = []
        self.waited.append(WaitRecord(wait, time))

    def end_wait(self, time: int) -> None:
        """Ends the wait that there is. For the fold alone."""
        self.wait = None
        if self.waited is not None:
            self.waited[-1].end_time = time

    @property
    def is_handed_over(self) -> bool:
        """Whether it was delegated by a step that does not wait for it."""
        return self.delegated is not None and self.delegated.detached

    def anew(self, spec: Step) -> StepRun:
        """Returns the step as it begins in another life; its attempts are counted on."""
        step = StepRun(spec)
        step.attempts, step.earlier_attempts = self.attempts, len(self.attempts)
        return step
