"""The machine that an engine runs on, as far as the engine may know it: clocks, new ids, a place apart for its lease.

The defaults are the real ones. A simulation puts others in their place, and then nothing that the engine does depends
on anything else: other randomness comes from the module `random`, other time from the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import uuid_utils.compat

Work = Callable[[], Coroutine[Any, Any, None]]

new_id: Callable[[], UUID] = uuid_utils.compat.uuid7
"""Makes a new id, in the order of time. Called by this name through the module, so that it can be another."""

WALL_SLACK_MS = 1_000
"""How far the time in a new id may be off before it is put right."""


def new_run_id(now: int) -> UUID:
    """Makes the id of a run that begins at `now`, microseconds of the database's clock.

    The time in it decides in which week of the journal the run's events are, and where it is listed: it is not to be
    that of a machine whose clock is wrong.
    """
    made, now_ms = new_id(), now // 1_000
    if abs((made.int >> 80) - now_ms) <= WALL_SLACK_MS:
        return made
    return UUID(int=now_ms << 80 | made.int & (1 << 80) - 1)


class Apart(Protocol):
    """A place of its own for one piece of work, which a busy event loop does not hold up."""

    def start(self, work: Work) -> None:
        """Begins `work`, which raises nothing."""
        ...

    async def pause(self, seconds: float) -> bool:
        """Called by the work: waits, and tells whether it is to end."""
        ...

    async def stop(self) -> None:
        """Called from the event loop: has the work end, and waits for that."""
        ...


class OwnThread:
    """Implements Apart: a thread with an event loop of its own."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, work: Work) -> None:
        """See Apart.start."""
        self._thread = threading.Thread(target=lambda: asyncio.run(work()), name="baton-lease", daemon=True)
        self._thread.start()

    async def pause(self, seconds: float) -> bool:
        """See Apart.pause."""
        return await asyncio.to_thread(self._stop.wait, seconds)

    async def stop(self) -> None:
        """See Apart.stop."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)


class BusyClock:
    """Tells how long a thread has been at work or has waited for a processor, in nanoseconds: the first that asks.

    Where the kernel does not tell of waiting, as others than Linux, it is the time at work alone.
    """

    def __init__(self) -> None:
        self._file: int | None = None

    def __call__(self) -> int:
        """Nanoseconds since some instant; only their differences mean something."""
        if self._file is None:
            try:
                self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._file = -1
        if self._file < 0:
            return time.thread_time_ns()
        # The time at work stands there too, as of the last tick: too coarse.
        return time.thread_time_ns() + int(os.pread(self._file, 100, 0).split()[1])

    def __del__(self) -> None:
        if self._file is not None and self._file >= 0:
            os.close(self._file)


@dataclass(frozen=True, slots=True)
class Machine:
    """Clocks in nanoseconds, and a new place apart at each call of `apart`. `busy_ns` tells how long the thread that
    asks has been at work, or would have been had it been given a processor."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    wall_ns: Callable[[], int] = time.time_ns
    busy_ns: Callable[[], int] = field(default_factory=BusyClock)
    apart: Callable[[], Apart] = OwnThread
