"""Hints over gRPC: the word that this replica gives others."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import grpc.aio
from baton.internal.v1 import replicas_pb2, replicas_pb2_grpc

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.engine.replica_ports import HINT_TOKEN_KEY, ReplicaUnreachable
from orchestrator.outbound.channels import REPLICA_OPTIONS, Channels

HINT_SECONDS = 1.0
"""How long an answer is waited for."""

REPLICAS_LIMIT = 256
"""Most replicas that are held a channel to."""


class HintTokens(Protocol):
    """Makes and verifies what replicas show each other."""

    def sign_relay(self, address: str) -> str:
        """Makes the token for a subject."""
        ...

    def verify_relay(self, address: str, token: str) -> bool:
        """Tells whether a replica made it."""
        ...


class GrpcReplicaHints:
    """Implements replica_ports.ReplicaHints. Belongs to the loop that it is made on; close it at the end."""

    def __init__(self, tokens: HintTokens) -> None:
        self._tokens = tokens
        self._channels = Channels(REPLICAS_LIMIT, REPLICA_OPTIONS)

    async def runs_left(self, replica_id: UUID, address: str) -> None:
        """See ReplicaHints."""
        metadata = ((HINT_TOKEN_KEY, self._tokens.sign_relay(_subject(replica_id))),)
        try:
            with self._channels.hold(address) as connection:
                stub: Any = replicas_pb2_grpc.ReplicaServiceStub(connection.channel)
                await stub.LookForRuns(replicas_pb2.LookForRunsRequest(), metadata=metadata, timeout=HINT_SECONDS)
        except (grpc.aio.AioRpcError, WorkerUnreachable) as error:
            raise ReplicaUnreachable from error

    def admits(self, replica_id: UUID, token: str) -> bool:
        """See ReplicaHints."""
        return self._tokens.verify_relay(_subject(replica_id), token)

    async def close(self) -> None:
        """Closes every channel."""
        await self._channels.close()


def _subject(replica_id: UUID) -> str:
    # No other subject begins like this: no token can pass for another.
    return f"replica:{replica_id}"
