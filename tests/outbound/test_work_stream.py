"""Carrying a work session's frames: how a stream ends, whatever its worker does."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest
from baton.worker.v1 import work_pb2

from orchestrator.engine.worker_ports import Answer, Call
from orchestrator.outbound.work_session import WorkSession
from orchestrator.outbound.work_stream import carry

from .conftest import call_of


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


class Silent:
    """A worker that says nothing and takes what is written."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.written = asyncio.Event()

    async def read(self) -> work_pb2.WorkerFrame | None:
        await asyncio.Event().wait()
        return None

    async def write(self, frame: work_pb2.BatonFrame) -> None:
        self.taken += [assignment.id for assignment in frame.assignments]
        self.written.set()


async def test_what_is_given_as_a_new_stream_begins_goes_there() -> None:
    """The old one may lead nowhere, as that of a worker whose network was gone."""
    to_give: list[Call] = []

    def changed() -> None:
        while to_give:
            session.give(to_give.pop(), Unheard())

    session = WorkSession("worker:1", asyncio.get_running_loop(), changed)
    opening = work_pb2.WorkerOpening(instance_id="one", credit=10)
    old, new = Silent(), Silent()
    carrying = [asyncio.create_task(carry(session, session.opened(opening), old.read, old.write))]
    async with asyncio.timeout(10):
        await old.written.wait()
        to_give.append(call_of("worker:1", b"request", 3_600.0))
        carrying.append(asyncio.create_task(carry(session, session.opened(opening), new.read, new.write)))
        await new.written.wait()
        await carrying[0]
    assert (old.taken, new.taken) == ([], [1])
    carrying[1].cancel()


class Unheard:
    """Hears nothing of its call."""

    def answered(self, answer: Answer) -> None:
        raise AssertionError

    def progressed(self, percent: float, message: str) -> None:
        raise AssertionError
