"""Workflow revisions in Postgres, read and written within one namespace as the API's role."""

from __future__ import annotations

import asyncpg

from orchestrator.domain.ids import RevisionKey
from orchestrator.engine.catalogue_ports import RevisionRow
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

_QUERIES = load("catalogue")

LIST_BYTES = 16 << 20
"""Definitions of a page, but for its last: more than the largest, so that a page which is cut shows that it is."""


class PostgresWorkflowStore:
    """WorkflowStore in Postgres. `reads` is a pool of the API's role."""

    def __init__(self, reads: Pool) -> None:
        self._reads = reads

    async def put_revision(self, row: RevisionRow) -> tuple[RevisionRow, bool]:
        """See WorkflowStore.put_revision. For an inline workflow the second value tells whether it was there."""
        namespace, workflow, revision = row.key
        async with self._reads.in_namespace(namespace) as connection:
            if workflow:
                newest = await connection.fetchval(_QUERIES["lock_workflow"], namespace, workflow)
                existing = newest == revision
            else:
                existing = await connection.fetchrow(_QUERIES["get_revision"], *row.key) is not None
            stored = await connection.fetchrow(
                _QUERIES["put_revision"], *row.key, row.definition, list(row.contract_digests), row.create_time
            )
            assert stored is not None  # INSERT … DO UPDATE … RETURNING always answers a row.
            if workflow and not existing:
                await connection.execute(_QUERIES["set_newest"], *row.key)
                await connection.execute(_QUERIES["raise_version"], namespace)
        return _revision_row(stored), existing

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        """See WorkflowStore.get_revision. A revision that is named is found under a deleted name too."""
        if key.revision:
            rows = await self._reads.fetch_in(key.namespace, _QUERIES["get_revision"], *key)
        else:
            rows = await self._reads.fetch_in(key.namespace, _QUERIES["get_newest"], key.namespace, key.workflow)
        return _revision_row(rows[0]) if rows else None

    async def list_workflows(self, namespace: str, after: str, limit: int) -> list[RevisionRow]:
        """See WorkflowStore.list_workflows."""
        rows = await self._reads.fetch_in(namespace, _QUERIES["list_workflows"], namespace, after, limit, LIST_BYTES)
        return [_revision_row(row) for row in rows]

    async def list_revisions(self, namespace: str, workflow: str, offset: int, limit: int) -> list[RevisionRow]:
        """See WorkflowStore.list_revisions. Newest is what was applied last; none under a deleted name."""
        query = _QUERIES["list_revisions"]
        rows = await self._reads.fetch_in(namespace, query, namespace, workflow, offset, limit, LIST_BYTES)
        return [_revision_row(row) for row in rows]

    async def delete_workflow(self, namespace: str, workflow: str) -> RevisionRow | None:
        """See WorkflowStore.delete_workflow."""
        async with self._reads.in_namespace(namespace) as connection:
            newest = await connection.fetchval(_QUERIES["delete_workflow"], namespace, workflow)
            if newest is None:
                return None
            row = await connection.fetchrow(_QUERIES["get_revision"], namespace, workflow, newest)
            await connection.execute(_QUERIES["raise_version"], namespace)
        return None if row is None else _revision_row(row)


def _revision_row(row: asyncpg.Record) -> RevisionRow:
    return RevisionRow(
        key=RevisionKey(row["namespace"], row["workflow"], row["revision"]),
        definition=row["definition"],
        contract_digests=tuple(row["contract_digests"]),
        create_time=row["create_time"],
    )
