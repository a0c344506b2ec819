"""Hand-over: gives runs of this replica to the others: all of them when it drains, some where it drives too many.

A run is handed over when it is at rest: no call of it is under way, and everything decided is durable. Its owner gives
it up in the statement that parks runs (`park.py`), due at once, and gives the others the word to look (`words.py`). Who
takes it is theirs to decide (`recovery.py`). The word is a hint: who misses it looks within the adoption interval.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from itertools import islice
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine.balance import Balance
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.park import Parker, at_rest
from orchestrator.engine.ports import Clock, LeaseLost, Renewal, ReplicaStore
from orchestrator.engine.words import Words

DRAIN_LOOK_SECONDS = 0.05
"""Time between two looks, while this replica drains, at which runs have come to rest."""

LOOK_RUNS = 2_000
"""Runs that are looked at for some to give away."""

GIVE_RUNS = 500
"""Most runs that are given away at a time for the sake of balance: as many as others may do until the next time."""


SETTLE_SECONDS = 2.0
"""Longest that words which are not answered hold a replica up that stops."""


class HandOver:
    """Gives runs to other replicas. `is_taking` tells whether this replica may yet come to drive runs that the database
    has given it, or is about to."""

    def __init__(
        self,
        driver: Driver,
        parker: Parker,
        balance: Balance,
        words: Words,
        replicas: ReplicaStore,
        clock: Clock,
        limits: EngineLimits,
        is_taking: Callable[[], bool],
    ) -> None:
        self._driver, self._parker, self._balance, self._words = driver, parker, balance, words
        self._replicas, self._clock, self._limits, self._is_taking = replicas, clock, limits, is_taking

    def renewed(self, me: UUID, renewal: Renewal) -> None:
        """Takes what the lease tells of the others."""
        if renewal.replicas is not None:
            self._words.others = {one: address for one, address in renewal.replicas.members.items() if one != me}
        self._balance.set_loads(me, renewal.loads)

    def is_oldest(self, me: UUID) -> bool:
        """Tells whether no other replica that is known is older: ids rise with time."""
        return all(me < one for one in self._words.others)

    async def drain(self, replica_id: UUID) -> None:
        """Gives every run away as it comes to rest, and returns when none is left, or the lease is lost. Nothing may be
        admitted meanwhile. Who waits only for a time is parked until then, and nobody is told."""
        try:
            await self._find_others(replica_id)
            while self._driver.runs or self._is_taking():
                resting = [live for live in self._driver.runs.values() if at_rest(live)]
                due_time = self._due_time()
                ripe = ((live, self._parker.wake_time(live) or due_time) for live in resting if at_rest(live))
                given = 0
                while count := await self._parker.give_up(replica_id, ripe):
                    given += count
                if given:
                    self._words.give_all()
                await asyncio.sleep(DRAIN_LOOK_SECONDS)
            await self._words.settle(SETTLE_SECONDS)
        except LeaseLost:
            return

    async def _find_others(self, replica_id: UUID) -> None:
        """Learns which replicas there are now: since the last renewal all others may have been started anew, and a word
        to a process that is gone moves nothing."""
        try:
            self.renewed(replica_id, await self._replicas.renew(replica_id, self._limits.lease_seconds))
        except DatabaseUnavailable:
            return

    async def run(self, replica_id: UUID) -> None:
        """Gives runs away for ever where this replica drives more than its share. Errors: LeaseLost."""
        while True:
            await asyncio.sleep(self._limits.adoption_interval_seconds * random.uniform(0.7, 1.0))
            count = min(self._balance.surplus(), GIVE_RUNS)
            least = self._balance.least()
            if count and least is not None and not self._driver.admission.paused:
                self._balance.gave()
                if await self._parker.give_up(replica_id, self._resting(count)):
                    self._words.give((least,))
                    if not await self._words.settle():
                        # It is gone, or has begun to drain: then whoever has room.
                        self._words.give_all()

    def _resting(self, count: int) -> Iterator[tuple[LiveRun, int]]:
        due_time = self._due_time()
        resting = [live for live in islice(self._driver.runs.values(), LOOK_RUNS) if at_rest(live)]
        return ((live, due_time) for live in resting[:count])

    def _due_time(self) -> int:
        """A time that has surely come at the database: who gets the word looks once, and must find the run due."""
        return self._clock.now() - self._clock.error_us

    async def tell_all(self) -> None:
        """Gives every other replica the word, and waits a little for their answers."""
        self._words.give_all()
        await self._words.settle(SETTLE_SECONDS)
