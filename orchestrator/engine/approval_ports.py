"""The seam between the engine and the world, as far as approvals go; the rest of it is in `ports.py`.

Values here are plain; instants are microseconds since the Unix epoch (`..._time`). What may not enter: drivers, grpc,
SQL, generated messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import JournalRow


@dataclass(frozen=True, slots=True)
class ApprovalPosition:
    """A place in the list of what waits for a decision: after an event of a run."""

    run_id: UUID
    sequence: int


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A request that waits for a decision: the event that asked for it, and what its run's row tells."""

    key: RunKey
    workflow: str
    principal: str
    event: JournalRow

    @property
    def position(self) -> ApprovalPosition:
        """Where the list goes on after it."""
        return ApprovalPosition(self.key.run_id, self.event.sequence)


@dataclass(frozen=True, slots=True)
class ApprovalPage:
    """Requests that wait, and the position after all that were looked at; None where nothing is left."""

    rows: Sequence[ApprovalRow]
    after: ApprovalPosition | None


class ApprovalStore(Protocol):
    """Finds what waits for a person's decision within one namespace."""

    async def list_approvals(
        self, namespace: str, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> ApprovalPage:
        """Lists at most `limit` requests after a position, of one run or of all: in the order of their runs, and within
        a run in the order they were asked for. One that waits has been journaled, its run has not ended, and no later
        event ends the wait; time may have. A page looks at a bounded number of requests and ends before its payloads
        are large: it may be empty though there is more. Errors: DatabaseUnavailable."""
        ...
