"""Errors of this package, and the one place where the driver's errors become the domain's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from orchestrator.domain.errors import DatabaseUnavailable, InvalidRequest

RETRY_DELAY_SECONDS = 1.0

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


def unavailable() -> DatabaseUnavailable:
    """Makes the error for a database that does not answer."""
    return DatabaseUnavailable("the database does not answer; try again", retry_delay_seconds=RETRY_DELAY_SECONDS)


def is_about_content(error: BaseException) -> bool:
    """Tells whether `error` blames the data that was sent, so that sending it again is of no use."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "").startswith(_CONTENT_CLASSES)
    return isinstance(error, ValueError | OverflowError)  # What the driver cannot encode; UnicodeError is one.


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turns every error of the driver into DatabaseUnavailable, or InvalidRequest where it blames the data."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if is_about_content(error):
            raise InvalidRequest(
                "the request holds something that cannot be stored: the character U+0000, or more than a limit allows"
            ) from error
        raise unavailable() from error
