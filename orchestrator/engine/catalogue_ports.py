"""The seam between the engine and its catalogue: workflow revisions, workers with their endpoints, and contracts.

As in `ports.py`, values are plain and instants are microseconds since the Unix epoch. What may not enter: drivers,
grpc, SQL, generated messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A stored revision; `definition` is a serialized baton.v1.Workflow."""

    key: RevisionKey
    definition: bytes
    contract_digests: tuple[str, ...]
    create_time: int


@dataclass(frozen=True, slots=True)
class ContractRow:
    """A stored contract; `files` is a serialized FileDescriptorSet, `services` the full names taken from it."""

    digest: str
    files: bytes
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """How an endpoint is reached. `work_stream`: it speaks baton.worker.v1. One that takes no connections itself is
    reached through the replica process `attached_replica` that its worker attached to, at `attached_address`."""

    work_stream: bool = False
    attached_replica: UUID | None = None
    attached_address: str = ""


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """A stored endpoint; `draining` ones take no new calls."""

    key: EndpointKey
    contract_digest: str
    draining: bool
    create_time: int
    reach: Reach


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A stored worker with its endpoints."""

    key: WorkerKey
    max_in_flight: int
    create_time: int
    endpoints: tuple[EndpointRow, ...]


class WorkflowStore(Protocol):
    """Keeps workflow revisions. A new newest revision or a deletion raises the namespace's catalogue version."""

    async def put_revision(self, row: RevisionRow) -> tuple[RevisionRow, bool]:
        """Stores a revision and makes it the newest of its name; answers the stored row and whether it was the newest
        already. Inline workflows (empty name) are stored without becoming anything's newest."""
        ...

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        """Reads one revision, also of a deleted name; an empty `key.revision` means the newest of one that is not."""
        ...

    async def list_workflows(self, namespace: str, after: str, limit: int) -> list[RevisionRow]:
        """Lists newest revisions with names above `after`, by name."""
        ...

    async def list_revisions(self, namespace: str, workflow: str, offset: int, limit: int) -> list[RevisionRow]:
        """Lists revisions of a workflow, newest first."""
        ...

    async def delete_workflow(self, namespace: str, workflow: str) -> RevisionRow | None:
        """Removes the name; answers its newest revision, None where there is none."""
        ...


class WorkerStore(Protocol):
    """Keeps workers, endpoints and contracts. Every change raises the namespace's catalogue version."""

    async def put_endpoint(
        self, key: EndpointKey, max_in_flight: int | None, contract: ContractRow, reach: Reach
    ) -> WorkerRow:
        """Stores an endpoint as active, with its contract, making the worker where it is new."""
        ...

    async def delete_attached(self, key: EndpointKey, replica_id: UUID) -> bool:
        """Deletes an endpoint, and its worker with its last one, where it is attached to this replica process still;
        tells whether it was."""
        ...

    async def set_draining(self, key: WorkerKey, address: str) -> WorkerRow | None:
        """Drains one address, or all where `address` is empty."""
        ...

    async def delete_worker(self, key: WorkerKey, address: str) -> WorkerRow | None:
        """Deletes one address, or the worker where `address` is empty or was its last; answers it as it was."""
        ...

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        """Lists all workers of a namespace, by name."""
        ...

    async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
        """Reads contracts."""
        ...

    async def list_namespaces(self, limit: int) -> Mapping[str, int]:
        """Lists namespaces with anything in their catalogue, those that changed last, with its version."""
        ...
