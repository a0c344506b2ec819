"""PermitService: the door of permits for other replicas. Frames pass through; their meaning is known in the engine."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import grpc
from baton.internal.v1 import permits_pb2, permits_pb2_grpc

from orchestrator.engine.api import Permits
from orchestrator.engine.replica_ports import PERMIT_TOKEN_KEY

_AnyContext = grpc.aio.ServicerContext[permits_pb2.ExchangeRequest, permits_pb2.ExchangeResponse]


class PermitService(permits_pb2_grpc.PermitServiceServicer):
    """Serves PermitService by `permits`, to those who show a replica's token."""

    def __init__(self, permits: Permits) -> None:
        self._permits = permits

    async def Exchange(  # type: ignore[override]  # it writes to the context itself
        self, frames: AsyncIterator[permits_pb2.ExchangeRequest], context: _AnyContext
    ) -> None:
        """Carries the stream of another replica."""

        async def read() -> permits_pb2.ExchangeRequest | None:
            return await anext(frames, None)

        async def write(frame: permits_pb2.ExchangeResponse) -> None:
            await context.write(frame)

        await self._permits.exchange(_token(context.invocation_metadata()), read, write)

    async def Look(
        self,
        request: permits_pb2.LookRequest,
        context: grpc.aio.ServicerContext[permits_pb2.LookRequest, permits_pb2.LookResponse],
    ) -> permits_pb2.LookResponse:
        """Tells how much of a limit is in use."""
        use = await self._permits.look(_token(context.invocation_metadata()), request.namespace, request.limit)
        return permits_pb2.LookResponse(use=use)


def _token(metadata: object) -> str:
    pairs = metadata if isinstance(metadata, Iterable) else ()
    return next((value for key, value in pairs if key == PERMIT_TOKEN_KEY and isinstance(value, str)), "")
