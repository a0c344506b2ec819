"""Retry budgets: how many failed calls of a worker are tried again, over all steps and runs of a replica together.

The policy of a step bounds its own attempts; where a worker fails half of what it gets, or all of it, the sum of them
is a multiple of its load just when it can bear least. So each call that is no retry adds a part of a token to the
budget of its worker, and each retry takes a whole one from that of the worker at which the attempt before failed, which
it gives back if it succeeds: once a worker is well again, what waits is tried again as quickly as it answers. A few a
second are there in any case, so that little traffic never notices. What finds no token waits for one.

Of one replica, in memory: nothing of it is journaled, and no decision depends on it. What may not enter: who waits, and
in which order (admission.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.engine import waits
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.ports import Clock
from orchestrator.engine.queues import Worker
from orchestrator.engine.timers import Timer, Timers
from orchestrator.engine.waits import Wait

LOOK_US = 100_000
"""How long those wait that find no token before they look again."""

BURST_SECONDS = 10.0
"""What a budget holds at most: the tokens that it gets in this time without any call."""

MAX_BUDGETS = 10_000
"""Budgets that are kept; beyond, those for which nobody waits are forgotten, and begin full again."""


class RetryBudget:
    """The tokens of one worker. `calls` counts calls that were no retries; whoever makes one adds to it."""

    __slots__ = ("_time", "_tokens", "calls", "timer")

    def __init__(self, tokens: float, time: int) -> None:
        self._tokens, self._time = tokens, time
        self.calls = 0
        self.timer: Timer | None = None

    def tokens(self, now: int, ratio: float, per_second: float, most: float) -> float:
        """Tells how many tokens there are at `now`, in microseconds."""
        seconds = max(now - self._time, 0) / 1_000_000
        self._tokens = min(self._tokens + self.calls * ratio + seconds * per_second, most)
        self._time, self.calls = now, 0
        return self._tokens

    def take(self) -> None:
        """Takes one token."""
        self._tokens -= 1.0

    def give_back(self) -> None:
        """Puts one back."""
        self._tokens += 1.0


class RetryBudgets:
    """The budgets of a replica, by namespace and worker. `ratio` is the part of a token that each call adds which is no
    retry, `per_second` how many there are besides. `on_due` is called where workers are `due`: their budgets are to be
    looked at again."""

    def __init__(self, clock: Clock, timers: Timers, limits: EngineLimits, on_due: Callable[[], None]) -> None:
        self._clock, self._timers, self._on_due = clock, timers, on_due
        self._ratio, self._per_second = limits.retry_budget_ratio, limits.retry_budget_per_second
        self._most = max(self._per_second * BURST_SECONDS, 1.0)
        self._budgets: dict[Worker, RetryBudget] = {}
        self.due: deque[Worker] = deque()

    def called(self, worker: Worker) -> None:
        """Takes note of a call that is no retry."""
        self._of(worker).calls += 1

    def has_token(self, worker: Worker) -> bool:
        """Tells whether a call that failed at a worker may be tried again now."""
        return self._of(worker).tokens(self._clock.now(), self._ratio, self._per_second, self._most) >= 1.0

    def take(self, worker: Worker) -> None:
        """Takes the token of a retry, of which `has_token` told."""
        self._of(worker).take()

    def give_back(self, worker: Worker) -> None:
        """Gives the token of a retry back that succeeded, or was not made."""
        budget = self._budgets.get(worker)
        if budget is not None:
            budget.give_back()

    def look_later(self, worker: Worker) -> None:
        """Has a budget looked at once it may have a token again."""
        budget = self._of(worker)
        if budget.timer is None:
            budget.timer = self._timers.at(self._clock.now() + LOOK_US, lambda: self._look(worker, budget))

    def clear(self) -> None:
        """Drops every budget."""
        for budget in self._budgets.values():
            if budget.timer is not None:
                budget.timer.cancel()
        self._budgets.clear()
        self.due.clear()

    def wait(self, worker: Worker) -> Wait:
        """Says what those wait for who find no token, and has the budget looked at for them."""
        self.look_later(worker)
        return waits.for_retries(worker[1], self._ratio, self._per_second)

    def _look(self, worker: Worker, budget: RetryBudget) -> None:
        budget.timer = None
        self.due.append(worker)
        self._on_due()

    def _of(self, worker: Worker) -> RetryBudget:
        budget = self._budgets.get(worker)
        if budget is None:
            if len(self._budgets) >= MAX_BUDGETS:
                self._budgets = {key: one for key, one in self._budgets.items() if one.timer is not None}
            budget = self._budgets[worker] = RetryBudget(self._most, self._clock.now())
        return budget
