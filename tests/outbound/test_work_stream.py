"""Carrying a work session's frames: how a stream ends, whatever its worker does."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from baton.worker.v1 import work_pb2

from orchestrator.outbound.work_session import WorkSession
from orchestrator.outbound.work_stream import carry


class Deaf:
    """A worker that says nothing and reads nothing, as one that is stopped: writes to it never end."""

    def __init__(self) -> None:
        self.written = asyncio.Event()

    async def read(self) -> work_pb2.WorkerFrame | None:
        await asyncio.Event().wait()
        return None

    async def write(self, frame: work_pb2.BatonFrame) -> None:
        self.written.set()
        await asyncio.Event().wait()


async def test_a_stream_whose_worker_reads_no_more_is_ended_by_the_next() -> None:
    session = WorkSession("worker:1", asyncio.get_running_loop(), lambda: None)
    opening = work_pb2.WorkerOpening(instance_id="one", credit=10)
    deaf, next_one = Deaf(), Deaf()
    stuck = asyncio.create_task(carry(session, session.opened(opening), deaf.read, deaf.write))
    async with asyncio.timeout(10):
        await deaf.written.wait()
        following = asyncio.create_task(carry(session, session.opened(opening), next_one.read, next_one.write))
        await stuck
        await next_one.written.wait()
    assert session.ready
    following.cancel()


async def test_who_is_cancelled_as_its_stream_ends_carries_no_other() -> None:
    """Else whoever cancelled it, as a server that stops does, waits for its end for ever."""
    session = WorkSession("worker:1", asyncio.get_running_loop(), lambda: None)
    deaf = Deaf()

    async def keep() -> None:
        while True:
            opening = work_pb2.WorkerOpening(instance_id="one", credit=10)
            await carry(session, session.opened(opening), deaf.read, deaf.write)

    keeping = asyncio.create_task(keep())
    async with asyncio.timeout(10):
        await deaf.written.wait()
        session.replace_stream(lambda: None, lambda: None)  # Ends the stream that there is.
        keeping.cancel()
        await asyncio.wait({keeping})
    assert keeping.cancelled()


async def test_what_ends_a_stream_again_and_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    session = WorkSession("worker:1", asyncio.get_running_loop(), lambda: None)
    nothing = grpc.aio.Metadata()

    async def refuse() -> work_pb2.WorkerFrame | None:
        code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max"
        raise grpc.aio.AioRpcError(code, nothing, nothing, text)

    async def lose() -> work_pb2.WorkerFrame | None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "Socket closed")

    async def write(frame: work_pb2.BatonFrame) -> None:
        pass

    with caplog.at_level(logging.WARNING):
        for read in (lose, refuse, refuse):
            await carry(session, session.opened(work_pb2.WorkerOpening(instance_id="one")), read, write)
    told = "the work stream of worker:1 has ended: RESOURCE_EXHAUSTED: CLIENT: Received message larger than max"
    assert [record.getMessage() for record in caplog.records] == [told]
