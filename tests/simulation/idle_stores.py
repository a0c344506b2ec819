"""The stores of what a simulated world lacks: schedules where these are not drawn, and what is to be scrubbed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import RunRow
from orchestrator.engine.schedule_ports import ClaimedSchedule, ScheduleStore
from orchestrator.engine.scrub_ports import DifferingRuns, JournaledRun, WaitingRun


class NoSchedules:
    """ScheduleStore of a database without schedules."""

    async def claim(
        self, replica_id: UUID, now: int, limit: int, claim_seconds: float, but_of: Collection[str] = ()
    ) -> list[ClaimedSchedule]:
        """See ScheduleStore.claim."""
        return []

    async def next_due_time(self, now: int) -> int | None:
        """See ScheduleStore.next_due_time."""
        return None

    async def list_to_cancel(self, replica_id: UUID, limit: int) -> list[tuple[RunKey, str]]:
        """See ScheduleStore.list_to_cancel."""
        return []

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the simulation has no {name}: it has no schedules")


def no_schedules() -> ScheduleStore:
    """The store of a database without schedules."""
    store: Any = NoSchedules()
    found: ScheduleStore = store
    return found


class NothingToScrub:
    """ScrubStore that finds nothing, so that nothing is repaired before the simulation has seen it."""

    async def free_unknown(self, limit: int) -> Sequence[RunKey]:
        """See ScrubStore.free_unknown."""
        return ()

    async def list_owned(self, replica_id: UUID, after: RunKey | None, limit: int) -> Sequence[RunKey]:
        """See ScrubStore.list_owned."""
        return ()

    async def list_parked(self, beyond_seconds: float, after: WaitingRun | None, limit: int) -> Sequence[WaitingRun]:
        """See ScrubStore.list_parked."""
        return ()

    async def get_unfinished(self, key: RunKey) -> RunRow | None:
        """See ScrubStore.get_unfinished."""
        return None

    async def count_overdue(self, seconds: float, limit: int) -> int:
        """See ScrubStore.count_overdue."""
        return 0

    async def list_differing(self, owner: UUID | None, after: RunKey | None, limit: int) -> DifferingRuns:
        """See ScrubStore.list_differing."""
        return DifferingRuns((), None)

    async def list_differing_ended(self, after: RunKey | None, limit: int) -> DifferingRuns:
        """See ScrubStore.list_differing_ended."""
        return DifferingRuns((), None)

    async def align(self, row: RunRow, replica_id: UUID, journaled: JournaledRun) -> bool:
        """See ScrubStore.align."""
        return False

    async def list_unknown_members(self, limit: int) -> Sequence[UUID]:
        """See ScrubStore.list_unknown_members."""
        return ()

    async def remove_members(self, members: Sequence[UUID]) -> bool:
        """See ScrubStore.remove_members."""
        return False

    async def remove_schedule_runs(self, limit: int) -> int:
        """See ScrubStore.remove_schedule_runs."""
        return 0
