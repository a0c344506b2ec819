"""Permits over gRPC: the streams by which this replica asks others for permits of limits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol
from uuid import UUID

import grpc.aio
from baton.internal.v1 import permits_pb2, permits_pb2_grpc
from baton.v1 import limit_pb2

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.engine.replica_ports import PERMIT_TOKEN_KEY, ReplicaUnreachable
from orchestrator.outbound.channels import REPLICA_OPTIONS, Channels

LOOK_SECONDS = 2.0

REPLICAS_LIMIT = 256
"""Most replicas that are held a channel to."""


class PermitTokens(Protocol):
    """Makes and verifies what replicas show each other."""

    def sign_relay(self, address: str) -> str:
        """Makes the token for a subject."""
        ...

    def verify_relay(self, address: str, token: str) -> bool:
        """Tells whether a replica made it."""
        ...


class _Exchange:
    """Implements replica_ports.PermitExchange."""

    def __init__(self, call: Any, held: ExitStack) -> None:
        self._call, self._held = call, held

    async def read(self) -> permits_pb2.ExchangeResponse | None:
        """See PermitExchange."""
        try:
            frame = await self._call.read()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise ReplicaUnreachable from error
        return None if frame is grpc.aio.EOF else frame

    async def write(self, frame: permits_pb2.ExchangeRequest) -> None:
        """See PermitExchange."""
        try:
            await self._call.write(frame)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise ReplicaUnreachable from error

    def cancel(self) -> None:
        """See PermitExchange."""
        self._call.cancel()
        self._held.close()


class GrpcPermitNetwork:
    """Implements replica_ports.PermitNetwork. Belongs to the loop that it is made on; close it at the end."""

    def __init__(self, tokens: PermitTokens) -> None:
        self._tokens = tokens
        self._channels = Channels(REPLICAS_LIMIT, REPLICA_OPTIONS)

    def exchange(self, replica_id: UUID, address: str) -> _Exchange:
        """See PermitNetwork."""
        held = ExitStack()
        try:
            connection = held.enter_context(self._channels.hold(address))
        except WorkerUnreachable as error:
            raise ReplicaUnreachable from error
        stub: Any = permits_pb2_grpc.PermitServiceStub(connection.channel)
        return _Exchange(stub.Exchange(metadata=self._metadata(replica_id)), held)

    async def look(self, replica_id: UUID, address: str, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """See PermitNetwork."""
        request = permits_pb2.LookRequest(namespace=namespace, limit=limit)
        try:
            with self._channels.hold(address) as connection:
                stub: Any = permits_pb2_grpc.PermitServiceStub(connection.channel)
                answer = await stub.Look(request, metadata=self._metadata(replica_id), timeout=LOOK_SECONDS)
        except (grpc.aio.AioRpcError, WorkerUnreachable) as error:
            raise ReplicaUnreachable from error
        use: limit_pb2.LimitUse = answer.use
        return use

    def admits(self, replica_id: UUID, token: str) -> bool:
        """See PermitNetwork."""
        return self._tokens.verify_relay(_subject(replica_id), token)

    async def close(self) -> None:
        """Closes every channel."""
        await self._channels.close()

    def _metadata(self, replica_id: UUID) -> tuple[tuple[str, str], ...]:
        return ((PERMIT_TOKEN_KEY, self._tokens.sign_relay(_subject(replica_id))),)


def _subject(replica_id: UUID) -> str:
    # No address that workers attach as begins like this: neither token can pass for the other.
    return f"permits:{replica_id}"
