"""Errors of this package, and the one place where the driver's errors become the domain's."""

from __future__ import annotations

import asyncpg

from orchestrator.domain.errors import DatabaseUnavailable, InvalidRequest
from orchestrator.postgres.causes import MENDED_SECONDS, PASSES_SECONDS, Cause

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # A connection that died at an awkward moment.
    OSError,  # TimeoutError is one.
    UnicodeError,
    OverflowError,
)
"""Everything that the driver raises because of the database, the network, or what it was given."""

_CONTENT_CLASSES = ("22", "23", "44", "54")
"""SQLSTATE classes that blame the data: data exception, constraint, check option, program limit."""


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot start; the text tells the cure."""


class SchemaError(Exception):
    """The schema is not one that this version can work on; the text tells the cure."""


class RoleError(Exception):
    """The database's roles are missing, or would not guard namespaces; the text tells the cure."""


def unavailable(cause: Cause) -> DatabaseUnavailable:
    """Makes the error for a database that does not serve. It tells the class of the cause, and nothing of the driver's
    text."""
    meaning = cause.value
    return DatabaseUnavailable(
        f"{meaning.told}; {'try again' if meaning.passes else 'its operator has to mend that'}",
        metadata={"cause": cause.name},
        retry_delay_seconds=PASSES_SECONDS if meaning.passes else MENDED_SECONDS,
    )


def unstorable() -> InvalidRequest:
    """Makes the error for data that the database refuses."""
    return InvalidRequest(
        "the request holds something that cannot be stored: the character U+0000, or more than a limit allows"
    )


def is_about_content(error: BaseException) -> bool:
    """Tells whether `error` blames the data that was sent, so that sending it again is of no use."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "").startswith(_CONTENT_CLASSES)
    return isinstance(error, ValueError | OverflowError)  # What the driver cannot encode; UnicodeError is one.
