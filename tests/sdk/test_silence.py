"""Servers that are there and say nothing, frozen or behind a line that swallows: clients and workers go to another."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from baton import Client, Worker, connection
from baton.worker import attaching
from baton.worker.v1 import work_pb2_grpc

from orchestrator.outbound import channels
from orchestrator.rpc import server
from tests.chaos.proxy import FaultyProxy

from .double import Double
from .test_client import INPUT
from .test_worker import Till
from .test_worker_stream import charge_now
from .typing_ok import fulfil
from .work_double import WorkDouble

QUICKER = 20
"""How many times sooner than in earnest silence is noticed here."""

Options = tuple[tuple[str, Any], ...]


def quicker(options: Options) -> Options:
    names = dict(connection.KEEPALIVE)
    return tuple((name, value // QUICKER if name in names else value) for name, value in options)


@pytest.fixture(autouse=True)
def notice_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, attaching):
        monkeypatch.setattr(module, "_OPTIONS", quicker(module._OPTIONS))


@pytest.fixture
async def line(double: Double) -> AsyncIterator[FaultyProxy]:
    """A line to the double."""
    host, _, port = double.address.rpartition(":")
    proxy = FaultyProxy(host, int(port))
    await proxy.start()
    yield proxy
    await proxy.stop()


async def test_a_call_goes_to_another_server_where_one_is_silent(double: Double, line: FaultyProxy) -> None:
    async with Client(f"ipv4:127.0.0.1:{line.port},{double.address}") as client:
        await client.submit(fulfil, INPUT)
        line.swallow()
        run = await client.submit(fulfil, INPUT)
    assert run.id in double.held


async def test_an_attached_worker_goes_to_another_server_where_one_is_silent() -> None:
    work = WorkDouble()
    served = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    work_pb2_grpc.add_AttachServiceServicer_to_server(work, served)  # type: ignore[no-untyped-call,unused-ignore]
    port = served.add_insecure_port("127.0.0.1:0")
    await served.start()
    proxy = FaultyProxy("127.0.0.1", port)
    await proxy.start()
    worker = Worker("payments", baton=f"ipv4:127.0.0.1:{proxy.port},127.0.0.1:{port}")
    worker.add(Till(charge_now))
    await worker.start(attach=True)
    await worker.registered()
    try:
        proxy.swallow()
        await work.until(lambda: work.attached_count == 2)
    finally:
        await asyncio.gather(worker.stop(0), proxy.stop())
        await work.close()
        await served.stop(0)


@pytest.mark.parametrize("options", [connection._OPTIONS, attaching._OPTIONS, channels.REPLICA_OPTIONS, server.OPTIONS])
def test_who_pings_waits_no_longer_than_told(options: Options) -> None:
    # What waits for an answer on HTTP/2 is another option, with another default, than what waits on TCP.
    assert dict(options)["grpc.http2.ping_timeout_ms"] == dict(options)["grpc.keepalive_timeout_ms"] <= 20_000


EVERY = {
    "client": connection._OPTIONS,
    "attaching worker": attaching._OPTIONS,
    "worker": channels._OPTIONS,
    "replica": channels.REPLICA_OPTIONS,
    "server": server.OPTIONS,
}


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY.keys())
def test_grpc_knows_every_option(options: Options) -> None:
    # One that it does not know it passes over, and says nothing.
    spec = importlib.util.find_spec("grpc._cython.cygrpc")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()
    assert [name for name in dict(options) if name.encode() not in library] == []


async def test_servers_let_calls_without_traffic_go_on() -> None:
    allowed = "grpc.http2.min_ping_interval_without_data_ms"
    pinging = [EVERY[name] for name in ("client", "attaching worker", "replica")]
    assert dict(server.OPTIONS)[allowed] < min(dict(options)["grpc.keepalive_time_ms"] for options in pinging)

    async def hold(_: bytes, __: object) -> bytes:
        await asyncio.sleep(6)  # pings: each client sends one a second
        return b""

    async def call(options: Options) -> bytes:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=quicker(options)) as channel:
            answer: bytes = await channel.unary_unary("/test.Silent/Hold")(b"")
            return answer

    shorter = [(name, value // QUICKER if name == allowed else value) for name, value in server.OPTIONS]
    served = grpc.aio.server(options=shorter)
    methods = {"Hold": grpc.unary_unary_rpc_method_handler(hold)}
    served.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Silent", methods)])
    port = served.add_insecure_port("127.0.0.1:0")
    await served.start()
    assert await asyncio.gather(*map(call, pinging)) == [b"", b"", b""]
    await served.stop(None)
