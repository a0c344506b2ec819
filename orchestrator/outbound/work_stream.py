"""Carries the frames of a work session over one stream, whoever opened it: one task that reads and one that writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

import grpc
import grpc.aio
from baton.worker.v1 import work_pb2

from orchestrator.engine.together import run_together
from orchestrator.engine.worker_ports import ReadFrame, WriteFrame
from orchestrator.outbound.work_session import HEARTBEAT_SECONDS, RESUME_SECONDS, WorkSession

OPENING_SECONDS = 10.0
"""How long a worker may take to say who it is."""

SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
"""A stream on which nothing was heard for so long is given up."""

_LOG = logging.getLogger(__name__)
_LOSSES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

T = TypeVar("T")


class NoOpening(Exception):
    """The first frame of a worker does not say who it is."""


class _Ended(Exception):
    """The stream is over, by its worker's wish or ours, or because it was lost. Its text is what is wrong, if any."""


async def open_stream(replica_id: str, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
    """Says who speaks and hears who answers, in a frame with an opening.

    Errors: NoOpening, TimeoutError, what `read` and `write` raise.
    """
    opening = work_pb2.BatonOpening(
        replica_id=replica_id,
        heartbeat_us=int(HEARTBEAT_SECONDS * 1_000_000),
        resume_us=int(RESUME_SECONDS * 1_000_000),
    )
    async with asyncio.timeout(OPENING_SECONDS):
        await write(work_pb2.BatonFrame(opening=opening))
        frame = await read()
    if frame is None or not frame.HasField("opening"):
        raise NoOpening
    return frame


async def carry(session: WorkSession, stream: int, read: ReadFrame, write: WriteFrame) -> None:
    """Carries frames until the stream ends, for whatever reason: the session is told. Errors: what `read` raises that
    is none of gRPC's."""
    carrier = _Carrier(session, stream, read, write)
    try:
        await run_together(carrier.listen(), carrier.speak(), carrier.wait_end())
    except ExceptionGroup as group:
        ended, others = group.split(_Ended)
        if others is not None:
            raise others.exceptions[0] from None
        if ended is not None:
            _complain(session, str(ended.exceptions[0]))
    finally:
        carrier.close()
        session.stream_ended(stream)


def _complain(session: WorkSession, problem: str) -> None:
    """Tells what ended a stream, once while it is the same: a worker that keeps an outcome that is too large, for one,
    sends it on each stream again."""
    if problem and problem != session.problem:
        _LOG.warning("the work stream of %s has ended: %s", session.peer, problem)
    session.problem = problem or session.problem


async def _passing(moving: Awaitable[T], *, tells: bool) -> T:
    """Reads or writes one frame. Errors: _Ended where the stream is over; with the reason where it `tells` one."""
    task = asyncio.current_task()
    cancels_before = task.cancelling() if task is not None else 0
    try:
        return await moving
    except grpc.aio.AioRpcError as error:
        raise _Ended(
            "" if error.code() in _LOSSES or not tells else f"{error.code().name}: {error.details()}"
        ) from None
    except (grpc.aio.BaseError, asyncio.InvalidStateError):
        raise _Ended from None
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancels_before:
            raise
        raise _Ended from None  # Nobody cancelled this task: the channel was closed under the stream.


class _Carrier:
    """The tasks of a stream and what they share."""

    def __init__(self, session: WorkSession, stream: int, read: ReadFrame, write: WriteFrame) -> None:
        self._session, self._stream, self._read, self._write = session, stream, read, write
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._heard = self._said = self._loop.time()
        self._ended = asyncio.Event()
        self._beat = True  # The first frame says that the opening was taken.
        self._timer = self._loop.call_later(HEARTBEAT_SECONDS, self._look)
        session.replace_stream(self._wake.set, self._ended.set)
        self._wake.set()

    def close(self) -> None:
        """Stops looking at the time."""
        self._timer.cancel()

    async def listen(self) -> None:
        """Takes in frames until the worker ends its side."""
        while (frame := await _passing(self._read(), tells=True)) is not None:
            self._heard = self._loop.time()
            self._require_current()
            self._session.received(frame)
        raise _Ended

    async def speak(self) -> None:
        """Says what there is to say, all that came up since the last frame in one."""
        session = self._session
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._require_current()
            frame = session.next_frame(self._beat)
            self._beat = False
            while frame is not None:
                self._said = self._loop.time()
                await _passing(self._write(frame), tells=False)  # Why a write fails is told to whoever reads.
                self._require_current()
                frame = session.next_frame(False) if session.has_more else None
            if session.left:
                raise _Ended

    def _require_current(self) -> None:
        """What is to be said now is said on the newest stream, and nothing is heard on others. Errors: _Ended."""
        if not self._session.is_current(self._stream):
            raise _Ended

    async def wait_end(self) -> None:
        """Ends the stream when it is to end, also while a frame waits for a worker that reads no more."""
        await self._ended.wait()
        raise _Ended

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(HEARTBEAT_SECONDS, self._look)
        if now - self._heard > SILENCE_SECONDS:
            self._ended.set()
        elif now - self._said >= 0.9 * HEARTBEAT_SECONDS:
            self._beat = True
            self._wake.set()
