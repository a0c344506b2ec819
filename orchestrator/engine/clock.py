"""The database's clock, estimated between renewals of the lease by this process's monotonic clock."""

from __future__ import annotations

from orchestrator.engine.machine import Machine

DRIFT_US_PER_SECOND = 100
"""Assumed drift of the two clocks against each other."""


class DatabaseClock:
    """Implements ports.Clock. Until the first `set` it follows this machine's own clock."""

    def __init__(self, machine: Machine | None = None) -> None:
        machine = machine or Machine()
        self._monotonic_ns = machine.monotonic_ns
        self._set_us = self.monotonic_us()
        self._offset_us = machine.wall_ns() // 1_000 - self._set_us
        self._read_error_us = 0
        self._has_reading = False

    def now(self) -> int:
        """Microseconds since the Unix epoch, as estimated."""
        return self._monotonic_ns() // 1_000 + self._offset_us

    def monotonic_us(self) -> int:
        """Microseconds of this machine's monotonic clock, as `set` takes them."""
        return self._monotonic_ns() // 1_000

    @property
    def error_us(self) -> int:
        """How far `now` may be off: half of the round trip of the last reading, and drift since."""
        since_us = self._monotonic_ns() // 1_000 - self._set_us
        return self._read_error_us + since_us * DRIFT_US_PER_SECOND // 1_000_000

    def set(self, database_time: int, sent_us: int, received_us: int) -> None:
        """Takes a reading: the database said `database_time` between two monotonic instants in microseconds.

        A slow answer tells little: it is left where what is known is more exact and does not contradict it.
        """
        offset_us = database_time - (sent_us + received_us) // 2
        read_error_us = (received_us - sent_us) // 2
        known_error_us = self.error_us
        agrees = abs(offset_us - self._offset_us) <= read_error_us + known_error_us
        if self._has_reading and agrees and read_error_us > known_error_us:
            return
        self._offset_us, self._read_error_us, self._set_us = offset_us, read_error_us, received_us
        self._has_reading = True
