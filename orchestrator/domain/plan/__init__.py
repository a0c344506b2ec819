"""What next? The only place that answers it.

`decide` takes a run and one input and gives the events to journal; it folds them into the run as it goes, so that it
costs O(affected steps). It is deterministic: the same run, input, time and conditions give the same decision. Nothing
here waits, reads a clock, draws a random number or does I/O. The effects of a decision (calls, cancellations, answers)
are the engine's, after the commit.

One module for each part of a step's life: attempts.py (calls), waits.py (time, signals, people, child runs),
children.py (items, iterations, delegation), ending.py (the run's end and undo), mending.py (what callers do to a run
while it goes on and after its end); planner.py holds what they share.
"""

from __future__ import annotations

from orchestrator.domain.inputs import Input, Reopening, Submission
from orchestrator.domain.plan.children import delegation_limit, find_delegated
from orchestrator.domain.plan.decision import (
    MAX_DELIVERIES,
    MAX_EVENTS,
    MAX_KEPT_SIGNALS,
    NEVER_RETRIED,
    Conditions,
    Decision,
)
from orchestrator.domain.plan.mending import (
    MENDABLE,
    in_the_way,
    steps_begun_anew,
    steps_kept_by_fork,
    steps_retried,
)
from orchestrator.domain.plan.planner import Planner
from orchestrator.domain.plan.times import (
    NEVER,
    next_due_time,
    queue_expire_time,
    redelivery_expire_time,
    step_expire_time,
    wait_due_time,
)
from orchestrator.domain.run import Run

__all__ = [
    "MAX_DELIVERIES",
    "MAX_EVENTS",
    "MAX_KEPT_SIGNALS",
    "MENDABLE",
    "NEVER",
    "NEVER_RETRIED",
    "Conditions",
    "Decision",
    "decide",
    "delegation_limit",
    "find_delegated",
    "in_the_way",
    "next_due_time",
    "queue_expire_time",
    "redelivery_expire_time",
    "step_expire_time",
    "steps_begun_anew",
    "steps_kept_by_fork",
    "steps_retried",
    "wait_due_time",
]


def decide(run: Run, given: Input, now: int, conditions: Conditions) -> Decision:
    """Decides what follows from one input at the time `now`. An input that does not matter, or no longer,
    gives no events: only a submission begins a run, and only one."""
    planner = Planner(run, now, conditions)
    if isinstance(given, Reopening):
        if run.state in MENDABLE:
            planner.take(given)
    elif not run.ended and isinstance(given, Submission) is (run.sequence == 0):
        planner.take(given)
    return planner.decision
