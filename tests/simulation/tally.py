"""Counts how often what is rare came up: a simulation in which it never does says nothing of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

RARE: Mapping[str, str] = {
    "answers of the past": "reads whose answer, when it came, was no longer what the database held",
    "statements gone by the past": "statements that waited for a lock, and went by what they had seen before",
    "crashes": "processes that were killed, with all that was not written",
    "leases lost": "statements that were refused because their replica was marked",
    "leases renewed that were over": "renewals of a lease whose time was over, before anybody marked its replica",
    "runs adopted": "runs taken over from replicas that were marked",
    "runs claimed": "runs taken over for a verb on them",
    "runs parked": "runs given up while they only wait, or handed over",
    "runs woken": "runs of nobody that were taken over when their time came",
    "runs poked": "runs whose time was let come by what happened elsewhere",
    "commits unknown, landed": "batches that were written, and whose answer was lost",
    "commits unknown, not landed": "batches of which no answer came and nothing was written",
    "commits found written": "batches that were written again and found as they are",
    "writes fenced": "entries that the fence kept out",
    "requests found taken": "submissions whose request id had a run",
    "calls made again": "deliveries of an attempt after its first",
    "calls handed over": "deliveries after one that was cut off by a replica which was stopped in good order",
    "calls lost": "calls whose stream was gone before they answered",
    "answers dropped": "answers that came to who had given the call up",
    "circuits opened": "circuits of endpoints that opened",
    "requests forwarded": "requests that went on to the replica that drives the run",
    "watches gone on with": "watches that went on from a cursor",
    "streams of permits cut": "streams between replicas that broke off",
    "permits reclaimed": "calls under a limit that a lost replica had calls under",
    "limits lowered": "changes of limits that allow fewer calls from then on",
    "runs moved for balance": "runs that went from a replica with more than its share to another",
    "attempts suspended": "attempts that gave their place up until a delegated step has ended",
    "requests decided": "approvals whose decision was acknowledged",
    "schedules taken over": "schedules that were claimed by a replica which is gone",
    "firings found done": "firings of which who took over found the run",
    "firings put off": "firings that waited for a run of their schedule to end",
    "runs reopened": "rounds begun of runs that had ended",
    "runs paused": "pauses that were acknowledged",
    "runs forked": "forks that were acknowledged",
    "calls given to a stream": "calls that went to a worker by a work stream",
    "calls not held": "calls on a work stream that were lost, by what a worker did not hold or by its going",
    "handlers cancelled": "handlers whose outcome was given without them",
    "outcomes told again": "outcomes that a worker told a second time",
    "work sessions gone on with": "work streams on which a worker told what it still held",
    "streams of work cut": "work streams that broke off",
    "workers drained": "workers on work streams that left in good order",
    "workers restarted": "workers on work streams that were killed",
    "retries held": "attempts that waited for the retry budget of the worker that had failed",
    "loops stood still": "event loops that a call made stand still",
    "engines failed": "engines that a call made fail",
    "runs of newer revisions": "runs of a workflow of which a newer revision had been applied for longer than a lease",
    "steps skipped": "steps that were ended in their place",
}
"""What has to come up, and what that is."""


class Tally:
    """Counts of one world, or of many."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, what: str, count: int = 1) -> None:
        """Takes note of something of RARE."""
        assert what in RARE, what
        if count:
            self.counts[what] += count

    def add(self, other: Tally) -> None:
        """Takes over the counts of another world."""
        self.counts += other.counts

    def missing(self) -> list[str]:
        """What has to come up, and did not."""
        return [what for what in RARE if not self.counts[what]]

    def lines(self) -> list[str]:
        """A line for each, for people."""
        width = max(map(len, RARE))
        return [f"{what:{width}} {self.counts[what]:>9,}  {meaning}" for what, meaning in RARE.items()]
