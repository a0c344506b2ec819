"""Causes for which the database does not serve: what a caller is told, and what an operator reads and does.

A caller hears of the class of cause alone; the text of the driver, which may name addresses and users, is for the log
and for the command line of who starts a server.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import asyncpg

PASSES_SECONDS = 1.0
"""Retry delay for what passes by itself."""

MENDED_SECONDS = 5.0
"""Retry delay for what stays until somebody mends it."""

DETAIL_LIMIT = 300
"""Characters of the driver's text that are logged."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a cause means: `told` to callers, and the `cure` for who operates the database. `passes`: by itself."""

    told: str
    cure: str
    passes: bool = True


class Cause(enum.Enum):
    """Why the database does not serve. The names are told to callers, as metadata."""

    UNREACHABLE = Meaning(
        "the database cannot be reached",
        "check that Postgres runs, and that BATON_DATABASE_URL or PG* name its address",
    )
    RESTARTING = Meaning("the database is starting or stopping", "where it stays so, look into Postgres's own log")
    SILENT = Meaning(
        "the database does not answer in time",
        "look at its load and disk, at the network to it, and at its longest statements (pg_stat_activity)",
    )
    BUSY = Meaning(
        "all connections of this server to the database are in use",
        "look at the database's longest statements (pg_stat_activity); where it is well, add a replica",
    )
    LOCKED = Meaning(
        "other work at the database is in the way",
        "look for who holds locks for long (pg_locks, pg_stat_activity): migrations, VACUUM FULL, open transactions",
    )
    TOO_MANY_CONNECTIONS = Meaning(
        "the database has no connection left",
        "raise max_connections, or the limit of the user or database: a replica takes up to 14 connections",
    )
    READ_ONLY = Meaning(
        "the database takes no writes",
        "it is a standby, or read-only: connections are made anew until they reach one that writes; check the address "
        "after a failover, and default_transaction_read_only",
    )
    DISK_FULL = Meaning("the database has no disk space left", "free space where Postgres keeps its data, or add some")
    OUT_OF_MEMORY = Meaning("the database has no memory left", "give Postgres more memory, or fewer connections")
    LOGIN_REFUSED = Meaning(
        "the database refuses the login of this server",
        "check user and password in BATON_DATABASE_URL or PG*, and Postgres's pg_hba.conf",
        passes=False,
    )
    NOT_ALLOWED = Meaning(
        "this server lacks a right in the database", "run `baton migrate` with the owner of the tables", passes=False
    )
    DATABASE_MISSING = Meaning(
        "the database does not exist",
        "make it (CREATE DATABASE) and run `baton migrate`, or mend the name in BATON_DATABASE_URL or PG*",
        passes=False,
    )
    SCHEMA_MISSING = Meaning(
        "the schema in the database is not that of this server", "run `baton migrate` of this version", passes=False
    )
    ADDRESS_INVALID = Meaning(
        "the address of the database cannot be read",
        "give BATON_DATABASE_URL as postgresql://user:password@host:port/database",
        passes=False,
    )
    FAILED = Meaning("the database failed", "look into Postgres's own log")


_BY_SQLSTATE = {
    "08": Cause.UNREACHABLE,
    "0P": Cause.NOT_ALLOWED,
    "22023": Cause.NOT_ALLOWED,  # Of a login whose role is not there; content is told apart before this is asked.
    "25006": Cause.READ_ONLY,
    "28": Cause.LOGIN_REFUSED,
    "3D000": Cause.DATABASE_MISSING,
    "3F000": Cause.SCHEMA_MISSING,
    "40": Cause.LOCKED,
    "42501": Cause.NOT_ALLOWED,
    "42704": Cause.SCHEMA_MISSING,
    "42703": Cause.SCHEMA_MISSING,
    "42883": Cause.SCHEMA_MISSING,
    "42P01": Cause.SCHEMA_MISSING,
    "53100": Cause.DISK_FULL,
    "53200": Cause.OUT_OF_MEMORY,
    "53300": Cause.TOO_MANY_CONNECTIONS,
    "55P03": Cause.LOCKED,
    "57014": Cause.SILENT,
    "57P": Cause.RESTARTING,
}
"""Causes by SQLSTATE, or by the first characters of it."""


def cause_of(error: BaseException | None) -> Cause:
    """Tells the cause of an error of the driver."""
    match error:
        case ValueError():  # The driver's ClientConfigurationError is one.
            return Cause.ADDRESS_INVALID
        case asyncpg.PostgresError():
            state = str(error.sqlstate or "")
            found = (_BY_SQLSTATE.get(state[:length]) for length in (5, 3, 2))
            return next((cause for cause in found if cause is not None), Cause.FAILED)
        case TimeoutError():
            return Cause.SILENT
        case _:
            return (
                Cause.UNREACHABLE
            )  # What is not from Postgres comes from the network, or from a connection that died.


def detail_of(error: BaseException | None) -> str:
    """Returns the driver's own words, for the log: its message alone, without the data that details quote."""
    if isinstance(error, ValueError) and not isinstance(error, asyncpg.ClientConfigurationError):
        return ""  # It may quote any part of the address.
    message = getattr(error, "message", None) or (str(error.args[0]) if error is not None and error.args else "")
    if isinstance(error, OSError):
        message = str(error)
    return " ".join(str(message).split("\n")[0].split())[:DETAIL_LIMIT]


def describe(error: BaseException | None) -> tuple[str, str]:
    """Returns what went wrong, and the cure, for who starts a server or a migration."""
    cause, detail = cause_of(error), detail_of(error)
    return f"{cause.value.told}: {detail}" if detail else cause.value.told, cause.value.cure
