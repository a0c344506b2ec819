"""Replicas as they are shown, with what their scrubbers found; and the hints that they give each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from baton.v1 import replica_pb2

from orchestrator.domain.errors import ShuttingDown, WorkerNotFound
from orchestrator.engine.directory_ports import FaultRow, ReplicaDirectory, ReplicaRow
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.replica_ports import ReplicaHints
from orchestrator.engine.scrub import REPORTED

_FIRST = UUID(int=0)


class Replicas:
    """Implements api.Replicas. `me` tells which replica process this is now, `takes` whether it takes runs over."""

    def __init__(
        self,
        directory: ReplicaDirectory,
        hints: ReplicaHints,
        me: Callable[[], UUID | None],
        takes: Callable[[], bool],
        look: Callable[[], None],
    ) -> None:
        self._directory, self._hints = directory, hints
        self._me, self._takes, self._look = me, takes, look

    async def list(self, after: UUID | None, limit: int, *, include_ended: bool) -> Sequence[replica_pb2.Replica]:
        """Lists replicas with ids above `after`; see ListReplicas. Errors: DatabaseUnavailable."""
        rows = await self._directory.list_replicas(after or _FIRST, limit, include_released=include_ended)
        return [_show(row) for row in rows]

    async def list_faults(self, offset: int, limit: int) -> Sequence[replica_pb2.FoundFault]:
        """Lists what all replicas found, by fault; see ListFaults. Errors: DatabaseUnavailable."""
        rows = await self._directory.list_faults()
        return [_show_fault(row) for row in rows[offset : offset + limit]]

    def look_for_runs(self, token: str) -> None:
        """Lets this replica look at once for runs that nobody drives. Errors: WorkerNotFound, ShuttingDown."""
        me = self._me()
        if me is None or not self._hints.admits(me, token):
            raise WorkerNotFound("this is not the replica process that was meant, or the caller is no replica")
        if not self._takes():
            raise ShuttingDown("this replica takes no runs over any more; try another")
        self._look()


def _show(row: ReplicaRow) -> replica_pb2.Replica:
    return replica_pb2.Replica(
        replica_id=str(row.replica_id),
        address=row.address,
        version=row.version,
        state=_state(row),
        create_time=to_timestamp(row.create_time),
        lease_expire_time=to_timestamp(row.lease_expire_time),
        end_time=to_timestamp(row.end_time) if row.end_time is not None else None,
        active_runs=row.active_runs,
        faults=[_show_fault(fault) for fault in row.faults],
    )


def _state(row: ReplicaRow) -> replica_pb2.ReplicaState.ValueType:
    if not row.alive:
        return replica_pb2.REPLICA_STATE_ENDED if row.released else replica_pb2.REPLICA_STATE_LOST
    return replica_pb2.REPLICA_STATE_DRAINING if row.draining else replica_pb2.REPLICA_STATE_ACTIVE


def _show_fault(row: FaultRow) -> replica_pb2.FoundFault:
    name = f"FAULT_{row.fault.upper()}"
    known = name in replica_pb2.Fault.keys()  # noqa: SIM118 (an enum's wrapper is no mapping)
    return replica_pb2.FoundFault(
        fault=replica_pb2.Fault.Value(name) if known else replica_pb2.FAULT_UNSPECIFIED,
        count=row.count,
        repaired=known and row.fault not in REPORTED,
        first_time=to_timestamp(row.first_time),
        last_time=to_timestamp(row.last_time),
    )
