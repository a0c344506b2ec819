"""What the scrubber looks for, in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import TERMINAL_EVENTS
from orchestrator.engine.ports import RunRow
from orchestrator.engine.scrub_ports import DifferingRuns, JournaledRun, WaitingRun
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.runs import run_row
from orchestrator.postgres.sql import load

_QUERIES = load("scrub")
_FIRST = RunKey("", UUID(int=0))
_TERMINAL = sorted(int(kind) for kind in TERMINAL_EVENTS)


class PostgresScrubStore:
    """ScrubStore in Postgres. `claims` is a pool of the engine's role."""

    def __init__(self, claims: Pool) -> None:
        self._claims = claims

    async def free_unknown(self, limit: int) -> list[RunKey]:
        """See ScrubStore.free_unknown."""
        rows = await self._claims.fetch(_QUERIES["free_unknown"], limit)
        return [RunKey(row["namespace"], row["run_id"]) for row in rows]

    async def list_owned(self, replica_id: UUID, after: RunKey | None, limit: int) -> list[RunKey]:
        """See ScrubStore.list_owned."""
        namespace, run_id = after or _FIRST
        rows = await self._claims.fetch(_QUERIES["owned"], replica_id, namespace, run_id, limit)
        return [RunKey(row["namespace"], row["run_id"]) for row in rows]

    async def list_parked(self, beyond_seconds: float, after: WaitingRun | None, limit: int) -> list[WaitingRun]:
        """See ScrubStore.list_parked."""
        time, (namespace, run_id) = (after.wake_time, after.row.key) if after is not None else (0, _FIRST)
        rows = await self._claims.fetch(_QUERIES["parked"], beyond_seconds, time, namespace, run_id, limit)
        return [WaitingRun(run_row(row), row["wake_time"]) for row in rows]

    async def get_unfinished(self, key: RunKey) -> RunRow | None:
        """See ScrubStore.get_unfinished."""
        rows = await self._claims.fetch(_QUERIES["unfinished"], key.namespace, key.run_id)
        return run_row(rows[0]) if rows else None

    async def count_overdue(self, seconds: float, limit: int) -> int:
        """See ScrubStore.count_overdue."""
        (row,) = await self._claims.fetch(_QUERIES["count_overdue"], seconds, limit)
        overdue: int = row["overdue"]
        return overdue

    async def list_differing(self, owner: UUID | None, after: RunKey | None, limit: int) -> DifferingRuns:
        """See ScrubStore.list_differing."""
        return await self._list_differing(owner or UUID(int=0), after, limit)

    async def list_differing_ended(self, after: RunKey | None, limit: int) -> DifferingRuns:
        """See ScrubStore.list_differing_ended."""
        return await self._list_differing(None, after, limit)

    async def _list_differing(self, owner: UUID | None, after: RunKey | None, limit: int) -> DifferingRuns:
        rows = await self._claims.fetch(_QUERIES["differing"], owner, *(after or _FIRST), limit, _TERMINAL)
        first = rows[0]
        last = RunKey(first["last_namespace"], first["last_run_id"]) if first["looked_count"] == limit else None
        return DifferingRuns([run_row(row) for row in rows if row["namespace"] is not None], last)

    async def align(self, row: RunRow, replica_id: UUID, journaled: JournaledRun) -> bool:
        """See ScrubStore.align."""
        aligned = await self._claims.fetch(
            _QUERIES["align"],
            *row.key,
            replica_id,
            row.epoch,
            row.next_sequence,
            row.end_time is not None,
            journaled.state,
            journaled.next_sequence,
            journaled.round,
            journaled.revision,
            journaled.start_time,
            journaled.end_time,
            journaled.expire_time,
        )
        return bool(aligned)

    async def list_unknown_members(self, limit: int) -> list[UUID]:
        """See ScrubStore.list_unknown_members."""
        return [row["replica_id"] for row in await self._claims.fetch(_QUERIES["unknown_members"], limit)]

    async def remove_members(self, members: Sequence[UUID]) -> bool:
        """See ScrubStore.remove_members."""
        return bool(await self._claims.fetch(_QUERIES["remove_members"], list(members)))

    async def remove_schedule_runs(self, limit: int) -> int:
        """See ScrubStore.remove_schedule_runs."""
        return len(await self._claims.fetch(_QUERIES["remove_schedule_runs"], limit))
