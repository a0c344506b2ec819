"""Signs of life of running attempts: heartbeats that may be missed, progress, and checkpoints for the next attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.domain.events import Payload
from orchestrator.domain.inputs import Checkpoint, HeartbeatMissed, Input
from orchestrator.engine.live import Flight, LiveRun, TimerKey, TimerKind
from orchestrator.engine.ports import Clock

CHECKPOINT_INTERVAL_US = 1_000_000
"""Least time between two checkpoints of an attempt that are journaled; of those in between the newest is kept."""


class SetTimer(Protocol):
    """Arms a timer of a step, in place of the one of that kind that it has."""

    def __call__(self, live: LiveRun, key: TimerKey, due_time: int, fire: Callable[[], object]) -> None:
        """Calls `fire` at `due_time`."""
        ...


class Liveness:
    """Watches the attempts of one replica."""

    def __init__(
        self,
        clock: Clock,
        advance: Callable[[LiveRun, Input], object],
        set_timer: SetTimer,
        grow: Callable[[LiveRun, int], None],
    ) -> None:
        self._clock, self._advance, self._set_timer, self._grow = clock, advance, set_timer, grow

    def begin(self, live: LiveRun, flight: Flight) -> None:
        """Begins to watch an attempt whose call is made now."""
        if live.run.steps[flight.step].spec.heartbeat_timeout_us is not None:
            flight.heard_time = self._clock.now()
            self._watch(live, flight)

    def heard(self, live: LiveRun, index: int, percent: float, message: str, checkpoint: Payload | None) -> None:
        """Takes a sign of life of a running step."""
        flight = live.flights.get(index)
        if flight is None:
            return
        now = self._clock.now()
        flight.heard_time = now
        if percent or message:
            flight.progress = (percent, message, now)
        if checkpoint is not None:
            flight.checkpoint = checkpoint
            due_time = flight.checkpoint_time + CHECKPOINT_INTERVAL_US
            if now >= due_time:
                self.keep_checkpoint(live, flight)
            else:
                key = TimerKey(TimerKind.CHECKPOINT, index)
                self._set_timer(live, key, due_time, lambda: self.keep_checkpoint(live, flight))

    def keep_checkpoint(self, live: LiveRun, flight: Flight) -> None:
        """Journals the newest checkpoint of an attempt, where that is not done."""
        if flight.checkpoint is not None:
            payload, flight.checkpoint = flight.checkpoint, None
            flight.checkpoint_time = self._clock.now()
            live.cancel_timer(TimerKind.CHECKPOINT, flight.step)
            before = live.run.steps[flight.step].checkpoint
            self._advance(live, Checkpoint(flight.step, flight.attempt, payload))
            if before is not None and live.run.steps[flight.step].checkpoint is payload:
                self._grow(live, -len(before.data))  # It is held no more.

    def end(self, live: LiveRun, flight: Flight) -> None:
        """Ends the watch of an attempt, and journals what it left."""
        if flight.heard_time:
            live.cancel_timer(TimerKind.HEARTBEAT, flight.step)
        self.keep_checkpoint(live, flight)

    def _watch(self, live: LiveRun, flight: Flight) -> None:
        timeout_us = live.run.steps[flight.step].spec.heartbeat_timeout_us
        assert timeout_us is not None
        due_time = flight.heard_time + timeout_us
        self._set_timer(live, TimerKey(TimerKind.HEARTBEAT, flight.step), due_time, lambda: self._look(live, flight))

    def _look(self, live: LiveRun, flight: Flight) -> None:
        timeout_us = live.run.steps[flight.step].spec.heartbeat_timeout_us
        if live.forgotten or timeout_us is None or live.flights.get(flight.step) is not flight:
            return
        if flight.requests:
            flight.heard_time = self._clock.now()  # A request of its worker waits here: it lives.
        if self._clock.now() < flight.heard_time + timeout_us:
            self._watch(live, flight)
        else:
            self.keep_checkpoint(live, flight)
            self._advance(live, HeartbeatMissed(flight.step, flight.attempt))
