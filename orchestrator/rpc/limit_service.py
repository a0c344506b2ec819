"""LimitService: requests of the wire to calls of the engine, and back. Requests have been validated."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from baton.v1 import limit_service_pb2, limit_service_pb2_grpc

from orchestrator.engine.api import Limits
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, page_size


class LimitService(limit_service_pb2_grpc.LimitServiceServicer):
    """Serves LimitService by `limits`. The caller is known."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def ApplyLimit(
        self, request: limit_service_pb2.ApplyLimitRequest, context: object
    ) -> limit_service_pb2.ApplyLimitResponse:
        """Stores a limit."""
        limit = await self._limits.apply(current_caller(), request.limit)
        return limit_service_pb2.ApplyLimitResponse(limit=limit)

    async def GetLimit(
        self, request: limit_service_pb2.GetLimitRequest, context: object
    ) -> limit_service_pb2.GetLimitResponse:
        """Reads a limit and how much of it is in use."""
        limit, use = await self._limits.get(current_caller(), request.limit)
        return limit_service_pb2.GetLimitResponse(limit=limit, use=use)

    async def ListLimits(
        self, request: limit_service_pb2.ListLimitsRequest, context: object
    ) -> limit_service_pb2.ListLimitsResponse:
        """Lists limits."""
        caller = current_caller()
        listing = Listing("ListLimits", caller.namespace)
        size = page_size(request.page_size)
        found = await self._limits.list(caller, listing.position(request.page_token), size + 1)
        limits, more = cut_page(found, size)
        return limit_service_pb2.ListLimitsResponse(
            limits=limits, next_page_token=listing.token(limits[-1].name) if more else ""
        )

    async def DeleteLimit(
        self, request: limit_service_pb2.DeleteLimitRequest, context: object
    ) -> limit_service_pb2.DeleteLimitResponse:
        """Deletes a limit."""
        limit = await self._limits.delete(current_caller(), request.limit)
        return limit_service_pb2.DeleteLimitResponse(limit=limit)
