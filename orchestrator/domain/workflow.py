"""The graph of a workflow, as the core needs it: who waits for whom, which targets a step has, what a failure leads to.

Bindings, conditions and types are not here: `contracts` compiles them and hands the core this graph. Durations are
whole microseconds and end in `_us`; instants are whole microseconds since the Unix epoch and end in `_time`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.failures import Code, Failure

OUTPUT_REJECTED = "OUTPUT_REJECTED"

SAFE_CODES = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED})
"""Codes tried again by default, whatever the method."""

REPEATABLE_CODES = SAFE_CODES | {Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.INTERNAL}
"""Codes tried again by default where the method is declared IDEMPOTENT or NO_SIDE_EFFECTS."""


class StepKind(enum.Enum):
    """What a step does once it is ready."""

    CALL = enum.auto()
    RUN_WORKFLOW = enum.auto()
    SLEEP = enum.auto()
    SIGNAL = enum.auto()


class StepRole(enum.IntEnum):
    """What a step is to the step that it belongs to, with the numbers of baton.v1.StepRole."""

    WORKFLOW = 0
    DELEGATED = 1
    ITEM = 2
    ITERATION = 3
    UNDO = 4


class Delivery(enum.IntEnum):
    """What to do where it is unknown whether a call took effect, with the numbers of baton.v1.Delivery."""

    AT_LEAST_ONCE = 1
    AT_MOST_ONCE = 2


@dataclass(frozen=True, slots=True)
class FailureMatch:
    """Which failures something applies to: any of `codes` or any of `reasons`; every failure where both are empty."""

    codes: frozenset[Code] = frozenset()
    reasons: frozenset[str] = frozenset()

    def matches(self, failure: Failure) -> bool:
        """Tells whether `failure` is one of them."""
        if not self.codes and not self.reasons:
            return True
        return failure.code in self.codes or failure.reason in self.reasons


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are tried again, how often, and after what wait."""

    retryable: FailureMatch
    max_attempts: int = 3
    initial_backoff_us: int = 200_000
    max_backoff_us: int = 30_000_000
    backoff_multiplier: float = 2.0
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """One method that can give a step's output: the step's own (index 0), or a fallback.

    `repeatable` is true for methods declared IDEMPOTENT or NO_SIDE_EFFECTS. `taken_for` are the failures of the target
    before that lead to this one.
    """

    method: str
    retry: RetryPolicy
    repeatable: bool
    attempt_timeout_us: int | None = None
    taken_for: FailureMatch = FailureMatch()


@dataclass(frozen=True, slots=True)
class FailureBranch:
    """A way on after a step has failed for good; `step` is the index of the step to run, None for none."""

    match: FailureMatch
    step: int | None


@dataclass(frozen=True, slots=True)
class Map:
    """A step calls once for each item: so many at a time, of which so many may fail for good."""

    max_parallel: int = 10
    max_failed: int = 0


@dataclass(frozen=True, slots=True)
class Repeat:
    """A step calls again until a condition holds, at most so often, with so much time in between."""

    max_iterations: int = 10
    interval_us: int = 0


@dataclass(frozen=True, slots=True)
class Signal:
    """A step waits for a signal."""

    name: str
    timeout_us: int | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """A person decides on the exact request of a step. `approvers` are principals; empty: anybody but who submitted.
    `description` is what they are told."""

    timeout_us: int | None = None
    approvers: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Undo:
    """The call that takes back what a step did."""

    target: Target
    timeout_us: int


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the graph, or a step that its `parent` has added to a run.

    `predecessors` and `successors` are indexes into the graph's steps, without repeats; a branch of `on_failure` makes
    its step a successor. `handles` are the steps whose failure branches name this one: with any, the step runs only
    when one of those branches is taken. `targets` is empty for what calls no method. `parent` is the index of the step
    that this one belongs to, -1 for a step of the workflow; `number` its place among the items or iterations.
    """

    index: int
    id: str
    targets: tuple[Target, ...]
    predecessors: tuple[int, ...] = ()
    successors: tuple[int, ...] = ()
    has_condition: bool = False
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    queue_timeout_us: int | None = None
    step_timeout_us: int | None = None
    on_failure: tuple[FailureBranch, ...] = ()
    handles: tuple[int, ...] = ()
    kind: StepKind = StepKind.CALL
    map: Map | None = None
    repeat: Repeat | None = None
    signal: Signal | None = None
    approval: Approval | None = None
    undo: Undo | None = None
    heartbeat_timeout_us: int | None = None
    role: StepRole = StepRole.WORKFLOW
    parent: int = -1
    number: int = 0

    @property
    def is_undone(self) -> bool:
        """Whether the undo call is this step's own: with items or iterations, it is theirs."""
        return self.undo is not None and self.map is None and self.repeat is None


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked workflow graph: acyclic, with consistent indexes. Shared by every run of the revision."""

    steps: tuple[Step, ...]

    @property
    def roots(self) -> Sequence[Step]:
        """Steps without predecessors, in the order of the workflow."""
        return [step for step in self.steps if not step.predecessors]
