"""The seam to what is known of all replicas: which there are, and what their scrubbers found.

As in `ports.py`, values are plain and instants are microseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class FaultRow:
    """How often a fault was found. `fault` is one of scrub.Fault, or one that a newer version knows."""

    fault: str
    count: int
    first_time: int
    last_time: int


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """A replica process, by the database's clock. `alive`: its lease goes on; `released`: it gave the lease up itself;
    `draining`: it takes no runs. `active_runs` is what it drives, or what is left of it, bounded by the store."""

    replica_id: UUID
    address: str
    version: str
    create_time: int
    lease_expire_time: int
    end_time: int | None
    alive: bool
    released: bool
    draining: bool
    active_runs: int
    faults: Sequence[FaultRow]


class ReplicaDirectory(Protocol):
    """Knows all replicas. Every method raises DatabaseUnavailable."""

    async def list_replicas(self, after: UUID, limit: int, *, include_released: bool) -> Sequence[ReplicaRow]:
        """Lists replicas with ids above `after`, by id."""
        ...

    async def list_faults(self) -> Sequence[FaultRow]:
        """Lists what all replicas found, added up by fault, in the order of names."""
        ...

    async def add_faults(self, replica_id: UUID, counts: Mapping[str, int]) -> None:
        """Adds what the scrubber of a replica found; a count of 0 says that something is still there."""
        ...
