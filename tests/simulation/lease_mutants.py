"""Mutants of how leases end and go on; see mutants.py."""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop
from typing import Any

from orchestrator.engine import lease
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.lease import LeaseKeeper
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Renewal, RunRow
from orchestrator.engine.rebuild import load_run
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.submit import Submitter
from tests.simulation.database import Database
from tests.simulation.known_mutants import SHORT_MARGIN
from tests.simulation.mutant import UNDOUBTED, Mutant, empty, nothing
from tests.simulation.replicas import SimulatedReplicas

_begin, _stop, _mark_before = LeaseKeeper.__init__, LeaseKeeper.stop, LeaseKeeper.mark_before


# --- giving a lease up


def _look_at_no_loop(
    self: LeaseKeeper, open_store: Any, clock: Any, lease_seconds: float, _: float, *rest: Any
) -> None:
    _begin(self, open_store, clock, lease_seconds, math.inf, *rest)


async def _stop_in_good_order(self: LeaseKeeper, *, lost: bool = False) -> None:
    await _stop(self)


# --- of whom to think that they are dead


def _at_once(self: LeaseKeeper) -> int:
    return _mark_before.__get__(self) or self._clock.now()


def _whenever_it_is_carried_out(self: LeaseKeeper) -> int:
    before: int = _mark_before.__get__(self)
    return before if not before or before == self._answered[0] else self._clock.now()


# --- going on with a lease that was over


def _go_on_at_once(self: LeaseKeeper, renewal: Renewal, sent_us: int, loop: AbstractEventLoop) -> None:
    self._clock.set(renewal.database_time, sent_us, self._clock.monotonic_us())
    self._end_us = sent_us + renewal.lease_expire_time - renewal.database_time
    loop.call_soon_threadsafe(self._on_renewal, renewal)


def _by_the_clock_alone(self: LeaseKeeper) -> bool:
    return not self._ended and self._clock.monotonic_us() < self._end_us


async def _load_whatever_is_held(self: Recovery, row: RunRow, journal: Any) -> LiveRun | None:
    live = await load_run(journal, row, self._catalogue)
    if not live.run.ended:
        self._driver.adopt(live)
    return None if live.run.ended else live


POISONED, REVISED = ("poison",), ("revisions", "balance")

MUTANTS = (
    Mutant("who stands still gives its lease up", [(LeaseKeeper, "__init__", _look_at_no_loop)], parts=POISONED),
    Mutant(
        "who gives its lease up was not stopped in good order",
        [(Database, "give_up", Database.release)],
        parts=POISONED,
    ),
    Mutant("whose engine failed gives its lease up", [(LeaseKeeper, "stop", _stop_in_good_order)], parts=POISONED),
    Mutant("who was late itself spares others", [(lease, "LATE_INTERVALS", math.inf)], ("outage",)),
    Mutant("who has just begun spares others", [(LeaseKeeper, "mark_before", property(_at_once))], ("outage",)),
    Mutant(
        "a look goes by the time of its sender",
        [(LeaseKeeper, "mark_before", property(_whenever_it_is_carried_out))],
        ("outage",),
    ),
    Mutant(
        "who rests on what has changed reads it again",
        [UNDOUBTED],
        ("tardy:list_workers",),
        parts=REVISED,
    ),
    Mutant(
        "nothing is submitted under a lease that is over",
        [(Submitter, "require_room", nothing)],
        ("pause",),
        parts=REVISED,
    ),
    Mutant(
        "changes are told before a lease that was over goes on",
        [(LeaseKeeper, "_take", _go_on_at_once)],
        ("pause", "drowsy"),
        parts=REVISED,
    ),
    Mutant(
        "renewals tell what changed since the last that was answered",
        [SHORT_MARGIN, (SimulatedReplicas, "heard_time", nothing)],
        ("outage", "commits"),
        parts=REVISED,
    ),
    Mutant(
        "all is doubted with a lease that is taken anew",
        [SHORT_MARGIN, (Catalogue, "doubt_all", empty)],
        ("pause", "outage"),
        parts=REVISED,
    ),
    Mutant(
        "a lease counts as held once all is doubted",
        [(LeaseKeeper, "holds", property(_by_the_clock_alone))],
        ("absent",),
        parts=REVISED,
    ),
    Mutant(
        "what was taken over under a lost lease replaces nothing",
        [(Recovery, "_load", _load_whatever_is_held)],
        ("deaf",),
        parts=("growth", "poison"),
    ),
)
"""What is given up and what is released, whom others mark, and what a lease rests on that goes on."""
