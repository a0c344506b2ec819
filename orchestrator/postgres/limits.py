"""Limits in Postgres. As with workers, a change raises the version of its namespace's catalogue first of all, in the
same transaction."""

from __future__ import annotations

import asyncpg

from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

_CATALOGUE = load("catalogue")
_QUERIES = load("limits")


class PostgresLimitStore:
    """LimitStore in Postgres. `reads` is a pool of the API's role."""

    def __init__(self, reads: Pool) -> None:
        self._reads = reads

    async def put_limit(self, row: LimitRow, most: int) -> LimitRow | None:
        """See LimitStore.put_limit."""
        rate = (row.rate.count, row.rate.per_us, row.rate.burst) if row.rate is not None else (0, 0, 0)
        async with self._reads.in_namespace(row.namespace) as connection:
            await connection.execute(_CATALOGUE["raise_version"], row.namespace)
            stored = await connection.fetchrow(
                _QUERIES["put_limit"],
                row.namespace,
                row.name,
                row.scope,
                row.target,
                row.max_in_flight,
                *rate,
                most,
            )
        return _limit_row(stored) if stored is not None else None

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        """See LimitStore.list_limits."""
        return [_limit_row(row) for row in await self._reads.fetch_in(namespace, _QUERIES["list_limits"], namespace)]

    async def delete_limit(self, namespace: str, name: str) -> LimitRow | None:
        """See LimitStore.delete_limit."""
        async with self._reads.in_namespace(namespace) as connection:
            await connection.execute(_CATALOGUE["raise_version"], namespace)
            deleted = await connection.fetchrow(_QUERIES["delete_limit"], namespace, name)
        return _limit_row(deleted) if deleted is not None else None


def _limit_row(row: asyncpg.Record) -> LimitRow:
    rate = Rate(row["rate_count"], row["rate_per_us"], row["rate_burst"]) if row["rate_count"] else None
    return LimitRow(
        row["namespace"],
        row["name"],
        row["scope"],
        row["target"],
        row["max_in_flight"],
        rate,
        row["create_time"],
        row["change_time"],
    )
