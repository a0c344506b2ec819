"""What a decision is, what the core asks of a run's data, and the limits of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Failure
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import RunAwaited

MAX_DELIVERIES = 3
"""Sendings of one attempt; an attempt that was sent so often without an answer fails."""

MAX_SENDINGS = 30
"""With those that a replica cut off which was stopped in good order: they count for nothing else."""

MAX_EVENTS = 100_000
"""Events of one run."""

EVENTS_OF_AN_END = 3
"""Most events that an open step or an undo call takes to its end where no attempt is admitted but the first of an undo
call, such as: approval requested, decided, and the step failed."""

MAX_ITEMS = 10_000
"""Items of one map."""

MAX_DELEGATED = 1_000
"""Steps that one step delegates."""

MAX_ADDED = 20_000
"""Steps that are added to one run while it runs."""

MAX_DEPTH = 8
"""Steps that belong to each other, one in the other, the step of the workflow included."""

MAX_RUN_DEPTH = 16
"""Runs above a run."""

MAX_KEPT_SIGNALS = 1_000
"""Signals of one name that no step of a run has taken."""

NEVER_RETRIED = frozenset(
    {"DELIVERY_LIMIT", "OUTCOME_UNKNOWN", "STEP_TIMEOUT", "EVALUATION_FAILED", "PAYLOAD_TOO_LARGE", "INVALID_OUTPUT"}
)
"""Reasons that no retry policy tries again."""


class Conditions(Protocol):
    """What the core needs to know of a run's data, which it does not hold. Answers must not change between calls."""

    def step_ended(self, step: int, state: StepState, failure: Failure | None, payload: Payload | None) -> None:
        """Takes note that a step has ended, so that later answers can depend on it."""
        ...

    def reopened(self) -> None:
        """Takes note that the run was reopened: `Run.moved` tells which steps were kept."""
        ...

    def begun_anew(self, steps: Sequence[int]) -> None:
        """Takes note that steps of the workflow, which have ended or not, begin anew in a run that goes on."""
        ...

    def holds(self, step: int) -> bool | Failure:
        """Evaluates the `when` of a step whose predecessors have all ended."""
        ...

    def output(self) -> Payload | Failure | None:
        """Builds the output of a run whose steps have all ended."""
        ...

    def count_items(self, step: int) -> int | Failure:
        """Counts the items of a map that is ready."""
        ...

    def is_done(self, step: int, iteration: int) -> bool | Failure:
        """Evaluates the `until` of a repeat whose step `iteration` has succeeded."""
        ...

    def wake_time(self, step: int, now: int) -> int | Failure:
        """Evaluates until when a step that is ready at `now` sleeps."""
        ...

    def request(self, step: int) -> Payload | Failure:
        """Builds the request of a step, for one who is to approve it."""
        ...

    def child_run(self, step: int, now: int) -> tuple[RunAwaited, Payload | None] | Failure:
        """Names the child run of a step that is ready at `now`, and builds its input."""
        ...


@dataclass(slots=True)
class Decision:
    """Events to journal, in order; steps that were queued (Run.steps[i].queue_time says when they may start); attempts
    whose calls are to be cancelled after the commit; and steps that began to wait (`wait_due_time` says until when)."""

    events: list[Event] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
