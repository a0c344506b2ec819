"""What a durable commit costs by itself, by the same driver that Baton uses."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

ROW = b"x" * 300
"""As large as an ordinary event of the journal."""

_TABLE = "CREATE TABLE IF NOT EXISTS benchmark_rows (number bigint PRIMARY KEY, row bytea NOT NULL)"
_ONE = "INSERT INTO benchmark_rows (number, row) VALUES ($1, $2)"
_MANY = "INSERT INTO benchmark_rows (number, row) SELECT * FROM unnest($1::bigint[], $2::bytea[])"


@asynccontextmanager
async def insert(dsn: str, rows: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Gives what inserts that many rows in a commit of its own. Errors: RuntimeError where commits are not durable."""
    connection = await asyncpg.connect(dsn)
    try:
        for setting in ("fsync", "synchronous_commit"):
            value = await connection.fetchval(f"SHOW {setting}")
            if value != "on":
                raise RuntimeError(f"{setting} is {value}: what is measured would not be durable")
        await connection.execute(_TABLE)
        first = await connection.fetchval("SELECT coalesce(max(number), 0) + 1 FROM benchmark_rows")
        numbers = itertools.count(first)

        async def one() -> object:
            return await connection.execute(_ONE, next(numbers), ROW)

        async def many() -> object:
            return await connection.execute(_MANY, list(itertools.islice(numbers, rows)), [ROW] * rows)

        yield one if rows == 1 else many
    finally:
        await connection.close()
