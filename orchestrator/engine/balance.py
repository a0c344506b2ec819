"""Balance: what each replica drives, and whether this one drives more than its share.

What is known of the others is as old as the last renewal of their lease and of ours. So that runs do not go to and fro,
half of what is too much is given at a time, little differences do not count, and who has just given runs away leaves
what is due to the others for a while. What may not enter: I/O.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from uuid import UUID

TOLERANCE = 0.2
"""Part of the mean that a replica may drive beyond it."""

TOLERANCE_RUNS = 50
"""Runs that it may drive beyond that."""

YIELD_SECONDS = 2.0
"""How long runs that are due are left to the others by a replica that drives more than its share."""


class Balance:
    """Compares `own`, the runs that this replica drives, with what the others said last."""

    def __init__(self, own: Callable[[], int], monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        self._own, self._now_seconds = own, monotonic_seconds
        self._others: Mapping[UUID, int] = {}
        self._yield_end_seconds = 0.0

    def set_loads(self, me: UUID, loads: Mapping[UUID, int]) -> None:
        """Takes what each replica that takes runs drives."""
        self._others = {replica_id: load for replica_id, load in loads.items() if replica_id != me}

    def surplus(self) -> int:
        """Tells how many runs to give away now; 0 where this replica drives no more than its share."""
        own = self._own()
        mean = (own + sum(self._others.values())) / (1 + len(self._others))
        if own <= mean * (1 + TOLERANCE) + TOLERANCE_RUNS:
            return 0
        return math.ceil((own - mean) / 2)

    def gave(self) -> None:
        """Takes note that runs were given away, which the others are to take."""
        self._yield_end_seconds = self._now_seconds() + YIELD_SECONDS

    @property
    def yields(self) -> bool:
        """Whether to leave to the others what they can take as well."""
        return self._now_seconds() < self._yield_end_seconds or self.surplus() > 0

    def least(self) -> UUID | None:
        """The other replica that drives least; None where there is none."""
        return min(self._others, key=self._others.__getitem__, default=None)
