"""One run, as its submitter holds it: wait for it, watch it, signal or cancel it, take its typed output."""
# ruff: noqa: ASYNC109 - these times go over the wire: the server waits that long too

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from google.protobuf.message import Message

from baton.connection import Connection, Lost, span
from baton.ends import PATIENCE_SECONDS, CannotTell, Ends, Ticket
from baton.errors import RunCancelled, RunFailed, WaitTimeout
from baton.payloads import pack, unpack, unpack_known
from baton.v1 import run_pb2, run_service_pb2
from baton.watch import ENDED_STATES, Position, watch_rounds, watch_run

Out_co = TypeVar("Out_co", bound=Message, covariant=True)

_WAIT_SECONDS = 60.0  # one WaitRun: short enough for proxies that cut idle calls, long enough to cost nothing
_ANSWER_SECONDS = 15.0
LATE_SECONDS = 1.0
"""How long after the end of a wait its answer may come; the next waits in vain."""
_EARLY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Told:
    """Where the end of a run that was submitted with others is told: `ends` without its steps, `whole_ends` with."""

    ticket: Ticket
    ends: Ends
    whole_ends: Ends


class RunHandle(Generic[Out_co]):
    """A run that was submitted. `run` is its last known view."""

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        output_class: type[Out_co] | None,
        *,
        run: run_pb2.Run | None = None,
        cursor: str = "",
        existing: bool = False,
        told: Told | None = None,
    ) -> None:
        self._connection = connection
        self._told = told
        self._has_steps = True
        self._output_class = output_class
        self._position = Position(cursor, run.last_sequence if run is not None else 0)
        self.id = run_id
        self.run = run if run is not None else run_pb2.Run(run_id=run_id)
        self.existing = existing
        """True where the request_id led to a run that was there already."""

    def __repr__(self) -> str:
        return f"<run {self.id} {run_pb2.RunState.Name(self.run.state).removeprefix('RUN_STATE_')}>"

    @property
    def cursor(self) -> str:
        """Position of the last update that was seen; a watch goes on after it, also in another process."""
        return self._position.cursor

    @property
    def ended(self) -> bool:
        """True where the last known view is of a run that has ended."""
        return self.run.state in ENDED_STATES

    async def wait(self, timeout: float | None = None) -> run_pb2.Run:
        """Waits until the run has ended, however it did, and returns it with input, output and steps.

        Raises WaitTimeout after `timeout` seconds (the run goes on), and BatonError.
        """
        await self.wait_for_end(timeout, steps=True)
        return self.run

    async def wait_for_end(self, timeout: float | None, *, steps: bool) -> None:
        """Waits until the run has ended; without `steps`, the view of one that succeeded may lack them. See wait."""
        if self._is_known(steps):
            return
        end_time = math.inf if timeout is None else time.monotonic() + timeout
        try:
            async with asyncio.timeout(None if timeout is None else timeout + LATE_SECONDS):
                while not self._is_known(steps):
                    if self.ended:
                        await self.refresh()  # it may have another round by now, and then goes on
                        continue
                    left = end_time - time.monotonic()
                    if left <= 0:
                        raise TimeoutError
                    wait = min(_WAIT_SECONDS, left)
                    if self._told is None or not await self._hear(self._told, wait, steps):
                        await self._wait_once(wait, patience=min(PATIENCE_SECONDS, left))
        except TimeoutError:
            raise WaitTimeout(self.id, timeout or 0.0) from None

    async def result(self, timeout: float | None = None) -> Out_co:
        """Waits until the run has ended and returns its output.

        Raises RunFailed or RunCancelled with the failure, WaitTimeout after `timeout` seconds, and BatonError.
        """
        await self.wait_for_end(timeout, steps=False)
        run = self.run
        if run.state == run_pb2.RUN_STATE_FAILED:
            raise RunFailed(run)
        if run.state == run_pb2.RUN_STATE_CANCELLED:
            raise RunCancelled(run)
        if self._output_class is not None:
            return unpack(run.output, self._output_class)
        return unpack_known(run.output)  # type: ignore[return-value]  # without a class, the output is a Message

    async def watch(
        self, *, full: bool = False, rounds: bool = False, lost: Lost | None = None
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """Yields what happens after `cursor` (without one, a snapshot first) until the run has ended. With `rounds` it
        goes on after that, for as long as its caller likes, where the run is mended and has another round.

        Each event comes once and in order, over lost connections and restarts of Baton; a snapshot comes again only
        where the cursor has expired. `full` adds inputs and outputs. `lost` is called with the cause when a connection
        is lost and the watch tries for 5 minutes to go on, once until something is heard again. Raises BatonError.
        """
        view = run_service_pb2.RUN_VIEW_FULL if full else run_service_pb2.RUN_VIEW_BASIC
        follow = watch_rounds if rounds else watch_run
        position = replace(self._position)  # each watch has its own, so that none takes events from another
        async with aclosing(follow(self._connection, self.id, position, view, PATIENCE_SECONDS, lost)) as updates:
            async for update in updates:
                self._position.follow(position)
                yield update

    async def refresh(self) -> run_pb2.Run:
        """Reads the run as it is now."""
        request = run_service_pb2.GetRunRequest(run_id=self.id)
        self.run = (await self._connection.call(lambda link: link.runs.GetRun, request)).run
        self._has_steps = True
        return self.run

    async def cancel(self, reason: str = "") -> run_pb2.Run:
        """Cancels the run; raises Conflict (RUN_ENDED) where it has ended otherwise."""
        request = run_service_pb2.CancelRunRequest(run_id=self.id, reason=reason)
        self.run = (await self._connection.call(lambda link: link.runs.CancelRun, request)).run
        self._has_steps = False  # not all of them, and neither input nor output
        return self.run

    async def signal(self, signal: str, message: Message | None = None, *, request_id: str | None = None) -> bool:
        """Sends a signal with its message (by default an Empty) to the steps that wait for it, durably.

        One step takes it, now or later. `request_id` (by default a new one) makes this safe to repeat. Returns whether
        it had arrived before. Raises NotFound (SIGNAL_NOT_FOUND) where no step of the run waits for such a signal,
        InvalidRequest for a message of another type, Conflict (RUN_ENDED) and Unavailable (SIGNAL_LIMIT).
        """
        request = run_service_pb2.SignalRunRequest(
            run_id=self.id, signal=signal, request_id=request_id or str(uuid.uuid4())
        )
        if message is not None:
            request.payload.CopyFrom(pack(message))
        return (await self._connection.call(lambda link: link.runs.SignalRun, request)).existing

    def _is_known(self, steps: bool) -> bool:
        """Tells whether the last known view is of a run that has ended, with all that is asked for."""
        whole = self._has_steps or (not steps and self.run.state == run_pb2.RUN_STATE_SUCCEEDED)
        return whole and self.ended

    async def _hear(self, told: Told, seconds: float, steps: bool) -> bool:
        """Waits by the stream of ends; False where it cannot tell, and the run has to be asked for."""
        try:
            run = await (told.whole_ends if steps else told.ends).wait(self.id, told.ticket, seconds)
        except CannotTell:
            self._told = None
            return False
        if run is not None:
            self.run, self._has_steps = run, steps
        elif seconds >= _WAIT_SECONDS:
            await self.refresh()  # now and then, whatever the stream says
        return True

    async def _wait_once(self, seconds: float, patience: float) -> None:
        request = run_service_pb2.WaitRunRequest(run_id=self.id, wait_timeout=span(seconds))
        start_time = time.monotonic()
        answer = await self._connection.call(
            lambda link: link.runs.WaitRun,
            request,
            timeout=seconds + _ANSWER_SECONDS,
            retry_timeout=patience,
            long=True,
        )
        self.run, self._has_steps = answer.run, True
        if not self.ended and time.monotonic() - start_time < min(seconds, 1.0):
            await self._connection.pause(_EARLY_SECONDS)  # a draining replica answers early; do not hammer the next one
