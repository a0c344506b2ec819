"""Following the health of workers: through every change that a worker and its connection can make."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse

from orchestrator.outbound.channels import Channels
from orchestrator.outbound.health import Health, HealthWatcher

from .conftest import WorkerProcess

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


class Heard:
    """What a watcher told, in order."""

    def __init__(self) -> None:
        self._changes: asyncio.Queue[tuple[str, Health]] = asyncio.Queue()

    def tell(self, address: str, health: Health) -> None:
        self._changes.put_nowait((address, health))

    async def next(self) -> tuple[str, Health]:
        return await asyncio.wait_for(self._changes.get(), 15)

    def nothing_more(self) -> bool:
        return self._changes.empty()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def watcher(channels: Channels, heard: Heard) -> AsyncIterator[HealthWatcher]:
    """A watcher that tells `heard`."""
    made = HealthWatcher(channels, heard.tell)
    yield made
    await made.close()


async def serve_health(service: Any, port: int = 0) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    if service is not None:
        health_pb2_grpc.add_HealthServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, f"127.0.0.1:{bound}"


async def test_a_worker_is_followed_through_its_changes(watcher: HealthWatcher, heard: Heard) -> None:
    service = health_aio.HealthServicer()
    server, address = await serve_health(service)
    watcher.add(address)
    watcher.add(address)
    assert watcher.health(address) == "unknown"
    assert await heard.next() == (address, "serving")
    await service.set("", NOT_SERVING)
    assert await heard.next() == (address, "not_serving")
    assert watcher.health(address) == "not_serving"
    await service.set("", SERVING)
    assert await heard.next() == (address, "serving")
    await service.set("", HealthCheckResponse.SERVICE_UNKNOWN)
    assert await heard.next() == (address, "unknown")
    await server.stop(None)
    assert await heard.next() == (address, "unreachable")
    assert heard.nothing_more()


async def test_a_killed_worker_is_unreachable_until_it_is_back(
    watcher: HealthWatcher, heard: Heard, spawn: Callable[..., Awaitable[WorkerProcess]]
) -> None:
    worker = await spawn()
    watcher.add(worker.address)
    assert await heard.next() == (worker.address, "serving")
    await worker.kill()
    assert await heard.next() == (worker.address, "unreachable")
    await spawn(int(worker.address.split(":")[1]))
    assert await heard.next() == (worker.address, "serving")


async def test_a_worker_without_health_is_asked_again_only_when_it_was_away(
    watcher: HealthWatcher, heard: Heard, channels: Channels
) -> None:
    asked = 0

    class Counting(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            nonlocal asked
            asked += 1
            return await continuation(handler_call_details)

    server = grpc.aio.server(interceptors=(Counting(),))
    port = server.add_insecure_port("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    await server.start()
    watcher.add(address)
    with channels.hold(address) as connection:
        assert await connection.wait_ready(5)
        probe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError):
                await probe(b"")
    assert asked == 21
    assert heard.nothing_more()
    assert watcher.health(address) == "unknown"
    await server.stop(None)
    assert await heard.next() == (address, "unreachable")
    service = health_aio.HealthServicer()
    again, _ = await serve_health(service, port)
    assert await heard.next() == (address, "serving")
    await again.stop(None)


async def test_a_worker_that_ends_the_stream_is_asked_again_at_growing_intervals(
    watcher: HealthWatcher, heard: Heard
) -> None:
    times: list[float] = []
    enough = asyncio.Event()

    class Ending(health_pb2_grpc.HealthServicer):
        async def Watch(self, request: Any, context: Any) -> AsyncIterator[HealthCheckResponse]:  # noqa: N802
            times.append(time.monotonic())
            if len(times) == 4:
                enough.set()
            await context.abort(grpc.StatusCode.INTERNAL, "ended")
            yield HealthCheckResponse()

    server, address = await serve_health(Ending())
    watcher.add(address)
    assert await heard.next() == (address, "unreachable")
    await asyncio.wait_for(enough.wait(), 10)
    assert times[3] - times[0] > 0.9, "three equal intervals would be 0.6 s"
    await server.stop(None)


async def test_nothing_is_told_of_a_removed_address_and_its_stream_ends(watcher: HealthWatcher, heard: Heard) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    class Hanging(health_pb2_grpc.HealthServicer):
        async def Watch(self, request: Any, context: Any) -> AsyncIterator[HealthCheckResponse]:  # noqa: N802
            started.set()
            try:
                await asyncio.Event().wait()
                yield HealthCheckResponse()
            finally:
                ended.set()

    server, address = await serve_health(Hanging())
    watcher.add(address)
    await asyncio.wait_for(started.wait(), 5)
    watcher.remove(address)
    await asyncio.wait_for(ended.wait(), 5)
    await server.stop(None)
    await watcher.close()
    assert heard.nothing_more()
    watcher.remove(address)


async def test_many_endpoints_are_followed_side_by_side(watcher: HealthWatcher, heard: Heard) -> None:
    service = health_aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    addresses = {f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}" for _ in range(200)}
    await server.start()
    for address in addresses:
        watcher.add(address)
    assert {await heard.next() for _ in addresses} == {(address, "serving") for address in addresses}
    await service.set("", NOT_SERVING)
    assert {await heard.next() for _ in addresses} == {(address, "not_serving") for address in addresses}
    await watcher.close()
    await server.stop(None)
