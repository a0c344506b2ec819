"""Judges retry budgets: how many calls that failed each replica tries again, where these are few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from orchestrator.domain.step_run import StepRun
from orchestrator.domain.waits import QueueReason
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.retry_budget import BURST_SECONDS
from orchestrator.engine.worker_ports import Call
from tests.simulation.tally import Tally

CLOCK_SECONDS = 2.0
"""How much more time may pass by the clock of a replica than passes here."""

CallKey = tuple[str, str, int]


@dataclass(slots=True)
class Spent:
    """What a replica, from one lease to the next, has spent of the budget of a worker."""

    since: int
    calls: int = 0
    under_way: dict[CallKey, None] = field(default_factory=dict)
    """Retries that have not succeeded: what succeeds is given back."""


class Retries:
    """`limits` are those of the replicas; nothing is judged before they are known."""

    def __init__(self, breach: Callable[[str, str], None], now: Callable[[], int], tally: Tally) -> None:
        self._breach, self._now, self._tally = breach, now, tally
        self.limits: EngineLimits | None = None
        self._spent: defaultdict[tuple[UUID, str, str], Spent] = defaultdict(lambda: Spent(now()))

    def called(self, replica_id: UUID | None, call: Call, step: StepRun) -> None:
        """A call leaves a replica; `step` is as the journal has it."""
        if self.limits is None or replica_id is None:
            return
        key = (call.run_id, call.step, call.attempt)
        again = call.delivery == 1 and step.target_attempts > 1 and not step.attempts[-2].suspended
        worker = step.attempts[-2].worker if again else call.endpoint.worker
        spent = self._spent[replica_id, call.endpoint.namespace, worker]
        if not again:
            spent.calls += 1
            return
        spent.under_way[key] = None
        self._tally("retries held", step.attempts[-1].waited_for == QueueReason.RETRY_BUDGET)
        per_second, seconds = self.limits.retry_budget_per_second, (self._now() - spent.since) / 1_000_000
        most = max(per_second * BURST_SECONDS, 1.0) + per_second * (seconds + CLOCK_SECONDS)
        most += spent.calls * self.limits.retry_budget_ratio
        if len(spent.under_way) > most + 1:
            self._breach(
                "retries have a budget",
                f"call {call.run_id}/{call.step}/{call.attempt}: {len(spent.under_way)} retries in {seconds:.1f} s",
            )

    def succeeded(self, call: Call) -> None:
        """A replica hears that a call has succeeded."""
        for spent in self._spent.values():
            spent.under_way.pop((call.run_id, call.step, call.attempt), None)
