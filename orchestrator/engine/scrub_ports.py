"""The seam between the scrubber and the store that it looks through.

As in `ports.py`, values are plain and instants are microseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import RunRow


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A run that is parked until `wake_time`."""

    row: RunRow
    wake_time: int


@dataclass(frozen=True, slots=True)
class DifferingRuns:
    """Runs whose rows do not agree with the ends of their journals, of a bounded number that were looked at; `last` is
    the last of these where there may be more."""

    rows: Sequence[RunRow]
    last: RunKey | None


@dataclass(frozen=True, slots=True)
class JournaledRun:
    """What the journal of a run tells of its row."""

    state: int
    next_sequence: int
    round: int
    revision: str
    start_time: int | None
    end_time: int | None
    expire_time: int


class ScrubStore(Protocol):
    """Finds what should not exist. Every method raises DatabaseUnavailable."""

    async def free_unknown(self, limit: int) -> Sequence[RunKey]:
        """Lets at most `limit` unfinished runs go whose owner is a replica that there is no row of; they are due."""
        ...

    async def list_owned(self, replica_id: UUID, after: RunKey | None, limit: int) -> Sequence[RunKey]:
        """Lists unfinished runs of a replica, by key."""
        ...

    async def list_parked(self, beyond_seconds: float, after: WaitingRun | None, limit: int) -> Sequence[WaitingRun]:
        """Lists runs whose wake time is further ahead than `beyond_seconds`, by that time."""
        ...

    async def get_unfinished(self, key: RunKey) -> RunRow | None:
        """Reads a run that has not ended by its row."""
        ...

    async def count_overdue(self, seconds: float, limit: int) -> int:
        """Counts runs that have been due, or whose owner has been gone, for so long, and that nobody takes; at most
        `limit`."""
        ...

    async def list_differing(self, owner: UUID | None, after: RunKey | None, limit: int) -> DifferingRuns:
        """Looks at the rows of `limit` unfinished runs of a replica, or of nobody, by key."""
        ...

    async def list_differing_ended(self, after: RunKey | None, limit: int) -> DifferingRuns:
        """Looks at the rows of `limit` runs that have ended by their rows, by key."""
        ...

    async def align(self, row: RunRow, replica_id: UUID, journaled: JournaledRun) -> bool:
        """Lets the row of a run say what its journal tells, where it still stands as `row` and belongs to nobody or to
        `replica_id`; one of nobody that goes on is due. Tells whether it did."""
        ...

    async def list_unknown_members(self, limit: int) -> Sequence[UUID]:
        """Lists at most `limit` replicas of the set that shares limits which there is no row of."""
        ...

    async def remove_members(self, members: Sequence[UUID]) -> bool:
        """Takes replicas that were listed before out of the set, as ones that were lost, where there is still no row of
        them; tells whether it did."""
        ...

    async def remove_schedule_runs(self, limit: int) -> int:
        """Removes at most `limit` runs that schedules keep and that are gone; tells how many."""
        ...
