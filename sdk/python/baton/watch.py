"""Watching a run over broken connections: every event once, in order, without a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from baton.connection import Backoff, Connection, Loss, Lost
from baton.errors import BatonError, Unavailable
from baton.status import error_of
from baton.v1 import run_pb2, run_service_pb2

ENDED_STATES = frozenset({run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED})

_ENDING_EVENTS = frozenset({"run_succeeded", "run_failed", "run_cancelled"})
_SILENCE_SECONDS = 45.0  # a progress mark comes every 15 s; three missing mean that nobody is there
_STREAM_SECONDS = 3_600.0
_LOOK_SECONDS = 2.0  # how often it is looked whether an ended run was reopened
_BROKEN = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})


@dataclass(slots=True)
class Position:
    """How far a watch has come. `sequence` is 0 where it is not known yet."""

    cursor: str = ""
    sequence: int = 0

    def follow(self, other: Position) -> None:
        """Moves to where another is, unless that is behind."""
        if other.sequence >= self.sequence:
            self.cursor, self.sequence = other.cursor, other.sequence


class _Unfinished(Exception):
    """The stream left an event out, or ended before the run did."""


async def watch_run(
    connection: Connection,
    run_id: str,
    position: Position,
    view: run_service_pb2.RunView.ValueType,
    patience: float,
    lost: Lost | None = None,
) -> AsyncGenerator[run_service_pb2.WatchRunResponse, None]:
    """Yields the snapshots and events of a run after `position`, which it moves, until the run has ended.

    A lost stream is resumed from the cursor, with growing waits, until nothing was heard for `patience` seconds; then
    Unavailable is raised; `lost` is told before. Where the cursor has expired, the watch starts again with a snapshot.
    """
    backoff = Backoff(longest=5.0)
    heard_time, loss = time.monotonic(), Loss(lost)
    while True:
        wait = 0.0
        served = False
        request = run_service_pb2.WatchRunRequest(run_id=run_id, cursor=position.cursor, view=view, batch=True)
        try:
            with connection.link(long=True) as link:
                call = link.runs.WatchRun(request, timeout=_STREAM_SECONDS, metadata=connection.metadata())
                try:
                    async for update in _read(call):
                        told = _moves(position, update)
                        heard_time = time.monotonic()
                        loss.heard()
                        if told:
                            yield update
                            heard_time = time.monotonic()  # not while the caller was at it
                            if _ends(update):
                                return
                        if update.progress.reconnect:
                            # A server that drains says only this, and may go on to for as long as it drains.
                            if not served:
                                connection.leave()
                                wait = backoff.next_seconds()
                            break
                        served = True
                        backoff.reset()
                    else:
                        # The stream ended in good order: after the terminal event, or because the server had to.
                        if await _has_ended(connection, run_id, position, patience):
                            return
                        raise _Unfinished
                finally:
                    call.cancel()
        except (grpc.aio.AioRpcError, TimeoutError, _Unfinished) as failed:
            error = error_of(failed) if isinstance(failed, grpc.aio.AioRpcError) else _broken(failed)
            wait = _wait_after(connection, error, position, backoff)
            if time.monotonic() + wait - heard_time > patience:
                raise error from None
            loss.tell(error)
        await connection.pause(wait)


async def watch_rounds(
    connection: Connection,
    run_id: str,
    position: Position,
    view: run_service_pb2.RunView.ValueType,
    patience: float,
    lost: Lost | None = None,
) -> AsyncGenerator[run_service_pb2.WatchRunResponse, None]:
    """Yields as watch_run does, over the rounds of a run: after the end of one it waits for the next. It ends only with
    its caller, or an error."""
    told = 0  # Up to which sequence everything is known to be told.
    while True:
        async with aclosing(watch_run(connection, run_id, position, view, patience, lost)) as updates:
            async for update in updates:
                yield update
        told = await _reopened(connection, run_id, max(told, position.sequence), patience)


async def _reopened(connection: Connection, run_id: str, told: int, patience: float) -> int:
    """Waits until a run that had ended has more to tell than `told`; returns up to where."""
    request = run_service_pb2.GetRunRequest(run_id=run_id, view=run_service_pb2.RUN_VIEW_BASIC)
    while True:
        run = (await connection.call(lambda link: link.runs.GetRun, request, retry_timeout=patience)).run
        if run.last_sequence > told:
            return run.last_sequence
        await connection.pause(_LOOK_SECONDS)


async def _read(
    call: grpc.aio.UnaryStreamCall[run_service_pb2.WatchRunRequest, run_service_pb2.WatchRunResponse],
) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
    messages = aiter(call)
    while True:
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                update = await anext(messages)
        except StopAsyncIteration:
            return
        more = list(update.more)
        update.ClearField("more")
        yield update
        for following in more:
            yield following


def _moves(position: Position, update: run_service_pb2.WatchRunResponse) -> bool:
    """Moves the position past an update; returns whether it tells something new."""
    kind = update.WhichOneof("update")
    if kind == "event":
        if position.sequence and update.event.sequence > position.sequence + 1:
            raise _Unfinished
        if update.event.sequence <= position.sequence:
            return False
        position.sequence = update.event.sequence
    elif kind == "snapshot":
        position.sequence = max(position.sequence, update.snapshot.last_sequence)
    if update.cursor:
        position.cursor = update.cursor
    return kind in ("event", "snapshot")


def _ends(update: run_service_pb2.WatchRunResponse) -> bool:
    if update.HasField("snapshot"):
        return update.snapshot.state in ENDED_STATES
    return update.event.WhichOneof("kind") in _ENDING_EVENTS


async def _has_ended(connection: Connection, run_id: str, position: Position, patience: float) -> bool:
    request = run_service_pb2.GetRunRequest(run_id=run_id, view=run_service_pb2.RUN_VIEW_BASIC)
    run = (await connection.call(lambda link: link.runs.GetRun, request, retry_timeout=patience)).run
    # Where no sequence is known the stream had nothing to send after the cursor.
    return run.state in ENDED_STATES and (not position.sequence or run.last_sequence <= position.sequence)


def _wait_after(connection: Connection, error: BatonError, position: Position, backoff: Backoff) -> float:
    if error.reason == "CURSOR_EXPIRED" and position.cursor:
        position.cursor = ""
        return 0.0
    if error.code not in _BROKEN:
        raise error from None
    return connection.wait_after(error, backoff)


def _broken(failed: Exception) -> BatonError:
    if isinstance(failed, TimeoutError):
        return Unavailable("UNAVAILABLE", "", f"the watch was silent for {_SILENCE_SECONDS:g} s")
    return Unavailable("UNAVAILABLE", "", "the watch ended before the run did, or left an event out")
