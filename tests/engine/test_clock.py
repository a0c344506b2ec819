"""The estimate of the database's clock."""

from __future__ import annotations

import time

from orchestrator.engine.clock import DatabaseClock

HOUR_US = 3_600_000_000


def monotonic() -> int:
    return time.monotonic_ns() // 1_000


def offset(clock: DatabaseClock) -> int:
    """How far a clock is ahead, looked at where nothing held the process up meanwhile."""
    while True:
        before = monotonic()
        now = clock.now()
        if monotonic() - before < 1_000:
            return now - before


def test_the_first_reading_is_taken_however_slow() -> None:
    clock, sent = DatabaseClock(), monotonic()
    clock.set(sent + HOUR_US, sent - 500_000, sent)
    assert abs(offset(clock) - HOUR_US - 250_000) < 5_000
    assert clock.error_us >= 250_000


def test_a_slow_reading_does_not_replace_a_better_one() -> None:
    clock, received = DatabaseClock(), monotonic()
    clock.set(received + HOUR_US, received - 1_000, received)
    clock.set(received + HOUR_US, received - 200_000, received)
    assert abs(offset(clock) - HOUR_US) < 5_000
    assert clock.error_us < 5_000


def test_a_reading_that_contradicts_the_estimate_is_taken_though_it_is_slow() -> None:
    clock, received = DatabaseClock(), monotonic()
    clock.set(received + HOUR_US, received - 1_000, received)
    clock.set(received + 2 * HOUR_US, received - 200_000, received)
    assert abs(offset(clock) - 2 * HOUR_US - 100_000) < 5_000
