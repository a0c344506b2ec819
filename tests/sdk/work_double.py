"""Baton's half of the work stream for tests: a model that counts, and the sockets that carry it.

`BatonHalf` is one replica without I/O: it gives what credit allows, and fails where a worker breaks the protocol.
`WorkDouble` carries it over real streams, which it opens to a worker or takes from one that attaches.
"""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from baton.worker.v1 import work_pb2, work_pb2_grpc
from google.protobuf.message import Message


@dataclass(eq=False)
class Given:
    """One assignment: what became of it."""

    assignment: work_pb2.Assignment
    written: bool = False
    lost: bool = False
    outcomes: list[work_pb2.Outcome] = field(default_factory=list)
    progress: list[work_pb2.AssignmentProgress] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether its outcome is waited for."""
        return not self.lost and not self.outcomes


class BatonHalf:
    """One replica: frames in, frames out."""

    def __init__(self, replica_id: str, heartbeat_seconds: float = 5.0, resume_seconds: float = 5.0) -> None:
        self.replica_id = replica_id
        self.heartbeat_seconds = heartbeat_seconds
        self.resume_seconds = resume_seconds
        self.given: dict[int, Given] = {}
        self.opening: work_pb2.WorkerOpening | None = None
        self.instance_id = ""
        self.credit = 0
        self.drained = False
        self.acknowledging = True
        self.draining = False
        self._drain_told = False
        self._outbox: list[Given] = []
        self._cancelled: list[int] = []
        self._acknowledged: list[int] = []

    @property
    def room(self) -> int:
        """How many more assignments the credit allows."""
        if self.opening is None or self.drained or self.draining:
            return 0
        return self.credit - sum(given.open for given in self.given.values())

    def begin(self) -> work_pb2.BatonFrame:
        """The first frame of a new stream."""
        self._drain_told = False
        opening = work_pb2.BatonOpening(
            replica_id=self.replica_id,
            heartbeat_us=int(self.heartbeat_seconds * 1e6),
            resume_us=int(self.resume_seconds * 1e6),
        )
        return work_pb2.BatonFrame(opening=opening)

    def end(self) -> None:
        """The stream is gone."""
        self.opening = None
        self._cancelled.clear()
        self._acknowledged.clear()

    def forget(self) -> None:
        """The time to resume is over: what has no outcome is given to others."""
        self.instance_id = ""
        for given in self.given.values():
            given.lost = given.lost or given.open
        self._outbox.clear()

    def give(self, method: str, request: Message | bytes = b"", timeout_seconds: float = 60.0, **fields: Any) -> int:
        """Gives one assignment, with the next frame; returns its id."""
        content = request if isinstance(request, bytes) else request.SerializeToString()
        number = len(self.given) + 1
        given = self.given[number] = Given(
            work_pb2.Assignment(
                id=number, method=method, request=content, timeout_us=int(timeout_seconds * 1e6), **fields
            )
        )
        self._outbox.append(given)
        return number

    def cancel(self, number: int) -> None:
        """Wants an outcome no longer."""
        self._cancelled.append(number)

    def receive(self, frame: work_pb2.WorkerFrame) -> None:
        """Takes what the worker says; fails where that breaks the protocol."""
        if frame.HasField("opening"):
            assert self.opening is None, "an opening came twice"
            self._opened(frame.opening)
        assert self.opening is not None, "the first frame has no opening"
        assert len(frame.outcomes) + len(frame.progress) <= 500
        for outcome in frame.outcomes:
            given = self.given.get(outcome.id)
            assert given is not None, f"an outcome of {outcome.id}, which was never given"
            assert outcome.WhichOneof("result"), f"the outcome of {outcome.id} is empty"
            assert outcome.WhichOneof("result") == "response" or outcome.status.code != 0
            given.outcomes.append(outcome)
            if self.acknowledging:
                self._acknowledged.append(outcome.id)
        for told in frame.progress:
            self.given[told.id].progress.append(told)
        if frame.HasField("credit"):
            self.credit = frame.credit
        self.drained = self.drained or frame.drain

    def acknowledge(self) -> None:
        """Acknowledges every outcome from now on, and those that came."""
        self.acknowledging = True
        self._acknowledged = [number for number, given in self.given.items() if given.outcomes]

    def next_frame(self) -> work_pb2.BatonFrame | None:
        """The next frame to send, None where there is nothing to say."""
        if self.opening is None:
            return None
        frame = work_pb2.BatonFrame(cancelled=self._cancelled, acknowledged=self._acknowledged)
        for given in self._outbox:
            given.written = True
            frame.assignments.append(given.assignment)
        self._outbox.clear()
        self._cancelled.clear()
        self._acknowledged.clear()
        if (self.drained or self.draining) and not self._drain_told:
            frame.drain = self._drain_told = True
        return frame if frame.ByteSize() else None

    def _opened(self, opening: work_pb2.WorkerOpening) -> None:
        held = set(opening.held)
        same = opening.instance_id == self.instance_id
        assert len(held) == len(opening.held), "held names an assignment twice"
        assert same or not held, "another process holds assignments"
        assert held <= set(self.given), "held names what was never given"
        self.opening, self.instance_id, self.credit = opening, opening.instance_id, opening.credit
        self.drained = False
        for number, given in self.given.items():
            if given.open and given.written and number not in held:
                given.lost = True
        self._cancelled += [number for number in held if self.given[number].lost]


class WorkDouble(work_pb2_grpc.AttachServiceServicer):
    """Carries a half over real streams, one at a time."""

    def __init__(self, half: BatonHalf | None = None) -> None:
        self.half = half or BatonHalf("replica-1")
        self.frames: list[work_pb2.WorkerFrame] = []
        self.code: grpc.StatusCode | None = None
        """With what the last stream ended, where it was opened by `dial`."""
        self.details = ""
        self.refusals: list[Any] = []
        """Statuses with which the next streams of Attach are refused, after the worker's opening."""
        self.attached_count = 0
        self.beating = True
        self._changed = asyncio.Condition()
        self._woken = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._carrying: asyncio.Task[None] | None = None
        self._hung_up = asyncio.Event()
        self._writing = asyncio.Lock()
        """gRPC ends a stream that two write to at once."""

    # --- what a test says

    async def dial(self, address: str) -> None:
        """Opens a stream to a worker, and waits for its opening."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(address, options=(("grpc.max_receive_message_length", 1 << 23),))
        stub: Any = work_pb2_grpc.WorkerServiceStub(self._channel)
        self.code = None
        self._carrying = asyncio.create_task(self._dialled(stub.Work()))
        await self.until(lambda: self.half.opening is not None or self.code is not None)

    async def hang_up(self) -> None:
        """Loses the stream, without a word."""
        self._hung_up.set()
        if self._carrying is not None:
            self._carrying.cancel()
            await asyncio.gather(self._carrying, return_exceptions=True)
        await self.until(lambda: self.half.opening is None)

    async def close(self) -> None:
        """Loses the stream and closes the channel."""
        await self.hang_up()
        if self._channel is not None:
            await self._channel.close()

    def give(self, method: str, request: Message | bytes = b"", timeout_seconds: float = 60.0, **fields: Any) -> int:
        """Gives an assignment at once."""
        number = self.half.give(method, request, timeout_seconds, **fields)
        self._woken.set()
        return number

    def cancel(self, number: int) -> None:
        """Cancels an assignment at once."""
        self.half.cancel(number)
        self._woken.set()

    def acknowledge(self) -> None:
        """Acknowledges what came and what will come."""
        self.half.acknowledge()
        self._woken.set()

    def drain(self) -> None:
        """Says that nothing more will be given."""
        self.half.draining = True
        self._woken.set()

    async def until(self, fact: Callable[[], Any]) -> Any:
        """Waits until something holds, and returns it."""
        async with asyncio.timeout(20), self._changed:
            return await self._changed.wait_for(fact)

    async def outcome(self, number: int) -> work_pb2.Outcome:
        """Waits for the outcome of an assignment."""
        given = self.half.given[number]
        await self.until(lambda: given.outcomes)
        return given.outcomes[0]

    # --- how it is carried

    async def Attach(self, requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """See AttachService."""
        self.attached_count += 1
        if self.refusals:
            await context.write(self.half.begin())
            frame = await context.read()
            assert frame.opening.contract.file
            await context.abort_with_status(self.refusals.pop(0))
        await self._carry(context)

    async def _dialled(self, call: Any) -> None:
        try:
            await self._carry(call)
            await call.done_writing()
            self.code, self.details = await call.code(), await call.details()
        except grpc.aio.AioRpcError as failed:
            self.code, self.details = failed.code(), failed.details() or ""
        finally:
            call.cancel()
            await self._tell()

    async def _carry(self, link: Any) -> None:
        self._hung_up.clear()
        await link.write(self.half.begin())
        parts = [self._read(link), self._write(link), self._hung_up.wait()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.half.end()
            await self._tell()

    async def _read(self, link: Any) -> None:
        while (frame := await link.read()) is not grpc.aio.EOF:
            self.half.receive(frame)
            self.frames.append(frame)
            if frame.HasField("opening"):
                await self._send(link, work_pb2.BatonFrame())  # says that the opening is taken
            self._woken.set()
            await self._tell()

    async def _write(self, link: Any) -> None:
        while True:
            self._woken.clear()
            frame = self.half.next_frame()
            if frame is not None:
                await self._send(link, frame)
                continue
            try:
                async with asyncio.timeout(self.half.heartbeat_seconds / 2):
                    await self._woken.wait()
            except TimeoutError:
                if self.beating:
                    await self._send(link, work_pb2.BatonFrame())

    async def _send(self, link: Any, frame: work_pb2.BatonFrame) -> None:
        async with self._writing:
            await link.write(frame)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
