"""Pools of connections, each for one role and one purpose, and what every connection of Baton has set.

The journal, the claims and the reads have pools of their own, so that none can starve another. SET ROLE and the pool's
settings last as long as a connection: put no pooler in transaction mode between Baton and Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.postgres.causes import Cause
from orchestrator.postgres.errors import DRIVER_ERRORS, RoleError, is_about_content, unavailable, unstorable
from orchestrator.postgres.history import History
from orchestrator.postgres.outages import Outages
from orchestrator.postgres.sql import load

POSTGRES_EPOCH_TIME = 946_684_800_000_000
"""2000-01-01, where Postgres counts instants from, in microseconds since the Unix epoch."""

_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")
_QUERIES = load("pool")
_UNTOLD = asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError
"""How a service that speaks like Postgres, and is another, may refuse to tell its history."""


class Role(enum.StrEnum):
    """The database roles; both are made by the migrations."""

    API = "baton_api"
    """Acts for callers: sees one namespace at a time, by row level security."""
    ENGINE = "baton_engine"
    """Drives runs of every namespace, on the tables that this needs."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Size and limits of a pool. `generic_plans`: plan each statement once, whatever its arguments are. `hurried`: who
    wants a connection hardly waits where the database was found silent; what finds out that it answers again must not
    be."""

    max_size: int = 4
    connect_timeout_seconds: float = 5.0
    acquire_timeout_seconds: float = 5.0
    statement_timeout_seconds: float = 10.0
    lock_timeout_seconds: float = 5.0
    idle_timeout_seconds: float = 300.0
    generic_plans: bool = False
    hurried: bool = False


HURRIED_SECONDS = 1.0
"""How long a caller waits for a connection to a database that was found silent."""

ANSWER_SECONDS = 1.0
"""How much longer than the database itself bears a statement its answer is waited for."""

AWAY_CLOSE_SECONDS = 0.5
"""How long a pool that closes waits for a database that did not answer."""

JOURNAL_SETTINGS = PoolSettings(max_size=2, generic_plans=True)
CLAIM_SETTINGS = PoolSettings(max_size=2, statement_timeout_seconds=5.0, lock_timeout_seconds=2.0)
READ_SETTINGS = PoolSettings(max_size=8, statement_timeout_seconds=5.0, lock_timeout_seconds=4.0, hurried=True)


def dsn_from_environment() -> str | None:
    """DSN of the database that the environment names: BATON_DATABASE_URL, else PG*; None where it names none."""
    given = os.environ.get("BATON_DATABASE_URL")
    if given:
        return given
    return "postgresql://" if any(os.environ.get(name) for name in _ENVIRONMENT) else None


class Pool:
    """Connections of one role. Belongs to the event loop that opened it; `outages` to the process.

    Where a connection leads to a database that takes no writes, all are made anew: after a failover the name of the
    database leads elsewhere, and connections that still stand would lead to the former primary for ever. Likewise where
    one leads to another history (history.py).
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], settings: PoolSettings, outages: Outages) -> None:
        self._pool = pool
        self._settings = settings
        self._outages, self._generation = outages, outages.generation
        self._kept: list[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]] = []
        self._closing = False

    @classmethod
    async def open(cls, dsn: str, role: Role, settings: PoolSettings, outages: Outages | None = None) -> Pool:
        """Opens a pool and proves that its role guards namespaces. Errors: DatabaseUnavailable, RoleError."""
        outages = outages or Outages()
        try:
            pool = await asyncpg.create_pool(
                dsn,
                # None is kept open by the driver: it would log a traceback each time that it cannot make one.
                min_size=0,
                max_size=settings.max_size,
                timeout=settings.connect_timeout_seconds,
                command_timeout=settings.statement_timeout_seconds + ANSWER_SECONDS,
                max_inactive_connection_lifetime=settings.idle_timeout_seconds,
                init=functools.partial(_prepare, outages=outages),
                reset=_leave,
                server_settings=_server_settings(role, settings),
            )
            await pool.release(await pool.acquire(timeout=settings.connect_timeout_seconds))
        except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError) as error:
            raise RoleError(
                f"this database user may not act as {role.value}: run `baton migrate` with this user"
            ) from error
        except DRIVER_ERRORS as error:
            raise unavailable(outages.failed(error)) from error
        return cls(pool, settings, outages)

    async def close(self) -> None:
        """Closes every connection, waiting for what is under way up to the statement timeout; hardly where the database
        is away, as the pools of a server close one after the other."""
        self._closing = True
        seconds = AWAY_CLOSE_SECONDS if self._outages.ongoing else self._settings.statement_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                while self._kept:
                    await self._pool.release(self._kept.pop())
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @property
    def history(self) -> History:
        """The histories that the connections of this process led to."""
        return self._outages.history

    def unavailable(self, error: BaseException) -> DatabaseUnavailable:
        """Takes note of a failure of the database, and makes the error that the caller is to be told."""
        return unavailable(self._outages.failed(error))

    @asynccontextmanager
    async def lend(
        self, within_seconds: float | None = None
    ) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Lends a connection that is there `within_seconds`. Errors: DatabaseUnavailable where there is none; those
        of the driver, which the caller turns."""
        connection = await self._acquire(within_seconds)
        try:
            yield connection
        except TimeoutError:
            _drop(connection)
            raise
        finally:
            await self._pool.release(connection)
        self._answered()

    async def _acquire(self, within_seconds: float | None = None) -> asyncpg.pool.PoolConnectionProxy[asyncpg.Record]:
        """Takes a connection. Errors: DatabaseUnavailable, whatever the driver says: no data is to blame yet."""
        if self._generation != self._outages.generation:
            await self._renew()
        seconds = self._settings.acquire_timeout_seconds
        if within_seconds is not None:
            seconds = min(seconds, within_seconds)
        if self._outages.silent and self._settings.hurried:
            seconds = min(seconds, HURRIED_SECONDS)
        try:
            return await self._pool.acquire(timeout=seconds)
        except DRIVER_ERRORS as error:
            all_lent = self._pool.get_size() >= self._settings.max_size and not self._pool.get_idle_size()
            is_busy = isinstance(error, TimeoutError) and all_lent and not self._outages.silent
            busy = Cause.BUSY if is_busy else None
            raise unavailable(self._outages.failed(error, busy)) from error

    async def _renew(self) -> None:
        """Has every connection made anew before it is lent again."""
        self._generation = self._outages.generation
        await self._pool.expire_connections()
        while self._kept:
            await self._pool.release(self._kept.pop())

    def _answered(self) -> None:
        if self._outages.ongoing:
            self._outages.answered()

    @asynccontextmanager
    async def lend_kept(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Lends a connection that is kept for the next loan of this kind; after an error it goes back to the pool.

        The upkeep of an ordinary loan costs half as much again as a short statement. For one borrower at a time,
        who leaves no transaction open. Errors: as of `lend`.
        """
        if self._generation != self._outages.generation:
            await self._renew()
        kept = self._kept.pop() if self._kept else None
        if kept is None or _is_lost(kept):
            kept = await self._acquire()
        try:
            yield kept
        except BaseException as error:
            if isinstance(error, TimeoutError):
                _drop(kept)
            await self._pool.release(kept)
            raise
        self._answered()
        if self._closing or self._kept:
            await self._pool.release(kept)
        else:
            self._kept.append(kept)

    @asynccontextmanager
    async def connection(
        self, within_seconds: float | None = None
    ) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Lends a connection, as `lend`; the driver's errors become the domain's."""
        try:
            async with self.lend(within_seconds) as connection:
                yield connection
        except DRIVER_ERRORS as error:
            if is_about_content(error):
                raise unstorable() from error
            raise self.unavailable(error) from error

    @asynccontextmanager
    async def in_namespace(self, namespace: str) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """Lends a connection inside a transaction that sees `namespace` alone. Commits unless an error passes."""
        # One message begins the transaction and sets the namespace; as hexadecimal digits it needs no quoting.
        begin = _QUERIES["begin_in_namespace"].format(namespace_hex=namespace.encode().hex())
        async with self.connection() as connection:
            try:
                await connection.execute(begin)
                yield connection
                await connection.execute(_QUERIES["commit"])
            except TimeoutError:
                raise  # No rollback would be answered either: the connection is dropped.
            except BaseException as error:
                # A caller who leaves is nothing to report: the driver logs a transaction that comes back to it open.
                try:
                    if isinstance(error, asyncio.CancelledError):
                        # What the statement did that was cancelled, such as BEGIN, is known once another is answered.
                        with contextlib.suppress(*DRIVER_ERRORS):
                            await connection.execute(_QUERIES["nothing"])
                    with contextlib.suppress(*DRIVER_ERRORS):
                        await _leave(connection)
                except asyncio.CancelledError:
                    # Once more, as by a server that stops: nobody waits for a rollback.
                    connection.terminate()
                    raise
                raise

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Runs one statement in its own transaction and returns its rows."""
        async with self.connection() as connection:
            return await connection.fetch(query, *arguments)

    async def fetch_within(self, seconds: float, query: str, *arguments: object) -> list[asyncpg.Record]:
        """As `fetch`, but a connection and the answer are waited for no longer than `seconds` together; where that was
        too short, the statement may be carried out all the same, and the next one goes by another connection."""
        now_seconds = asyncio.get_running_loop().time
        end_seconds = now_seconds() + seconds
        async with self.connection(seconds) as connection:
            return await connection.fetch(query, *arguments, timeout=end_seconds - now_seconds())

    async def fetch_in(self, namespace: str, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Runs one statement that sees `namespace` alone and returns its rows."""
        async with self.in_namespace(namespace) as connection:
            return await connection.fetch(query, *arguments)


def _drop(connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> None:
    """Ends a connection that did not answer in time. Given back as it is, it would be held until the statement has been
    cancelled, which takes as long again where the line swallows what is sent."""
    with contextlib.suppress(asyncpg.InterfaceError):  # The pool has taken it back by itself.
        connection.terminate()


def _is_lost(connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record]) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # The pool takes a connection back by itself when it is lost.


def _server_settings(role: Role, settings: PoolSettings) -> dict[str, str]:
    return {
        "application_name": role.value.replace("_", " "),
        "role": role.value,
        "timezone": "UTC",
        "jit": "off",
        # Every statement goes by an index. Without this, one that was planned while a table was empty would go on
        # scanning it whole until the next ANALYZE.
        "enable_seqscan": "off",
        "plan_cache_mode": "force_generic_plan" if settings.generic_plans else "auto",
        "statement_timeout": f"{settings.statement_timeout_seconds * 1000:.0f}",
        "lock_timeout": f"{settings.lock_timeout_seconds * 1000:.0f}",
        "idle_in_transaction_session_timeout": "5000",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "3",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }


async def _prepare(connection: asyncpg.Connection[asyncpg.Record], outages: Outages) -> None:
    """Readies a new connection: the guard is in force, commits are durable, instants are whole microseconds, and it is
    known which history it leads to."""
    guard = await connection.fetchrow(_QUERIES["guard"])
    if guard is not None and guard["is_standby"]:
        # It would answer with what was true a while ago.
        raise asyncpg.ReadOnlySQLTransactionError("it is a standby")
    if guard is None or guard["is_superuser"] or guard["bypasses_row_security"]:
        raise RoleError("row level security does not bind this connection's role: its namespaces would not be guarded")
    with contextlib.suppress(*_UNTOLD):
        outages.led_to(await connection.fetchval(_QUERIES["history"]))
    await set_time_codec(connection)
    _detect_silence(connection)


async def set_time_codec(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Makes `timestamptz` an int: microseconds since the Unix epoch."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda instant: (instant - POSTGRES_EPOCH_TIME,),
        decoder=lambda parts: parts[0] + POSTGRES_EPOCH_TIME,
        format="tuple",
    )


async def _leave(
    connection: asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record],
) -> None:
    """Cleans a connection on its way back; nothing here changes session state, so only a transaction can be left."""
    if connection.is_in_transaction():
        await connection.execute(_QUERIES["rollback"])


def _detect_silence(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Makes the kernel give up on a silent peer after 10 s: a failover often ends without a word."""
    transport = getattr(connection, "_transport", None)
    peer = transport.get_extra_info("socket") if transport is not None else None
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        option = getattr(socket, name, None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
