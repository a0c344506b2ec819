"""Work streams that Baton opens to addresses which serve none."""

from __future__ import annotations

import asyncio
import uuid

import grpc

from orchestrator.outbound.channels import Channels
from orchestrator.outbound.work_dialer import WorkDialer


async def test_nothing_more_is_told_of_an_address_that_was_removed(channels: Channels) -> None:
    server = grpc.aio.server()  # serves no method, and so no work stream
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
    dialer = WorkDialer(channels, uuid.uuid4(), lambda _: None, lambda *fact: told.put_nowait(fact))
    dialer.add(address)
    assert await asyncio.wait_for(told.get(), 20) == (address, True)
    dialer.remove(address)
    await dialer.close()
    assert told.empty()
    await server.stop(None)
