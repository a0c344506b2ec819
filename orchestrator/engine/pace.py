"""When the journal may begin its next batch: at once while the event loop has time to spare, later where it has not.

A batch costs much the same whether five runs are in it or fifty: a statement and a commit, and then a frame to each
worker and one back. A loop that has no time to spare and begins a batch whenever the one before it is done writes small
ones, and is busy with those. Where it waits some milliseconds, more runs share them, and all of them are done sooner.
What may not enter: what is in a batch.
"""

from __future__ import annotations

from orchestrator.engine.machine import Machine

LONGEST_US = 8_000
"""Microseconds that a journal may wait at most, from the beginning of one batch to that of the next."""

FEW_RUNS = 4
"""After a batch of fewer runs the next one begins at once: there is little to share."""

BUSY_FROM, BUSY_FULLY = 0.6, 0.85
"""Shares of its time in which the loop's thread is at work, or waits for a processor: up to the first nothing waits,
from the second on the longest."""

LOOK_US = 20_000
"""Microseconds from one look at how busy the loop is to the next. It takes a few of them to follow a change."""


class Pace:
    """Times the batches of one journal, by how busy the thread is that calls it: all calls come from the same one."""

    def __init__(self, machine: Machine) -> None:
        self._now_ns, self._busy_ns = machine.monotonic_ns, machine.busy_ns
        self._looked_ns, self._looked_busy_ns = self._now_ns(), self._busy_ns()
        self._begun_ns = self._looked_ns
        self._gap_us = 0
        self._runs = 0

    def begin(self, runs: int) -> None:
        """Takes note that a batch of so many runs begins."""
        now_ns = self._now_ns()
        self._begun_ns, self._runs = now_ns, runs
        passed_ns = now_ns - self._looked_ns
        if passed_ns < LOOK_US * 1_000:
            return
        busy_ns = self._busy_ns()
        share = (busy_ns - self._looked_busy_ns) / passed_ns
        self._looked_ns, self._looked_busy_ns = now_ns, busy_ns
        wanted_us = LONGEST_US * min(max(0.0, (share - BUSY_FROM) / (BUSY_FULLY - BUSY_FROM)), 1.0)
        self._gap_us = round((self._gap_us + wanted_us) / 2)

    def wait_seconds(self) -> float:
        """Tells how long the next batch is to wait; 0.0: it may begin."""
        if self._runs < FEW_RUNS:
            return 0.0
        return max(0.0, (self._begun_ns - self._now_ns()) / 1_000_000_000 + self._gap_us / 1_000_000)
