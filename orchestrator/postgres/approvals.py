"""Finds what waits for a person's decision within one namespace, as the API's role."""

from __future__ import annotations

from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.engine.approval_ports import ApprovalPage, ApprovalPosition, ApprovalRow
from orchestrator.postgres.journal import journal_row
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

LOOKED_AT = 2_000
"""Requests that a page looks at, waiting or not."""

PAGE_BYTES = 4 << 20
"""Payloads of a page, but for its first request."""

_QUERIES = load("approvals")
_FIRST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)


class PostgresApprovalStore:
    """ApprovalStore in Postgres. `reads` is a pool of the API's role."""

    def __init__(self, reads: Pool, looked_at: int = LOOKED_AT, page_bytes: int = PAGE_BYTES) -> None:
        self._reads, self._looked_at, self._page_bytes = reads, looked_at, page_bytes

    async def list_approvals(
        self, namespace: str, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> ApprovalPage:
        """See ApprovalStore.list_approvals."""
        start = after or ApprovalPosition(run_id or _FIRST, 0)
        found = await self._reads.fetch_in(
            namespace,
            _QUERIES["list_approvals"],
            namespace,
            start.run_id,
            start.sequence,
            run_id or _LAST,
            self._looked_at,
            limit,
            self._page_bytes,
        )
        rows = [
            ApprovalRow(RunKey(namespace, row["run_id"]), row["workflow"], row["principal"], journal_row(row))
            for row in found
            if row["run_id"] is not None
        ]
        told = found[0]
        if len(rows) < told["found"]:
            return ApprovalPage(rows, rows[-1].position)
        if told["looked_at"] == self._looked_at:
            return ApprovalPage(rows, ApprovalPosition(told["last_run_id"], told["last_sequence"]))
        return ApprovalPage(rows, None)
