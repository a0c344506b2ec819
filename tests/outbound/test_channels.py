"""How many connections are held, and when they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.outbound.calls import Outbound
from orchestrator.outbound.channels import Channels

from .conftest import Behaviour, call_of

Serve = Callable[[Behaviour], Awaitable[str]]


async def echo(payload: bytes, context: Any) -> bytes:
    return payload


async def test_beyond_the_limit_the_least_recently_used_connection_is_closed(serve: Serve) -> None:
    channels = Channels(limit=2)
    outbound = Outbound(channels)
    first, second, third = [await serve(echo) for _ in range(3)]
    with channels.hold(first) as first_connection, channels.hold(second) as second_connection:
        pass
    for address in (second, first, third):
        assert (await outbound.call(call_of(address, b"x"))).payload == b"x"
    assert len(channels) == 2
    with channels.hold(first) as connection:
        assert connection is first_connection
    with channels.hold(second) as connection:
        assert connection is not second_connection
    await channels.close()


async def test_connections_in_use_are_not_closed_for_others() -> None:
    channels = Channels(limit=1)
    with (
        channels.hold("127.0.0.1:1"),
        pytest.raises(WorkerUnreachable, match=r"127\.0\.0\.1:2"),
        channels.hold("127.0.0.1:2"),
    ):
        pass
    answer = await Outbound(channels).call(call_of("127.0.0.1:2", deadline_seconds=0.1))
    assert answer.failure is not None
    assert answer.failure.reason == "CONNECT_FAILED"
    assert len(channels) == 1
    await channels.close()


async def test_a_removed_address_is_closed_when_its_last_call_is_done(serve: Serve, channels: Channels) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(payload: bytes, context: Any) -> bytes:
        arrived.set()
        await go_on.wait()
        return payload

    address = await serve(wait)
    calling = asyncio.create_task(Outbound(channels).call(call_of(address, b"x")))
    await arrived.wait()
    with channels.hold(address) as connection:
        pass
    channels.remove(address)
    assert len(channels) == 0
    assert connection.is_ready()
    go_on.set()
    assert (await calling).payload == b"x"
    await asyncio.wait_for(connection.wait_lost(), 5)
    channels.remove(address)
