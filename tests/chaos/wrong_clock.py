"""The wall clock of one process, as far off as a file says: at its start, and again at each SIGUSR1.

What reads `time.time_ns` is off, and the product reads no other wall clock. `time.time` stays right: grpc makes
deadlines from it, for a core in C whose clock is right.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

CLOCK_VARIABLE = "CHAOS_CLOCK"
"""The file, which holds seconds; without it the clock is right."""

_true_ns = time.time_ns


def install() -> None:
    """Puts that clock in the place of the machine's. Call it before anything takes `time.time_ns`."""
    path = Path(os.environ[CLOCK_VARIABLE])
    off_ns = 0

    def look(*_: object) -> None:
        nonlocal off_ns
        off_ns = round(float(path.read_text()) * 1e9) if path.exists() else 0

    look()
    signal.signal(signal.SIGUSR1, look)
    time.time_ns = lambda: _true_ns() + off_ns
