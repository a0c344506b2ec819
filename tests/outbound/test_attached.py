"""Workers that dialled in, and the calls that other replicas give them through this one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from baton.worker.v1 import work_pb2

from orchestrator.outbound.attached import AttachedSessions
from orchestrator.outbound.work_session import SessionState

from .conftest import call_of
from .test_work_session import Listener

ADDRESS = "attach:worker"


class Line:
    """A stream by hand: what is put into `heard` is read, what is written is in `said`."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[work_pb2.WorkerFrame | work_pb2.BatonFrame | None] = asyncio.Queue()
        self.said: asyncio.Queue[work_pb2.WorkerFrame | work_pb2.BatonFrame] = asyncio.Queue()

    async def read(self) -> object:
        return await self.heard.get()

    async def write(self, frame: work_pb2.WorkerFrame | work_pb2.BatonFrame) -> None:
        self.said.put_nowait(frame)

    async def assignments(self, count: int) -> list[int]:
        """Waits until so many assignments were said; returns their numbers."""
        numbers: list[int] = []
        async with asyncio.timeout(10):
            while len(numbers) < count:
                frame = await self.said.get()
                assert isinstance(frame, work_pb2.BatonFrame)
                numbers += [assignment.id for assignment in frame.assignments]
        return numbers


class Bench:
    """One attached worker."""

    def __init__(self) -> None:
        self.attached = AttachedSessions(lambda _: None)
        self.tasks: list[asyncio.Task[object]] = []

    def attach(self, held: Iterable[int] = ()) -> Line:
        """Begins a stream of the worker, which holds something."""
        line = Line()
        opening = work_pb2.WorkerOpening(worker="worker", instance_id="one", credit=100, held=held)
        first = work_pb2.WorkerFrame(opening=opening)
        self.tasks.append(asyncio.create_task(self.attached.carry(ADDRESS, first, line.read, line.write)))  # type: ignore[arg-type]
        return line

    def relay(self) -> tuple[Line, asyncio.Task[bool]]:
        """Begins the stream of another replica to the worker."""
        line = Line()
        opening = work_pb2.BatonOpening(replica_id="other", heartbeat_us=5_000_000, resume_us=5_000_000)
        line.heard.put_nowait(work_pb2.BatonFrame(opening=opening))
        relaying = asyncio.create_task(self.attached.relay(ADDRESS, line))
        self.tasks.append(relaying)  # type: ignore[arg-type]
        return line, relaying


@pytest.fixture
async def bench() -> object:
    made = Bench()
    yield made
    made.attached.close()
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def lost(bench: Bench, line: Line) -> None:
    """Loses the newest stream of the worker."""
    line.heard.put_nowait(None)
    await asyncio.wait((bench.tasks[0],), timeout=10)
    session = bench.attached.session(ADDRESS)
    assert session is not None
    assert session.state is SessionState.LOST


async def test_an_assignment_that_was_lost_on_its_way_takes_no_other_with_it(bench: Bench) -> None:
    worker = bench.attach()
    async with asyncio.timeout(10):
        await worker.said.get()
    other, relaying = bench.relay()
    given = [work_pb2.Assignment(id=number, method="m/M", timeout_us=60_000_000) for number in range(1, 11)]
    other.heard.put_nowait(work_pb2.BatonFrame(assignments=given))
    numbers = await worker.assignments(10)
    await lost(bench, worker)
    again = bench.attach(held=numbers[:-1])
    async with asyncio.timeout(10):
        frame = await again.said.get()
        # The replica hears of it as it opens its next stream, by what that says is held.
        await relaying
    assert isinstance(frame, work_pb2.BatonFrame)
    assert list(frame.cancelled) == []
    line, _ = bench.relay()
    async with asyncio.timeout(10):
        opening = await line.said.get()
    assert isinstance(opening, work_pb2.WorkerFrame)
    assert sorted(opening.opening.held) == list(range(1, 10))


async def test_a_worker_that_drains_and_is_cut_off_is_waited_for_while_it_has_calls(bench: Bench) -> None:
    worker = bench.attach()
    async with asyncio.timeout(10):
        await worker.said.get()
    session = bench.attached.session(ADDRESS)
    assert session is not None
    listener = Listener()
    assigned = session.give(call_of(ADDRESS, b"request", 30.0), listener)
    await worker.assignments(1)
    worker.heard.put_nowait(work_pb2.WorkerFrame(drain=True))
    await lost(bench, worker)
    assert not bench.attached.left(ADDRESS)
    assigned.cancel()
    assert bench.attached.left(ADDRESS)
