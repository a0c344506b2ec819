"""What a worker asks of Baton's StepService for the attempts that it serves, and which of them wait for an answer.

One of these serves a whole worker; what one attempt waits for is in attempt.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from baton.connection import Connection, span
from baton.errors import CallTimeout
from baton.v1 import step_service_pb2

if TYPE_CHECKING:
    from baton.worker.attempt import Attempt

_CALL_SECONDS = 10.0
_FOR_EVER = float("inf")


class Steps:
    """Calls StepService of the Baton at `baton`; to be made, used and closed in one event loop.

    `suspend_after` is how many seconds an attempt waits for its steps before it is suspended, where the handler says
    nothing else.
    """

    def __init__(self, baton: str | None, suspend_after: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.suspend_after = suspend_after
        self.draining = False
        """Whether the worker stops: nothing waits any more."""
        self.tasks: set[asyncio.Task[None]] = set()
        """What is being told for attempts; cancelled by `close`."""
        self._waiting: dict[Attempt, None] = {}
        # The calls go on for as long as their handlers do: those end by their own deadline.
        self._connection = Connection(baton, None, timeout=_CALL_SECONDS, retry_timeout=_FOR_EVER)

    async def delegate(
        self, request: step_service_pb2.DelegateRequest, wait_seconds: float
    ) -> step_service_pb2.DelegateResponse:
        """Adds a step, and waits for its end for so long; again and again while Baton is away. Raises BatonError."""
        request.wait_timeout.CopyFrom(span(wait_seconds))
        while True:
            try:
                return await self._connection.call(
                    lambda link: link.steps.Delegate,
                    request,
                    timeout=wait_seconds + _CALL_SECONDS,
                    long=wait_seconds > 0,
                )
            except CallTimeout:
                continue  # the same key gives the same step

    async def heartbeat(self, request: step_service_pb2.HeartbeatRequest) -> step_service_pb2.HeartbeatResponse:
        """Says that an attempt is alive; again and again while Baton is away. Raises BatonError."""
        return await self._connection.call(lambda link: link.steps.Heartbeat, request)

    def note_waiting(self, attempt: Attempt, waits: bool) -> None:
        """Notes whether an attempt waits."""
        if waits:
            self._waiting[attempt] = None
        else:
            self._waiting.pop(attempt, None)

    def drain(self) -> None:
        """Lets every attempt that waits be suspended, now and from now on."""
        self.draining = True
        for attempt in tuple(self._waiting):
            attempt.hurry()

    async def close(self) -> None:
        """Closes the connection."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._connection.close()
