"""Forgets what is older than it is to be kept: runs that ended, and weeks of the journal that no run needs any more.

Every replica does this; none leads, and the database's clock decides. Runs are deleted in bounded batches, and a week's
partition is dropped once no run of that week is left, so that a run is there as a whole or not at all. What went to the
default partition, since its week had none, is deleted with its run. Needs the rights of the tables' owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from orchestrator.postgres.errors import DRIVER_ERRORS
from orchestrator.postgres.migrate import WEEK_MS, database_ms, first_run_id, partition_name, partition_start_ms
from orchestrator.postgres.sql import load

LOOK_SECONDS = 3600.0
"""How often a replica looks, and what its first look is spread over, so that replicas take turns."""

BATCH_RUNS = 500
"""Runs deleted at a time."""

DEFAULT_BATCH_RUNS = 20
"""Runs deleted at a time with their events, of which each may have 100,000."""

BATCH_PAUSE_SECONDS = 0.05
"""Pause after each batch, for others."""

LOCK_TRIES = 20
LOCK_PAUSE_SECONDS = 1.0
"""How often the journal is tried to be locked at a look, and the pause between."""

_QUERIES = load("retention")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Forgotten:
    """What a look came to: runs deleted, names of partitions dropped and of those that wait for their lock."""

    runs: int = 0
    dropped: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)


async def keep_retention(dsn: str, retention_seconds: float) -> None:
    """Forgets what is older than `retention_seconds` for as long as the server runs, where this user may."""
    pause_seconds = random.uniform(0.0, min(LOOK_SECONDS, retention_seconds))
    while True:
        await asyncio.sleep(pause_seconds)
        pause_seconds = LOOK_SECONDS
        with contextlib.suppress(*DRIVER_ERRORS):
            connection = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
            try:
                done = await forget(connection, retention_seconds)
            except asyncpg.InsufficientPrivilegeError:
                _log.warning("this database user may not delete runs and drop partitions: it must own the tables")
            else:
                if done.runs or done.dropped or done.locked:
                    _log.info(
                        "forgot what is older than it is to be kept",
                        extra={"runs": done.runs, "dropped": done.dropped, "locked": done.locked},
                    )
            finally:
                await connection.close()


async def forget(
    connection: asyncpg.Connection[asyncpg.Record],
    retention_seconds: float,
    *,
    lock_tries: int = LOCK_TRIES,
    lock_pause_seconds: float = LOCK_PAUSE_SECONDS,
) -> Forgotten:
    """Forgets weeks that ended more than `retention_seconds` ago, oldest first, and then what has no week of its own.

    A run is deleted once it ended so long ago; a week stays as long as a run of it does. Errors: those of asyncpg.
    """
    done = Forgotten()
    last_ms = await database_ms(connection) - round(retention_seconds * 1000) - WEEK_MS
    if last_ms < 0:
        return done
    weeks: list[str] = [row["name"] for row in await connection.fetch(_QUERIES["partitions"])]
    for name in weeks:
        if name >= partition_name(last_ms):
            break
        start_ms = partition_start_ms(name)
        first, end = first_run_id(start_ms), first_run_id(start_ms + WEEK_MS)
        while deleted := await connection.fetchval(_QUERIES["forget_runs"], first, end, retention_seconds, BATCH_RUNS):
            done.runs += deleted
            await asyncio.sleep(BATCH_PAUSE_SECONDS)
        if await connection.fetchval(_QUERIES["has_runs"], first, end):
            continue
        for left in reversed(range(lock_tries)):
            try:
                if await _drop(connection, name):
                    done.dropped.append(name)
                break
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                if left:
                    await asyncio.sleep(lock_pause_seconds)
        else:
            done.locked.append(name)
    for first, end in _without_week(weeks):
        while deleted := await connection.fetchval(
            _QUERIES["forget_runs_and_events"], first, end, retention_seconds, DEFAULT_BATCH_RUNS
        ):
            done.runs += deleted
            await asyncio.sleep(BATCH_PAUSE_SECONDS)
    return done


def _without_week(weeks: list[str]) -> Iterator[tuple[UUID, UUID]]:
    """The ranges of run ids whose events are in the default partition: those between `weeks`, before and after them."""
    end_ms = 0
    for start_ms in map(partition_start_ms, weeks):
        if start_ms > end_ms:
            yield first_run_id(end_ms), first_run_id(start_ms)
        end_ms = start_ms + WEEK_MS
    yield first_run_id(end_ms), UUID(int=(1 << 128) - 1)


async def _drop(connection: asyncpg.Connection[asyncpg.Record], name: str) -> bool:
    """Drops a partition, where it is still there and no run of its week has come; returns whether it did."""
    start_ms = partition_start_ms(name)
    async with connection.transaction():
        await connection.execute(_QUERIES["limit_locks"])
        await connection.execute(_QUERIES["lock_journal"])
        # Another may have dropped it; and who writes holds the journal's lock, so that what it wrote is seen now.
        there = await connection.fetchval(_QUERIES["is_partition"], name)
        needed = await connection.fetchval(
            _QUERIES["has_runs"], first_run_id(start_ms), first_run_id(start_ms + WEEK_MS)
        )
        if not there or needed:
            return False
        await connection.execute(_QUERIES["drop_partition"].format(name=name))
        return True
