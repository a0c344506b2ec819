"""Brings a database's schema to the newest version: numbered SQL files, forward only, each once and in a transaction.

The lock between starters is a row. The journal's partitions are made here too, ahead of time.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from uuid import UUID

import asyncpg

from orchestrator.postgres.binaries import OLDEST_MAJOR
from orchestrator.postgres.causes import Cause, cause_of
from orchestrator.postgres.errors import DRIVER_ERRORS, RoleError, SchemaError, unavailable
from orchestrator.postgres.sql import load

_FILE = re.compile(r"(\d{4})_\w+\.sql")
_QUERIES = load("migrate")
_RACES = (
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.UniqueViolationError,
    asyncpg.InternalServerError,  # "tuple concurrently updated": two starters granted the same right.
    asyncpg.DeadlockDetectedError,
)
_TRIES = 10

_log = logging.getLogger(__name__)

PARTITIONS_SECONDS = 24 * 3600.0
"""How often a server looks whether the journal's next partitions are there."""

WEEK_MS = 7 * 24 * 3600 * 1000
_FIRST_MONDAY_MS = 4 * 24 * 3600 * 1000
"""1970-01-05, in milliseconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of SQL."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Lists the migrations of this version of Baton, oldest first."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), file.name.removesuffix(".sql"), file.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(dsn: str, files: Sequence[Migration] | None = None) -> list[str]:
    """Applies what is missing, makes partitions ahead, and returns the names of both, in order.

    Errors: SchemaError (an applied file was changed, or the schema is newer than this Baton), RoleError (the user may
    not make the roles), DatabaseUnavailable.
    """
    connection = await _connect(dsn)
    try:
        await _make_roles(connection)
        await _retry_races(connection, _QUERIES["make_bookkeeping"])
        done = []
        for migration in migrations() if files is None else files:
            if await _apply(connection, migration, files):
                done.append(migration.name)
        return done + await ensure_partitions(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise RoleError(f"this database user lacks a right that migrations need: {error}") from error
    except asyncpg.LockNotAvailableError as error:
        raise SchemaError("a table is locked by something else; stop long transactions and try again") from error
    except DRIVER_ERRORS as error:
        cause = cause_of(error)
        if cause in (Cause.FAILED, Cause.SCHEMA_MISSING):
            raise  # The file is to blame.
        raise unavailable(cause) from error
    finally:
        await connection.close()


async def check_schema(dsn: str) -> None:
    """Proves that the schema is the one of this version. Errors: SchemaError, DatabaseUnavailable."""
    connection = await _connect(dsn)
    try:
        present = await connection.fetchval(_QUERIES["has_bookkeeping"])
        applied = await connection.fetch(_QUERIES["applied"]) if present else []
    except DRIVER_ERRORS as error:
        raise unavailable(cause_of(error)) from error
    finally:
        await connection.close()
    known = migrations()
    _compare(applied, known)
    if len(applied) < len(known):
        raise SchemaError(f"the database lacks {known[len(applied)].name}: run `baton migrate`")


async def ensure_partitions(
    connection: asyncpg.Connection[asyncpg.Record], weeks_ahead: int = 8, now_ms: int | None = None
) -> list[str]:
    """Makes the journal's partitions from last week to `weeks_ahead` and returns the names of new ones. The time is the
    database's unless given.

    Needs the rights of the tables' owner. Errors: those of asyncpg.
    """
    if now_ms is None:
        now_ms = await database_ms(connection)
    monday_ms = now_ms - (now_ms - _FIRST_MONDAY_MS) % WEEK_MS
    wanted = {
        partition_name(start): start
        for start in range(monday_ms - WEEK_MS, monday_ms + (weeks_ahead + 1) * WEEK_MS, WEEK_MS)
    }
    async with connection.transaction():
        await connection.execute(_QUERIES["wait_for_lock"])
        await connection.execute(_QUERIES["take_lock"])
        await connection.execute(_QUERIES["limit_locks"])
        present = {row["name"] for row in await connection.fetch(_QUERIES["partitions"])}
        made = []
        for name, start_ms in wanted.items():
            if name not in present:
                first, end = first_run_id(start_ms), first_run_id(start_ms + WEEK_MS)
                try:
                    async with connection.transaction():
                        await connection.execute(_QUERIES["make_partition"].format(name=name, first=first, end=end))
                except asyncpg.CheckViolationError:
                    _log.warning("the default partition holds rows of %s already and keeps that week", name)
                else:
                    made.append(name)
        return made


async def database_ms(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    """The database's time, in milliseconds since the Unix epoch: that of a replica may be wrong. Errors: those of
    asyncpg."""
    now_ms: int = await connection.fetchval(_QUERIES["now_ms"])
    return now_ms


async def keep_partitions(dsn: str) -> None:
    """Makes partitions ahead of time for as long as the server runs, where this user may: they belong to its owner."""
    while True:
        with contextlib.suppress(*DRIVER_ERRORS, SchemaError):
            connection = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
            try:
                await ensure_partitions(connection)
            except asyncpg.InsufficientPrivilegeError:
                _log.warning("this database user may not make partitions: run `baton migrate` every month")
            finally:
                await connection.close()
        await asyncio.sleep(PARTITIONS_SECONDS)


def first_run_id(time_ms: int) -> UUID:
    """Smallest UUID that sorts at or below every UUIDv7 of `time_ms`, milliseconds since the Unix epoch, and later."""
    return UUID(int=time_ms << 80)


def partition_name(start_ms: int) -> str:
    """The name of the partition whose week begins at `start_ms`, milliseconds since the Unix epoch."""
    return "events_" + time.strftime("%Y%m%d", time.gmtime(start_ms / 1000))


def partition_start_ms(name: str) -> int:
    """The beginning of the week of a partition, in milliseconds since the Unix epoch."""
    return calendar.timegm(time.strptime(name, "events_%Y%m%d")) * 1000


async def _connect(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    try:
        connection = await asyncpg.connect(dsn, timeout=10, command_timeout=300)
    except (*DRIVER_ERRORS, ValueError) as error:  # A port, say, that is no number.
        raise unavailable(cause_of(error)) from error
    version = connection.get_server_version()
    if version.major < OLDEST_MAJOR:
        await connection.close()
        raise SchemaError(f"the database is Postgres {version.major}; Baton needs {OLDEST_MAJOR} or newer")
    return connection


async def _make_roles(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        await _retry_races(connection, _QUERIES["make_roles"])
    except asyncpg.InsufficientPrivilegeError as error:
        raise RoleError(
            "this database user may not make roles; let an administrator run: CREATE ROLE baton_api NOLOGIN; "
            "CREATE ROLE baton_engine NOLOGIN; GRANT baton_api, baton_engine TO <this user>"
        ) from error


async def _retry_races(connection: asyncpg.Connection[asyncpg.Record], statements: str) -> None:
    """Runs statements that lose against another starter with an error, and succeed a moment later."""
    for left in reversed(range(_TRIES)):
        try:
            await connection.execute(statements)
        except _RACES:
            if not left:
                raise
        else:
            return


async def _apply(
    connection: asyncpg.Connection[asyncpg.Record], migration: Migration, files: Sequence[Migration] | None
) -> bool:
    async with connection.transaction():
        await connection.execute(_QUERIES["wait_for_lock"])
        await connection.execute(_QUERIES["take_lock"])
        await connection.execute(_QUERIES["limit_locks"])
        applied = await connection.fetch(_QUERIES["applied"])
        _compare(applied, migrations() if files is None else files)
        if migration.version in {row["version"] for row in applied}:
            return False
        await connection.execute(migration.text)
        await connection.execute(_QUERIES["record"], migration.version, migration.name, migration.checksum)
        return True


def _compare(applied: Sequence[asyncpg.Record], known: Sequence[Migration]) -> None:
    by_version = {migration.version: migration for migration in known}
    for row in applied:
        migration = by_version.get(row["version"])
        if migration is None:
            newest = max(by_version, default=0)
            raise SchemaError(
                f"the database is at {row['name']}, this Baton knows up to {newest:04}: run a newer Baton"
            )
        if migration.checksum != row["checksum"]:
            raise SchemaError(
                f"{row['name']} is not the file that was applied: restore it, and put changes in a new file"
            )
