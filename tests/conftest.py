"""Fixtures for every test: one embedded Postgres a session, and a fresh database of the newest schema a test.

With pytest-xdist each worker process has a server of its own.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import hypothesis
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.migrate import migrate

TEMPLATE = "baton_template"
_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Lets the programs that tests start be interrupted: what runs in the background of a script ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI"):
        # Looking for the smallest example of a failure, and for others, takes minutes, which is for whoever mends it.
        hypothesis.settings.register_profile(
            "ci",
            phases=[phase for phase in hypothesis.Phase if phase.name != "shrink"],
            report_multiple_bugs=False,
        )
        hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def leave_no_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes data that tests as root left outside of their folders: an embedded server puts it behind a link."""
    yield
    for data in tmp_path_factory.getbasetemp().rglob("data"):
        if data.is_symlink():
            shutil.rmtree(data.resolve().parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running Postgres that is fast and gives up safety against power loss."""
    directory = Path(tempfile.mkdtemp(prefix="baton-test-"))
    try:
        with EmbeddedPostgres(directory, durable=False) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
async def template_database(postgres_server: EmbeddedPostgres) -> str:
    """Name of a database with the newest schema and no data; nothing may stay connected to it."""
    await _administer(postgres_server.dsn, f"CREATE DATABASE {TEMPLATE}")
    await migrate(dsn_of(postgres_server.dsn, TEMPLATE))
    return TEMPLATE


@pytest.fixture
async def database(postgres_server: EmbeddedPostgres, template_database: str) -> AsyncIterator[str]:
    """DSN of a fresh database with the newest schema."""
    name = f"test_{next(_numbers)}"
    await _administer(postgres_server.dsn, f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy")
    yield dsn_of(postgres_server.dsn, name)
    await _administer(postgres_server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def empty_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """DSN of a fresh database with no schema."""
    name = f"empty_{next(_numbers)}"
    await _administer(postgres_server.dsn, f"CREATE DATABASE {name}")
    yield dsn_of(postgres_server.dsn, name)
    await _administer(postgres_server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


def dsn_of(dsn: str, name: str) -> str:
    """The same server's DSN with another database."""
    address, _, query = dsn.partition("?")
    return f"{address.rpartition('/')[0]}/{name}?{query}"


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
