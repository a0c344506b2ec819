"""That what outlives a test is found, and that a port that a test has is nobody else's."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import grpc
import pytest

from tests import ports
from tests.leftovers import alive, left_since
from tests.ports import free_port

FOREVER = "import time; time.sleep(30)"


async def test_what_outlives_a_test_is_found_until_it_ends() -> None:
    before = alive()
    assert await left_since(before) == []
    task = asyncio.create_task(asyncio.Event().wait())
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FOREVER)

    try:
        found = await left_since(before, 0.0)
        assert {each.split()[0] for each in found} == {"channel", "process", "server", "task"}
        assert f"channel to 127.0.0.1:{port}" in found
        assert any(each.startswith(f"process {process.pid}: ") for each in found)
    finally:
        task.cancel()
        process.kill()
        await process.wait()
        await channel.close()
        await server.stop(None)
    assert await left_since(before) == []


async def test_what_ends_in_time_is_no_leftover() -> None:
    before = alive()
    going = asyncio.create_task(asyncio.sleep(0.05))
    assert await left_since(before) == []
    assert going.done()


@pytest.mark.parametrize("shared", [0, 1])
async def test_a_server_comes_back_to_its_port_and_nobody_else_is_given_it(shared: int) -> None:
    port = free_port()
    for _ in range(2):
        server = grpc.aio.server(options=[("grpc.so_reuseport", shared)])
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        await server.start()
        await server.stop(None)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", port))


def test_the_ports_that_are_kept_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "KEPT_PORTS", 2)
    monkeypatch.setattr(ports, "_kept", type(ports._kept)())
    first = free_port()
    free_port()
    free_port()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", first))
    assert len(ports._kept) == 2
    for kept in ports._kept:
        os.close(kept)
