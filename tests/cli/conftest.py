"""Fixtures of the command line's tests: one server with the example workers and workflows for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.conftest import dsn_of

from .programs import Answer, Program, baton

Command = Callable[..., Awaitable[Answer]]

WORKERS = {
    "inventory": ("examples.orders.inventory",),
    "payments": ("examples.orders.payments", "--unavailable-share", "0"),
    "express": ("examples.orders.shipping", "--carrier", "express"),
    # Never answers while a test lasts: what calls it is still running when it is looked at.
    "slow": ("examples.orders.shipping", "--carrier", "standard", "--latency", "600"),
    "notifications": ("examples.orders.notifications",),
}


@pytest.fixture(scope="session")
async def workers() -> AsyncIterator[dict[str, Program]]:
    """The example workers, each a process."""
    started = await asyncio.gather(
        *(Program.start(*command, "--port", "0", "--log-level", "error") for command in WORKERS.values())
    )
    yield dict(zip(WORKERS, started, strict=True))
    for program in started:
        program.process.kill()
    await asyncio.gather(*(program.process.wait() for program in started))


@pytest.fixture(scope="session")
async def server(postgres_server: EmbeddedPostgres, template_database: str) -> AsyncIterator[Program]:
    """`baton serve` on a database of its own."""
    connection = await asyncpg.connect(postgres_server.dsn)
    await connection.execute(f"CREATE DATABASE cli TEMPLATE {template_database}")
    await connection.close()
    started = await Program.start(
        "baton.cli",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--output",
        "json",
        changes={"BATON_DATABASE_URL": dsn_of(postgres_server.dsn, "cli")},
    )
    yield started
    assert await started.stop() == 0


@pytest.fixture(scope="session")
async def command(server: Program) -> Command:
    """Runs a command against the server."""

    async def run(*arguments: str, **options: object) -> Answer:
        return await baton("--server", server.address, *arguments, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
async def shop(command: Command, workers: dict[str, Program]) -> Command:
    """Runs a command against the server, where the workers and the workflow of the orders are."""
    for name, worker in workers.items():
        assert (await command("worker", "add", name, worker.address)).code == 0
    applied = await command("workflow", "apply", "examples/orders/orders.yaml")
    assert applied.code == 0, applied.error
    return command
