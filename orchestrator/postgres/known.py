"""What a replica knows of where there is nothing to take over. What may not enter: SQL.

Each look passes over what rows were before they changed, until Postgres cleans that away, which it may not do while
any transaction is open that began before. Looks that begin where something can be cost as much as what is there, and
not as much as all that was taken over, parked and woken meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

from orchestrator.engine.ports import RunRow

CHANGE_MARGIN_SECONDS = 30.0
"""Longest a change may take from its first statement to its commit; more than any statement timeout."""

FRESH_LOOKS = 5
"""Looks for parked runs after which it is asked anew from which time on to look."""

WHOLE_LOOKS = 30
"""Looks after which all is asked anew, in case that somebody changed rows by hand, or runs an older version beside."""


class Statements(Protocol):
    """What one look asks the database, for one replica. Errors of each: LeaseLost, DatabaseUnavailable."""

    async def marked(self, emptied: Collection[UUID]) -> Sequence[UUID]:
        """Tells which replicas are marked, but these."""
        ...

    async def emptied(self, marked: Collection[UUID]) -> Collection[UUID]:
        """Tells which of these replicas own nothing unfinished."""
        ...

    async def adopt(self, marked: Collection[UUID]) -> list[RunRow]:
        """Takes over runs of these replicas."""
        ...

    async def oldest_parked(self, since: int | None, margin_seconds: float) -> int | None:
        """Tells a time before which no run waits, nor will: that of the oldest one from `since` on, and at most what is
        `margin_seconds` past."""
        ...

    async def wake(self, since: int | None) -> list[RunRow]:
        """Takes over runs of nobody whose time comes, and is not before `since`."""
        ...


class Known:
    """What a replica knows: in its lease, and thus in one history of the database."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, replica_id: UUID | None) -> None:
        self._replica_id = replica_id
        self._emptied: set[UUID] = set()
        """Marked replicas that left nothing, or nothing any more."""
        self._oldest_time: int | None = None
        """No run is parked whose time is before this; None where that is not known."""
        self._adopt_looks = self._wake_looks = 0

    def _know_for(self, replica_id: UUID) -> None:
        if self._replica_id != replica_id:
            self._begin(replica_id)

    async def adopt(self, replica_id: UUID, ask: Statements) -> list[RunRow]:
        """Looks for runs of marked replicas. Errors: LeaseLost, DatabaseUnavailable."""
        self._know_for(replica_id)
        self._adopt_looks += 1
        if whole := self._adopt_looks % WHOLE_LOOKS == 0:
            self._emptied = set()  # Those of them that are no longer there are forgotten too.
        marked = await ask.marked(self._emptied)
        if whole:
            self._emptied |= set(await ask.emptied(marked))
            marked = [one for one in marked if one not in self._emptied]
        if not marked:
            return []
        rows = await ask.adopt(marked)
        if not rows:
            self._emptied |= set(await ask.emptied(marked))
        return rows

    async def wake(self, replica_id: UUID, ask: Statements) -> list[RunRow]:
        """Looks for parked runs whose time comes. Errors: LeaseLost, DatabaseUnavailable."""
        self._know_for(replica_id)
        if self._wake_looks % FRESH_LOOKS == 0:
            since = self._oldest_time if self._wake_looks % WHOLE_LOOKS else None
            self._oldest_time = await ask.oldest_parked(since, CHANGE_MARGIN_SECONDS)
        self._wake_looks += 1
        return await ask.wake(self._oldest_time)
