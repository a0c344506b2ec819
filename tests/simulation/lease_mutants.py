"""Mutants of how leases end where a replica is lost, though its process lives; see mutants.py."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.engine.lease import LeaseKeeper
from tests.simulation.database import Database
from tests.simulation.mutant import Mutant

_begin, _stop = LeaseKeeper.__init__, LeaseKeeper.stop


def _look_at_no_loop(
    self: LeaseKeeper, open_store: Any, clock: Any, lease_seconds: float, _: float, *rest: Any
) -> None:
    _begin(self, open_store, clock, lease_seconds, math.inf, *rest)


async def _stop_in_good_order(self: LeaseKeeper, *, lost: bool = False) -> None:
    await _stop(self)


POISONED = ("poison",)

MUTANTS = (
    Mutant("who stands still gives its lease up", [(LeaseKeeper, "__init__", _look_at_no_loop)], parts=POISONED),
    Mutant(
        "who gives its lease up was not stopped in good order",
        [(Database, "give_up", Database.release)],
        parts=POISONED,
    ),
    Mutant("whose engine failed gives its lease up", [(LeaseKeeper, "stop", _stop_in_good_order)], parts=POISONED),
)
"""What is given up, and what is released."""
