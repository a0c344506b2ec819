"""Park: releases runs that only wait from memory, until their time comes.

A run is parked where nothing of it is under way or about to be, and nothing is due soon: every step that has not ended
is blocked, waits for something outside or for a time, or is in a long backoff. Its owner gives it up in one fenced
statement that stores when the first of its timers is due; whoever looks then takes it over (`recovery.py`), and a verb
does so at once (`ownership.py`). Nothing else is stored: the journal tells all, timers included.

Runs are looked at once a second, which costs nothing where runs are at work. What a run waits for may happen elsewhere:
then `ReplicaStore.poke` lets its time come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Clock, ParkedRun, ReplicaStore
from orchestrator.engine.transit import Transit

SWEEP_SECONDS = 1.0
"""Time between two looks at all runs."""

LOOK_RUNS = 1_000
"""Runs that are looked at before others go on."""

PARK_RUNS = 500
"""Most runs that are parked by one statement."""


CHILD_LOOK_US = 60_000_000
"""How often a parked run that waits for child runs is woken to look at them."""


def at_rest(live: LiveRun) -> bool:
    """Tells whether a run can be given up: no call of it is under way, and everything decided is durable."""
    return not (live.flights or live.in_journal_queue or live.forgotten or live.run.ended) and live.settled


class Parker:
    """Parks runs of this replica. `on_doubt` is called where it is not known which were parked."""

    def __init__(
        self,
        driver: Driver,
        replicas: ReplicaStore,
        transit: Transit,
        clock: Clock,
        limits: EngineLimits,
        on_doubt: Callable[[], None],
    ) -> None:
        self._driver, self._replicas, self._transit, self._clock = driver, replicas, transit, clock
        self._park_us, self._on_doubt = round(limits.park_seconds * 1_000_000), on_doubt

    async def run(self, replica_id: UUID) -> None:
        """Parks for ever. Errors: LeaseLost."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            lives = list(self._driver.runs.values())
            for begin in range(0, len(lives), LOOK_RUNS):
                await self._park(replica_id, lives[begin : begin + LOOK_RUNS])
                await asyncio.sleep(0)

    async def _park(self, replica_id: UUID, lives: Sequence[LiveRun]) -> None:
        ripe = ((live, time) for live in lives if (time := self.wake_time(live)) is not None)
        while await self.give_up(replica_id, ripe):
            pass

    async def give_up(self, replica_id: UUID, ripe: Iterator[tuple[LiveRun, int]]) -> int:
        """Gives up the next PARK_RUNS of `ripe`, runs at rest and their wake times, in one statement; returns how many.
        Errors: LeaseLost."""
        parked = [self._release(live, time) for live, time in islice(ripe, PARK_RUNS)]
        if parked:
            with self._transit.of([run.key for run in parked]):
                try:
                    await self._replicas.park(replica_id, parked)
                except DatabaseUnavailable:
                    self._on_doubt()
                    return 0
        return len(parked)

    def _release(self, live: LiveRun, wake_time: int) -> ParkedRun:
        """Drops a run from memory: from here on, nothing happens to it here."""
        self._driver.forget(live, "")
        return ParkedRun(live.key, live.epoch, live.run.sequence + 1, wake_time)

    def wake_time(self, live: LiveRun) -> int | None:
        """Tells when a run is to be woken, None where it is not to be parked."""
        run = live.run
        if not at_rest(live):
            return None
        if live.restless_sequence == run.sequence or live.run_timer is None:
            return None
        soon = self._clock.now() + self._park_us
        steps = run.steps
        times = [timer.due_time for key, timer in live.timers.items() if steps[key.step].state not in ENDED_STEP]
        wake_time = min(times, default=live.run_timer.due_time)
        wake_time = min(wake_time, live.run_timer.due_time)
        if live.children:
            # The end of a child pokes its parent; should that be lost, the parent looks for itself.
            wake_time = min(wake_time, self._clock.now() + CHILD_LOOK_US)
        if wake_time <= soon:
            return None
        for step in steps:
            ready = step.state is StepState.READY and (step.queue_time or 0) <= soon and not run.paused
            if ready or step.state is StepState.RUNNING:
                # Only an event changes that: until then the steps need not be looked at again.
                live.restless_sequence = run.sequence
                return None
        return wake_time
