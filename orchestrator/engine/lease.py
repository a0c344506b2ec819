"""Keeps this replica's lease, on a thread, loop and connection of its own: a busy event loop must not lose it.

A lease that is renewed says that the process lives, not that its event loop does anything. So the thread also looks
whether that loop still turns. Where it has stood still for too long, the thread gives the lease up and others take the
runs over. What the loop does when it goes on is refused: by `holds` at once, and by the fences in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.machine import Apart
from orchestrator.engine.ports import LeaseLost, Renewal, ReplicaStore

OpenReplicaStore = Callable[[], AbstractAsyncContextManager[ReplicaStore]]
RENEWALS_A_LEASE = 5

LATE_INTERVALS = 1.5
"""Intervals from one renewal to the next after which that came late."""

_LOGGER = logging.getLogger(__name__)


class LeaseKeeper:
    """Registers a replica and renews its lease until `stop`, or until the loop that called `start` has stood still for
    `stall_seconds`.

    `on_renewal` and `on_lost` are called on that loop; `active_runs`, which tells how many runs the replica drives, on
    the thread.
    """

    def __init__(
        self,
        open_store: OpenReplicaStore,
        clock: DatabaseClock,
        lease_seconds: float,
        stall_seconds: float,
        active_runs: Callable[[], int | None],
        on_renewal: Callable[[Renewal], None],
        on_lost: Callable[[], None],
        apart: Apart,
    ) -> None:
        self._open_store, self._clock, self._lease_seconds = open_store, clock, lease_seconds
        self._stall_seconds, self._active_runs = stall_seconds, active_runs
        self._on_renewal, self._on_lost = on_renewal, on_lost
        self._apart = apart
        self._turned = True
        self._begun = self._lost = self._ended = False
        self._end_us = 0
        self._answered: deque[int] = deque(maxlen=RENEWALS_A_LEASE)
        """The database's times of the last renewals that were answered."""

    @property
    def holds(self) -> bool:
        """Whether the lease surely goes on at this moment, by this process's own clock, and `start` has returned: what
        was known under the one before is doubted then, before anything is done."""
        return self._begun and not self._ended and self._clock.monotonic_us() < self._end_us

    @property
    def mark_before(self) -> int:
        """Tells of whom to think that they are dead: of those whose lease was over by this time of the database.

        They are to have had as many chances to renew it as a lease has. So it is the time of this replica's fifth last
        renewal where one of the four since came late: the database may have been away for others too, or all replicas
        have stood still. Nobody is dead before there were five. Else it is now, but no later than the next renewal is
        due: a statement may be under way until a database that stands still goes on.
        """
        answered = list(self._answered)
        if len(answered) < RENEWALS_A_LEASE:
            return 0
        interval_us = int(self._lease_seconds * 1_000_000 / RENEWALS_A_LEASE)
        if max(map(operator.sub, answered[1:], answered)) > LATE_INTERVALS * interval_us:
            return answered[0]
        return min(self._clock.now(), answered[-1] + interval_us)

    async def start(self, replica_id: UUID, address: str) -> None:
        """Inserts the replica's row; its lease is then kept. Errors: DatabaseUnavailable."""
        loop = asyncio.get_running_loop()
        registered: asyncio.Future[None] = loop.create_future()
        self._apart.start(lambda: self._run(replica_id, address, loop, registered))
        await registered
        self._begun = True

    async def stop(self, *, lost: bool = False) -> None:
        """Has the renewals end, and the lease, so that others adopt what is left at once: it is released in good order,
        or given up where this replica is `lost`, as what it did made it fail."""
        self._lost = lost
        await self._apart.stop()

    async def _run(
        self, replica_id: UUID, address: str, loop: asyncio.AbstractEventLoop, registered: asyncio.Future[None]
    ) -> None:
        try:
            await self._keep(replica_id, address, loop, registered)
        except Exception as error:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_fail, registered, error, self._on_lost)

    async def _keep(
        self, replica_id: UUID, address: str, loop: asyncio.AbstractEventLoop, registered: asyncio.Future[None]
    ) -> None:
        async with self._open_store() as store:
            sent_us = self._clock.monotonic_us()
            self._take(await store.register(replica_id, address, self._lease_seconds), sent_us, loop)
            # A connection's first statement is slow and tells the time badly; what is stamped next rests on it.
            await self._renew(store, replica_id, loop)
            loop.call_soon_threadsafe(_succeed, registered)
            pause_seconds = interval_seconds = self._lease_seconds / RENEWALS_A_LEASE
            # Counted, not measured: where the whole process was frozen, the loop has had no time to turn.
            silent_seconds = 0.0
            while not await self._apart.pause(pause_seconds):
                silent_seconds = 0.0 if self._turned else silent_seconds + pause_seconds
                self._turned = False
                loop.call_soon_threadsafe(self._turn)
                if silent_seconds > self._stall_seconds:
                    _LOGGER.error("the event loop stands still: the lease is given up, others take the runs over")
                    loop.call_soon_threadsafe(self._on_lost)
                    self._ended = True
                    with contextlib.suppress(DatabaseUnavailable):
                        # Not released: workers are at its calls, and one of these may be what holds the loop up.
                        await store.give_up(replica_id)
                    return
                begun_us, pause_seconds = self._clock.monotonic_us(), interval_seconds
                try:
                    await self._renew(store, replica_id, loop)
                except DatabaseUnavailable:
                    # Where it took long to fail, the lease leaves no time for a pause as well.
                    pause_seconds -= min((self._clock.monotonic_us() - begun_us) / 1_000_000, interval_seconds)
                except LeaseLost:
                    loop.call_soon_threadsafe(self._on_lost)
                    return
            # First here: what this replica still does must end before another may begin.
            self._ended = True
            with contextlib.suppress(DatabaseUnavailable):
                await (store.give_up(replica_id) if self._lost else store.release(replica_id))

    async def _renew(self, store: ReplicaStore, replica_id: UUID, loop: asyncio.AbstractEventLoop) -> None:
        sent_us = self._clock.monotonic_us()
        renewal = await store.renew(replica_id, self._lease_seconds, self._active_runs())
        self._answered.append(renewal.database_time)
        self._take(renewal, sent_us, loop)

    def _turn(self) -> None:
        self._turned = True

    def _take(self, renewal: Renewal, sent_us: int, loop: asyncio.AbstractEventLoop) -> None:
        self._clock.set(renewal.database_time, sent_us, self._clock.monotonic_us())
        # Counted from before the request: the database gave the lease later, so it ends there no sooner.
        end_us = sent_us + renewal.lease_expire_time - renewal.database_time
        if self._end_us and not self.holds:
            loop.call_soon_threadsafe(self._go_on, renewal, end_us)
        else:
            self._end_us = end_us
            loop.call_soon_threadsafe(self._on_renewal, renewal)

    def _go_on(self, renewal: Renewal, end_us: int) -> None:
        """Goes on with a lease that was over: what has changed since is told before anything is done again."""
        self._on_renewal(renewal)
        self._end_us = end_us


def _succeed(registered: asyncio.Future[None]) -> None:
    if not registered.done():
        registered.set_result(None)


def _fail(registered: asyncio.Future[None], error: Exception, on_lost: Callable[[], None]) -> None:
    if registered.done():
        on_lost()
    else:
        registered.set_exception(error)
