"""Limits of a namespace: applied, shown with what is in use, and deleted."""

from __future__ import annotations

from collections.abc import Sequence

from baton.v1 import limit_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import LimitNotFound, TooManyLimits
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.limit_ports import LimitRow, LimitStore, Rate
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.permit_door import PermitDoor

MAX_LIMITS = 1_000
"""Limits of a namespace."""

DEFAULT_PER_US = 1_000_000


class LimitCatalogue:
    """Limits of the caller's namespace."""

    def __init__(self, catalogue: Catalogue, store: LimitStore, door: PermitDoor) -> None:
        self._catalogue, self._store, self._door = catalogue, store, door

    async def apply(self, caller: Caller, limit: limit_pb2.Limit) -> limit_pb2.Limit:
        """See ApplyLimit."""
        row = await self._store.put_limit(_read(caller.namespace, limit), MAX_LIMITS)
        if row is None:
            raise TooManyLimits(f"the namespace has {MAX_LIMITS} limits, as many as it may have; delete some")
        await self._catalogue.refresh(caller.namespace)
        return _show(row)

    async def get(self, caller: Caller, limit: str) -> tuple[limit_pb2.Limit, limit_pb2.LimitUse]:
        """See GetLimit."""
        await self._catalogue.meet(caller.namespace)
        row = self._catalogue.limit(caller.namespace, limit)
        if row is None:
            await self._catalogue.refresh(caller.namespace)
            row = self._catalogue.limit(caller.namespace, limit)
        if row is None:
            raise _not_found(limit)
        return _show(row), await self._door.use(caller.namespace, limit)

    async def list(self, caller: Caller, after: str, size: int) -> Sequence[limit_pb2.Limit]:
        """See ListLimits."""
        rows = await self._store.list_limits(caller.namespace)
        return [_show(row) for row in rows if row.name > after][:size]

    async def delete(self, caller: Caller, limit: str) -> limit_pb2.Limit:
        """See DeleteLimit."""
        row = await self._store.delete_limit(caller.namespace, limit)
        if row is None:
            raise _not_found(limit)
        await self._catalogue.refresh(caller.namespace)
        return _show(row)


def _not_found(limit: str) -> LimitNotFound:
    return LimitNotFound(f"no limit is named {limit}; list them with ListLimits", metadata={"limit": limit})


def _read(namespace: str, limit: limit_pb2.Limit) -> LimitRow:
    rate = None
    if limit.HasField("rate"):
        per_us = limit.rate.per.ToMicroseconds() if limit.rate.HasField("per") else DEFAULT_PER_US
        rate = Rate(limit.rate.count, max(per_us, 1), limit.rate.burst or limit.rate.count)
    return LimitRow(namespace, limit.name, int(limit.scope), limit.target, limit.max_in_flight, rate, 0, 0)


def _show(row: LimitRow) -> limit_pb2.Limit:
    message = limit_pb2.Limit(
        name=row.name,
        scope=row.scope,  # type: ignore[arg-type]
        target=row.target,
        max_in_flight=row.max_in_flight,
        create_time=to_timestamp(row.create_time),
    )
    if row.rate is not None:
        message.rate.count, message.rate.burst = row.rate.count, row.rate.burst
        message.rate.per.FromMicroseconds(row.rate.per_us)
    return message
