"""Calls about limits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from baton.catalogue import pages
from baton.connection import Connection
from baton.v1 import limit_pb2, limit_service_pb2


class Limits:
    """What a client can ask about limits."""

    _connection: Connection

    async def apply_limit(self, limit: limit_pb2.Limit) -> limit_pb2.Limit:
        """Stores a limit under its name, in place of what had the name; effective everywhere within one lease."""
        request = limit_service_pb2.ApplyLimitRequest(limit=limit)
        return (await self._connection.call(lambda link: link.limits.ApplyLimit, request)).limit

    async def get_limit(self, limit: str) -> limit_service_pb2.GetLimitResponse:
        """Returns one limit, and how much of it is in use. Raises NotFound (LIMIT_NOT_FOUND)."""
        request = limit_service_pb2.GetLimitRequest(limit=limit)
        return await self._connection.call(lambda link: link.limits.GetLimit, request)

    async def list_limits(self, *, page_size: int = 0) -> AsyncIterator[limit_pb2.Limit]:
        """Yields the limits, by name, over all pages."""
        request = limit_service_pb2.ListLimitsRequest(page_size=page_size)
        async for page in pages(self._connection, lambda link: link.limits.ListLimits, request):
            for limit in page.limits:
                yield limit

    async def delete_limit(self, limit: str) -> None:
        """Removes a limit. Raises NotFound (LIMIT_NOT_FOUND)."""
        request = limit_service_pb2.DeleteLimitRequest(limit=limit)
        await self._connection.call(lambda link: link.limits.DeleteLimit, request)
