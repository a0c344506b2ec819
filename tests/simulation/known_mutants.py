"""Mutants of what replicas know of where there is nothing to take over (postgres/known.py); see mutants.py."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from orchestrator.postgres import known
from tests.simulation.database import Database
from tests.simulation.mutant import Mutant, Patch


def _marked_or_alive(self: Database, emptied: Collection[UUID]) -> list[UUID]:
    return [each for each in self.replicas if each not in emptied]


def _any_time(self: Database, wake_time: int) -> int:
    return wake_time


NEVER_WHOLE: Patch = (known, "WHOLE_LOOKS", 10**9)
ALWAYS_FRESH: Patch = (known, "FRESH_LOOKS", 1)
SHORT_MARGIN: Patch = (known, "CHANGE_MARGIN_SECONDS", 1.2)
"""Worlds are too short for half a minute; where nothing is slow, nothing is under way for so long."""
MOVING = ("mending", "balance")
"""Where many parents are elsewhere than their children, and are poked."""

MUTANTS = (
    Mutant(
        "what is known to be empty is only what is marked",
        [(Database, "marked", _marked_or_alive)],
        ("crash", "gone"),
        "all is asked anew from time to time",
        [NEVER_WHOLE],
    ),
    Mutant(
        "the oldest time leaves a margin for what is under way",
        [ALWAYS_FRESH, (known, "CHANGE_MARGIN_SECONDS", 0.0)],
        ("long:poke",),
        "all is asked anew from time to time",
        [NEVER_WHOLE],
        parts=MOVING,
    ),
    Mutant(
        "no run is parked with a time long past",
        [ALWAYS_FRESH, SHORT_MARGIN, (Database, "not_long_past", _any_time)],
        (),
        "all is asked anew from time to time",
        [NEVER_WHOLE],
        parts=MOVING,
    ),
)
"""What is remembered for longer than it holds."""
