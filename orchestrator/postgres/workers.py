"""Workers, endpoints, contracts and the signing key in Postgres.

A change of workers raises the version of its namespace's catalogue in the same transaction, and first of all, so that
changes of one namespace come one after another.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from itertools import groupby
from uuid import UUID

import asyncpg

from orchestrator.domain.ids import EndpointKey, WorkerKey
from orchestrator.engine.catalogue_ports import ContractRow, EndpointRow, Reach, WorkerRow
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

SIGNING_KEY_BYTES = 32

_QUERIES = load("catalogue")


class PostgresWorkerStore:
    """WorkerStore in Postgres. `reads` is a pool of the API's role, `claims` one of the engine's."""

    def __init__(self, reads: Pool, claims: Pool) -> None:
        self._reads = reads
        self._claims = claims

    async def put_endpoint(
        self, key: EndpointKey, max_in_flight: int | None, contract: ContractRow, reach: Reach
    ) -> WorkerRow:
        """See WorkerStore.put_endpoint. Putting what stands already changes nothing, not even the version."""
        worker = WorkerKey(key.namespace, key.worker)
        async with self._reads.in_namespace(key.namespace) as connection:
            how = (reach.work_stream, reach.attached_replica, reach.attached_address)
            wanted = (*key, contract.digest, max_in_flight, *how)
            if await connection.fetchrow(_QUERIES["is_registered"], *wanted) is None:
                await connection.execute(_QUERIES["raise_version"], key.namespace)
                await connection.execute(
                    _QUERIES["put_contract"], key.namespace, contract.digest, contract.files, list(contract.services)
                )
                await connection.execute(_QUERIES["put_worker"], *worker, max_in_flight)
                await connection.execute(_QUERIES["put_endpoint"], *key, contract.digest, *how)
            stored = await _read_worker(connection, worker)
        assert stored is not None  # Put above, and nobody deletes it before this transaction ends.
        return stored

    async def set_draining(self, key: WorkerKey, address: str) -> WorkerRow | None:
        """See WorkerStore.set_draining. None where there is no such worker or address."""
        async with self._reads.in_namespace(key.namespace) as connection:
            if not _has(await _read_worker(connection, key), address):
                return None
            await connection.execute(_QUERIES["raise_version"], key.namespace)
            await connection.execute(_QUERIES["drain_endpoints"], *key, address)
            return await _read_worker(connection, key)

    async def delete_worker(self, key: WorkerKey, address: str) -> WorkerRow | None:
        """See WorkerStore.delete_worker. None where there is no such worker or address."""
        async with self._reads.in_namespace(key.namespace) as connection:
            if not _has(await _read_worker(connection, key), address):
                return None
            await connection.execute(_QUERIES["raise_version"], key.namespace)
            before = await _read_worker(connection, key)
            if not _has(before, address):  # Another was first.
                return None
            await connection.execute(_QUERIES["delete_endpoints"], *key, address)
            await connection.execute(_QUERIES["delete_worker"], *key)
            return before

    async def delete_attached(self, key: EndpointKey, replica_id: UUID) -> bool:
        """See WorkerStore.delete_attached."""
        async with self._reads.in_namespace(key.namespace) as connection:
            await connection.execute(_QUERIES["raise_version"], key.namespace)
            deleted = await connection.fetchrow(_QUERIES["delete_attached"], *key, replica_id)
            await connection.execute(_QUERIES["delete_worker"], key.namespace, key.worker)
            return deleted is not None

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        """See WorkerStore.list_workers."""
        return _worker_rows(await self._reads.fetch_in(namespace, _QUERIES["list_workers"], namespace, ""))

    async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
        """See WorkerStore.get_contracts. In the order of the digests; unknown ones are left out."""
        rows = await self._reads.fetch_in(namespace, _QUERIES["get_contracts"], namespace, list(digests))
        return [ContractRow(row["digest"], row["files"], tuple(row["services"])) for row in rows]

    async def list_namespaces(self, limit: int) -> Mapping[str, int]:
        """See WorkerStore.list_namespaces."""
        rows = await self._claims.fetch(_QUERIES["list_namespaces"], limit)
        return {row["namespace"]: row["version"] for row in rows}


class PostgresKeyStore:
    """KeyStore in Postgres. `claims` is a pool of the engine's role; the API's role cannot read the key."""

    def __init__(self, claims: Pool) -> None:
        self._claims = claims

    async def signing_key(self) -> bytes:
        """See KeyStore.signing_key. Whoever comes first decides; all read the same."""
        await self._claims.fetch(_QUERIES["put_signing_key"], secrets.token_bytes(SIGNING_KEY_BYTES))
        (row,) = await self._claims.fetch(_QUERIES["get_signing_key"])
        secret: bytes = row["secret"]
        return secret


async def _read_worker(
    connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], key: WorkerKey
) -> WorkerRow | None:
    rows = _worker_rows(await connection.fetch(_QUERIES["list_workers"], *key))
    return rows[0] if rows else None


def _has(worker: WorkerRow | None, address: str) -> bool:
    """Tells whether the worker has this address, or is there at all where the address is empty."""
    return worker is not None and (not address or any(row.key.address == address for row in worker.endpoints))


def _worker_rows(rows: Sequence[asyncpg.Record]) -> list[WorkerRow]:
    workers = []
    for _, group in groupby(rows, key=lambda row: row["worker"]):
        of_worker = list(group)
        first = of_worker[0]
        endpoints = tuple(
            EndpointRow(
                key=EndpointKey(row["namespace"], row["worker"], row["address"]),
                contract_digest=row["contract_digest"],
                draining=row["draining"],
                create_time=row["endpoint_create_time"],
                reach=Reach(row["work_stream"], row["attached_replica"], row["attached_address"]),
            )
            for row in of_worker
            if row["address"] is not None
        )
        key = WorkerKey(first["namespace"], first["worker"])
        workers.append(WorkerRow(key, first["max_in_flight"], first["create_time"], endpoints))
    return workers
