"""The judge of limits: counts the calls that are at work, and those that start, over all replicas.

A call is at work from when it leaves its replica until its answer is there or it is given up. One whose replica has
died goes on at the worker, which gives up on it after a while, as workers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.worker_ports import Call
from tests.simulation.tally import Tally

if TYPE_CHECKING:
    from tests.simulation.workers import SimulatedSending

Pool = tuple[str, str, str]
"""Namespace, limit, and the key of it."""

CHANGE_SECONDS = 12.0
"""How long calls may still be admitted by what a limit was before: its home learns of the change with its lease, reads
the limits then, and goes on trying where the database is away."""

RATE_SLACK_SECONDS = 0.5
"""How far the times of two replicas may lie apart that admit calls."""

STILL_SLACK_SECONDS = 5.0
"""The same where replicas stand still: what one was given meanwhile it uses when it goes on, within its lease."""


class Quotas:
    """Counts calls. `pools_of` tells what a call counts in."""

    def __init__(
        self,
        breach: Callable[[str, str], None],
        pools_of: Callable[[Call], Sequence[Pool]],
        tally: Tally,
        now: Callable[[], int],
    ) -> None:
        """`now` is the time in microseconds."""
        self._breach, self._pools_of, self._tally, self._now = breach, pools_of, tally, now
        self.rate_slack_seconds = RATE_SLACK_SECONDS
        self._before: dict[tuple[str, str], list[tuple[int, int]]] = {}
        """Until when each limit allowed what, of those that were changed."""
        self._lost: set[Pool] = set()
        self.rows: dict[tuple[str, str], LimitRow] = {}
        self._at_work: dict[Pool, dict[SimulatedSending, None]] = {}

    def begins(self, sending: SimulatedSending) -> None:
        """A call leaves its replica, or goes on after it has waited."""
        for pool in self._pools_of(sending.call):
            at_work = self._at_work.setdefault(pool, {})
            at_work[sending] = None
            if pool in self._lost:
                self._lost.discard(pool)
                self._tally("permits reclaimed")
            most = self._most(pool)
            if most and len(at_work) > most:
                names = ", ".join(each.name for each in at_work)
                self._breach("no limit is exceeded", f"{pool[1]} {pool[2]} allows {most}: {names} are at work")

    def changed(self, row: LimitRow) -> None:
        """Somebody has changed a limit."""
        where = (row.namespace, row.name)
        before, self.rows[where] = self.rows[where], row
        self._before.setdefault(where, []).append((self._now(), before.max_in_flight))
        self._tally("limits lowered", row.max_in_flight < before.max_in_flight)

    def last_change_time(self) -> int:
        """When somebody changed a limit last; 0 where nobody did."""
        return max((until for changes in self._before.values() for until, _ in changes), default=0)

    def _most(self, pool: Pool) -> int:
        """How many calls a limit allows, or may still do."""
        where = pool[:2]
        since = self._now() - round(CHANGE_SECONDS * 1_000_000)
        before = [most for until, most in self._before.get(where, ()) if until > since]
        return max([self.rows[where].max_in_flight, *before])

    def lost(self, sendings: Iterable[SimulatedSending]) -> None:
        """The replica is gone that has made these calls."""
        for sending in sendings:
            self._lost.update(self._pools_of(sending.call))

    def ends(self, sending: SimulatedSending) -> None:
        """A call is over, or waits."""
        for pool in self._pools_of(sending.call):
            self._at_work.get(pool, {}).pop(sending, None)

    def look_at_rates(self, times_of: Mapping[tuple[str, str], Sequence[int]]) -> None:
        """Looks at the times, in microseconds, at which calls were admitted that count in each limit."""
        for where, times in times_of.items():
            rate = self.rows[where].rate
            if rate is None:
                continue
            each_us = rate.interval_us
            ordered = sorted(times)
            for first, begin in enumerate(ordered):
                for last in range(first + rate.burst, len(ordered)):
                    span_us = ordered[last] - begin + self.rate_slack_seconds * 1_000_000
                    if last - first + 1 > rate.burst + span_us / each_us:
                        text = f"{where[1]}: {last - first + 1} calls start in {(ordered[last] - begin) / 1e6:.2f} s"
                        self._breach("no limit is exceeded", text)
                        return
