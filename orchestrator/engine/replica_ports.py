"""The seam between the engines of replicas: what one asks another for.

As in `ports.py`, values are plain. What may not enter: grpc, and generated messages but those that pass through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

PERMIT_TOKEN_KEY = "baton-permit-token"
"""Under which a replica shows another that it is one, to be given permits."""

HINT_TOKEN_KEY = "baton-hint-token"
"""Under which it shows that where it gives a hint."""

ReadAsked = Callable[[], Awaitable["permits_pb2.ExchangeRequest | None"]]
"""Reads a holder's next frame; None where it has ended its side."""

WriteGiven = Callable[["permits_pb2.ExchangeResponse"], Awaitable[None]]
"""Sends a frame to a holder; waits while it does not keep up."""


class ReplicaUnreachable(Exception):
    """Another replica does not answer, or is not the process that was meant."""


class ReplicaHints(Protocol):
    """What replicas let each other know. Each may be lost."""

    async def runs_left(self, replica_id: UUID, address: str) -> None:
        """Tells the replica process `replica_id` that there are runs that nobody drives. Errors: ReplicaUnreachable."""
        ...

    def admits(self, replica_id: UUID, token: str) -> bool:
        """Tells whether a replica made the token to speak to the process `replica_id`."""
        ...


class PermitExchange(Protocol):
    """A stream to another replica, as the home of limits."""

    async def read(self) -> permits_pb2.ExchangeResponse | None:
        """Returns the next frame; None where the other has ended the stream. Errors: ReplicaUnreachable."""
        ...

    async def write(self, frame: permits_pb2.ExchangeRequest) -> None:
        """Sends a frame. Errors: ReplicaUnreachable."""
        ...

    def cancel(self) -> None:
        """Ends the stream."""
        ...


class PermitNetwork(Protocol):
    """How replicas ask each other for permits."""

    def exchange(self, replica_id: UUID, address: str) -> PermitExchange:
        """Opens a stream to the replica process `replica_id`."""
        ...

    async def look(self, replica_id: UUID, address: str, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """Asks how much of a limit is in use. Errors: ReplicaUnreachable."""
        ...

    def admits(self, replica_id: UUID, token: str) -> bool:
        """Tells whether a replica made the token to speak to the process `replica_id`."""
        ...
