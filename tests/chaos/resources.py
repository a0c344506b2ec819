"""What a campaign uses, looked at as long as it goes on: memory and file descriptors of replicas, connections to
Postgres, and what Postgres has to clean away.

Nothing here judges: what grows without end shows in the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from orchestrator.postgres.pool import CLAIM_SETTINGS, JOURNAL_SETTINGS, READ_SETTINGS

SAMPLE_SECONDS = 0.25
ANSWER_SECONDS = 2.0

BACKENDS_A_REPLICA = JOURNAL_SETTINGS.max_size + READ_SETTINGS.max_size + 2 * CLAIM_SETTINGS.max_size
"""Connections that a replica opens at most; the lease has as many as claims, on a thread of its own."""

_BACKENDS = """
SELECT
    count(*) AS count,
    coalesce(max(extract(epoch FROM clock_timestamp() - state_change))
        FILTER (WHERE state LIKE 'idle in transaction%'), 0)::float8 AS idle_seconds
FROM pg_stat_activity WHERE application_name IN ('baton engine', 'baton api')
"""

_DEAD_ROWS = """
SELECT relname AS name, n_dead_tup AS rows FROM pg_stat_user_tables
WHERE schemaname = 'public' AND n_dead_tup > 0 ORDER BY 2 DESC
"""


class Resources:
    """Peaks of a campaign. `dsn` tells where Postgres is, `processes` which replicas live; both change."""

    def __init__(self, dsn: Callable[[], str], processes: Callable[[], Iterable[int]]) -> None:
        self._dsn, self._processes = dsn, processes
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._memory_bytes = self._descriptors = self._descriptors_before = self._backends = 0
        self._idle_seconds = 0.0

    def begin(self) -> None:
        """Takes note of what replicas have before there is any load."""
        self._descriptors_before = max(map(_descriptors, self._processes()), default=0)

    async def watch(self) -> None:
        """Looks again and again, for ever."""
        try:
            while True:
                for process in self._processes():
                    self._memory_bytes = max(self._memory_bytes, _peak_memory_bytes(process))
                    self._descriptors = max(self._descriptors, _descriptors(process))
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await self._look_at_backends()
                await asyncio.sleep(SAMPLE_SECONDS)
        finally:
            if self._connection is not None:
                self._connection.terminate()

    async def as_json(self) -> dict[str, Any]:
        """The figures, at the end: before anything is taken down, and once there is no load any more."""
        connection = await asyncpg.connect(self._dsn())
        try:
            dead: Sequence[asyncpg.Record] = await connection.fetch(_DEAD_ROWS)
        finally:
            await connection.close()
        return {
            "peak_memory_mb": round(self._memory_bytes / 1_000_000, 1),
            "backends_peak": self._backends,
            "idle_in_transaction_longest_s": round(self._idle_seconds, 3),
            "descriptors_before": self._descriptors_before,
            "descriptors_peak": self._descriptors,
            "descriptors_after": max(map(_descriptors, self._processes()), default=0),
            "dead_rows": sum(each["rows"] for each in dead),
            "dead_rows_by_table": {each["name"]: each["rows"] for each in dead},
        }

    async def _look_at_backends(self) -> None:
        """Looks at the connections of replicas, also of those that have just died."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._dsn(), timeout=ANSWER_SECONDS)
        try:
            row = await self._connection.fetchrow(_BACKENDS, timeout=ANSWER_SECONDS)
        except TimeoutError:
            self._connection.terminate()
            raise
        assert row is not None
        self._backends = max(self._backends, row["count"])
        self._idle_seconds = max(self._idle_seconds, row["idle_seconds"])


def _descriptors(process: int) -> int:
    """File descriptors that a process has open; 0 where it is dead, or the system does not tell."""
    try:
        return sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return 0


def _peak_memory_bytes(process: int) -> int:
    """The most memory that a process has had so far; 0 where it is dead, or the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
