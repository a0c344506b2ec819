"""What is known of all replicas, in Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import asyncpg

from orchestrator.engine.directory_ports import FaultRow, ReplicaRow
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

COUNTED_RUNS = 10_000
"""Most runs that are counted of a replica that does not tell how many it drives."""

_QUERIES = load("directory")


class PostgresReplicaDirectory:
    """ReplicaDirectory in Postgres. `claims` is a pool of the engine's role."""

    def __init__(self, claims: Pool) -> None:
        self._claims = claims

    async def list_replicas(self, after: UUID, limit: int, *, include_released: bool) -> list[ReplicaRow]:
        """See ReplicaDirectory.list_replicas."""
        rows = await self._claims.fetch(_QUERIES["list_replicas"], after, limit, include_released, COUNTED_RUNS)
        return [_replica_row(row) for row in rows]

    async def list_faults(self) -> list[FaultRow]:
        """See ReplicaDirectory.list_faults."""
        return [FaultRow(*row) for row in await self._claims.fetch(_QUERIES["list_faults"])]

    async def add_faults(self, replica_id: UUID, counts: Mapping[str, int]) -> None:
        """See ReplicaDirectory.add_faults."""
        await self._claims.fetch(_QUERIES["add_faults"], replica_id, list(counts), list(counts.values()))


def _replica_row(row: asyncpg.Record) -> ReplicaRow:
    return ReplicaRow(
        row["replica_id"],
        row["address"],
        row["version"],
        row["create_time"],
        row["lease_expire_time"],
        row["end_time"],
        row["alive"],
        row["released"],
        row["draining"],
        row["active_runs"],
        [FaultRow(*fault) for fault in row["faults"]],
    )
