"""Receipts: how many requests that may be large are being received at once. More wait for their turn, unread.

gRPC hands a request over whole, up to 4 MiB. What it has of one that nobody reads yet is the window of its stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

RECEIPTS_LIMIT = 64
"""Requests that are received at once."""

RECEIPT_SECONDS = 5.0
"""How long one counts: who sends slowly does not hold up others for longer."""

WAIT_SECONDS = 10.0
"""How long one waits for its turn."""

LARGE_METHODS = frozenset(
    {
        "/baton.v1.RunService/SubmitRun",
        "/baton.v1.RunService/SubmitRuns",
        "/baton.v1.RunService/SignalRun",
        "/baton.v1.RunService/RetryRun",
        "/baton.v1.RunService/ForkRun",
        "/baton.v1.RunService/SkipStep",
        "/baton.v1.StepService/Delegate",
        "/baton.v1.ScheduleService/ApplySchedule",
        "/baton.v1.WorkerService/RegisterWorker",
        "/baton.v1.WorkflowService/ApplyWorkflow",
        "/baton.v1.WorkflowService/CheckWorkflow",
    }
)
"""What carries payloads, workflows or contracts. Others are small, and are not to wait because these are many."""


class Receipts:
    """Counts the calls, each by its task, whose request is being received."""

    def __init__(
        self,
        limit: int = RECEIPTS_LIMIT,
        seconds: float = RECEIPT_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._limit, self._seconds, self._wait_seconds = limit, seconds, wait_seconds
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def begin(self) -> bool:
        """Counts the current call from here on, once it has its turn; False where it waited in vain."""
        task = asyncio.current_task()
        assert task is not None
        if (self._waiting or len(self._begun) >= self._limit) and not await self._turn():
            return False
        self._begun[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self._end)  # Of one whose caller leaves before its request is here.
        return True

    def end(self) -> None:
        """Counts the current call no more: its request is here."""
        task = asyncio.current_task()
        if task is not None:
            self._end(task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        if self._begun.pop(task, None) is not None and self._waiting:
            self._wake()

    async def _turn(self) -> bool:
        loop = asyncio.get_running_loop()
        give_up_time = loop.time() + self._wait_seconds
        while not self._has_room():
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append(future)
            # The next look is due when the oldest counts no more, whoever ends before.
            oldest_time = min(self._begun.values(), default=0.0)
            try:
                async with asyncio.timeout_at(min(give_up_time, oldest_time + self._seconds)):
                    await future
            except TimeoutError:
                if loop.time() >= give_up_time:
                    return False
            except asyncio.CancelledError:
                if future.done():
                    self._wake()  # The turn is another's.
                raise
        return True

    def _has_room(self) -> bool:
        """Forgets calls that take too long; tells whether another may begin."""
        too_long_time = asyncio.get_running_loop().time() - self._seconds
        over = [task for task, begin_time in self._begun.items() if begin_time <= too_long_time]
        for task in over:
            del self._begun[task]
        return len(self._begun) < self._limit

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
