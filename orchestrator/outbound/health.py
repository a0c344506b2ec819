"""Follows what workers say of their own health by grpc.health.v1. Whether anyone is called is decided elsewhere."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable
from typing import Literal

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.outbound.channels import CONNECT_TIMEOUT_SECONDS, Channels, Connection

Health = Literal["serving", "not_serving", "unknown", "unreachable"]
"""`unknown`: it serves no health, or none for the server as a whole; it is called all the same."""

BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0

_WATCH = "/grpc.health.v1.Health/Watch"

# Answers that do not change while the same server is there: ask again when it was away.
_NO_HEALTH_HERE = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


class _StreamEnd(enum.Enum):
    LOST = enum.auto()
    NO_HEALTH_HERE = enum.auto()


class HealthWatcher:
    """Follows the health of the endpoints that were added; each has one stream, on the connection that calls use.

    `on_change(address, health)` is called when an endpoint's health is another than before; every endpoint starts as
    `unknown`. It is called from tasks of this watcher and must neither wait nor raise.
    """

    def __init__(self, channels: Channels, on_change: Callable[[str, Health], None]) -> None:
        self._channels = channels
        self._on_change = on_change
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._health: dict[str, Health] = {}

    def add(self, address: str) -> None:
        """Starts to follow an address; one that is followed already goes on as it is."""
        if address not in self._followers:
            self._health[address] = "unknown"
            self._followers[address] = asyncio.create_task(self._follow(address))

    def remove(self, address: str) -> None:
        """Stops to follow an address; nothing is told about it from now on."""
        task = self._followers.pop(address, None)
        self._health.pop(address, None)
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def follows(self, address: str) -> bool:
        """Tells whether an address is followed."""
        return address in self._followers

    def health(self, address: str) -> Health:
        """Returns what is known of an address now."""
        return self._health.get(address, "unknown")

    async def close(self) -> None:
        """Stops to follow all addresses."""
        for address in tuple(self._followers):
            self.remove(address)
        if self._ending:
            await asyncio.wait(tuple(self._ending))

    async def _follow(self, address: str) -> None:
        backoff_seconds = BACKOFF_SECONDS
        while True:
            try:
                with self._channels.hold(address) as connection:
                    if not await connection.wait_ready(CONNECT_TIMEOUT_SECONDS):
                        self._tell(address, "unreachable")
                        await connection.wait_ready(None)
                    heard = await self._follow_connection(address, connection)
            except WorkerUnreachable:
                heard = False
            self._tell(address, "unreachable")
            if heard:
                backoff_seconds = BACKOFF_SECONDS
            await asyncio.sleep(backoff_seconds * random.uniform(0.8, 1.2))
            backoff_seconds = min(backoff_seconds * 2, MAX_BACKOFF_SECONDS)

    async def _follow_connection(self, address: str, connection: Connection) -> bool:
        """Follows one stream to its end; tells whether anything was heard of the worker."""
        heard = False
        open_stream: grpc.aio.UnaryStreamMultiCallable[HealthCheckRequest, HealthCheckResponse] = (
            connection.channel.unary_stream(
                _WATCH,
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
        )
        stream = open_stream(HealthCheckRequest(service=""))
        try:
            while True:
                answer = await _next(stream)
                if isinstance(answer, HealthCheckResponse):
                    heard = True
                    self._tell(address, _health_of(answer))
                    continue
                if answer is _StreamEnd.NO_HEALTH_HERE:
                    heard = True
                    self._tell(address, "unknown")
                    await connection.wait_lost()
                return heard
        finally:
            stream.cancel()

    def _tell(self, address: str, health: Health) -> None:
        if self._health.get(address, health) != health:
            self._health[address] = health
            self._on_change(address, health)


async def _next(
    stream: grpc.aio.UnaryStreamCall[HealthCheckRequest, HealthCheckResponse],
) -> HealthCheckResponse | _StreamEnd:
    task = asyncio.current_task()
    cancels_before = task.cancelling() if task is not None else 0
    try:
        answer = await stream.read()
        if isinstance(answer, HealthCheckResponse):
            return answer
        code = await stream.code()
    except grpc.aio.AioRpcError as error:
        code = error.code()
    except (grpc.aio.UsageError, asyncio.InvalidStateError):
        return _StreamEnd.LOST
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancels_before:
            raise
        return _StreamEnd.LOST  # The channel was closed under the stream.
    return _StreamEnd.NO_HEALTH_HERE if code in _NO_HEALTH_HERE else _StreamEnd.LOST


def _health_of(answer: HealthCheckResponse) -> Health:
    if answer.status == HealthCheckResponse.SERVING:
        return "serving"
    if answer.status == HealthCheckResponse.NOT_SERVING:
        return "not_serving"
    return "unknown"
