"""Commits rows to Postgres by itself, one statement after the other, through the driver that Baton uses."""

from __future__ import annotations

import itertools

import asyncpg
import uvloop

from benchmarks.load import One, serve
from benchmarks.works import ROW_BYTES

_TABLE = "CREATE TABLE IF NOT EXISTS benchmark_rows (number bigint PRIMARY KEY, row bytea NOT NULL)"
_FIRST = "SELECT coalesce(max(number), 0) + 1 FROM benchmark_rows"
_ONE = "INSERT INTO benchmark_rows (number, row) VALUES ($1, $2)"
_MANY = "INSERT INTO benchmark_rows (number, row) SELECT * FROM unnest($1::bigint[], $2::bytea[])"
_ROW = b"x" * ROW_BYTES


class CommitClient:
    """One connection to the database."""

    async def connect(self, database: str) -> None:
        """Connects, and makes the table."""
        self._connection = await asyncpg.connect(database)
        await self._connection.execute(_TABLE)
        self._numbers = itertools.count(await self._connection.fetchval(_FIRST))

    def one(self, shape: str) -> One:
        """Returns one commit with so many rows."""
        rows = int(shape.removeprefix("rows-"))
        if rows == 1:
            return lambda: self._connection.execute(_ONE, next(self._numbers), _ROW)
        return lambda: self._connection.execute(_MANY, list(itertools.islice(self._numbers, rows)), [_ROW] * rows)


if __name__ == "__main__":
    uvloop.run(serve(CommitClient()))
