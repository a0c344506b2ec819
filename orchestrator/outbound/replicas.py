"""Requests to other replicas: bytes in, bytes out, over one channel to each. What they mean is not known here."""

from __future__ import annotations

import grpc
import grpc.aio

from orchestrator.domain.errors import OwnerUnavailable, WorkerUnreachable
from orchestrator.engine.ownership import AnsweredElsewhere, Metadata
from orchestrator.outbound.channels import REPLICA_OPTIONS, Channels

REPLICAS_LIMIT = 256
"""Most replicas that are held a channel to."""

REQUESTS_LIMIT = 900
"""Most requests that are under way to one replica: a connection takes 1,000 calls, and more would wait unseen."""

_STATUS_KEY = "grpc-status-details-bin"


class ReplicaRequests:
    """Sends requests to other replicas. Belongs to one event loop; close it at the end."""

    def __init__(self) -> None:
        self._channels = Channels(REPLICAS_LIMIT, REPLICA_OPTIONS)

    async def send(
        self, address: str, method: str, request: bytes, metadata: Metadata, timeout_seconds: float
    ) -> bytes:
        """See ownership.SendRequest."""
        try:
            with self._channels.hold(address) as connection:
                if connection.users > REQUESTS_LIMIT:
                    raise OwnerUnavailable("too many requests are under way to the replica that drives the run")
                return await _send(connection.channel, address, method, request, metadata, timeout_seconds)
        except WorkerUnreachable:
            raise OwnerUnavailable("this replica has no connection to spare, or is stopping; try again") from None

    async def close(self) -> None:
        """Closes every channel; requests under way end as unanswered."""
        await self._channels.close()


async def _send(
    channel: grpc.aio.Channel, address: str, method: str, request: bytes, metadata: Metadata, timeout_seconds: float
) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        return await call(request, timeout=timeout_seconds, metadata=grpc.aio.Metadata(*metadata))
    except grpc.aio.AioRpcError as error:
        code: int = error.code().value[0]
        status = dict(error.trailing_metadata() or ()).get(_STATUS_KEY)
        if isinstance(status, bytes):
            raise AnsweredElsewhere(code, error.details() or "", status) from None
        # What a replica refuses has a status with details; without one, gRPC itself says what became of the call.
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = "the time of the call was over before the replica that drives the run had answered"
            raise AnsweredElsewhere(code, text, None) from None
        text = (
            f"the replica that drives the run does not answer at {address}, or takes no such request; try again, and "
            "where that does not help, set BATON_REPLICA_ADDRESS of that replica to an address that the others reach"
        )
        raise OwnerUnavailable(text) from None
