"""Servers and workers of the acceptance tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.migrate import migrate
from tests.acceptance.contracts import Contract, new_lab
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import STEADY, LabProcess, ServerProcess
from tests.acceptance.wire import Baton
from tests.conftest import dsn_of

StartServer = Callable[..., Awaitable[ServerProcess]]


@pytest.fixture(scope="session")
async def shared_server(
    postgres_server: EmbeddedPostgres, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerProcess]:
    """A server that no test harms."""
    connection = await asyncpg.connect(postgres_server.dsn)
    await connection.execute(f"CREATE DATABASE acceptance TEMPLATE {template_database} STRATEGY file_copy")
    await connection.close()
    dsn = dsn_of(postgres_server.dsn, "acceptance")
    server = ServerProcess(dsn, tmp_path_factory.mktemp("shared") / "server.log", STEADY)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def baton(shared_server: ServerProcess) -> AsyncIterator[Baton]:
    """A connection to the shared server, which forgets the workers of the test when that ends: it is not to call them
    where others may be by then."""
    connection = Baton(shared_server.address)
    yield connection
    try:
        await connection.forget_workers()
    finally:
        await connection.close()


@pytest.fixture
async def administrator(
    shared_server: ServerProcess, postgres_server: EmbeddedPostgres
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A superuser's connection to the shared server's database."""
    connection = await asyncpg.connect(dsn_of(postgres_server.dsn, "acceptance"))
    yield connection
    await connection.close()


@pytest.fixture
def contract() -> Contract:
    """A lab's contract of this test alone."""
    return new_lab()


@pytest.fixture(params=["unary", "stream"])
def transport(request: pytest.FixtureRequest) -> str:
    """How calls go to labs: what a run comes to must not depend on it."""
    chosen: str = request.param
    return chosen


@pytest.fixture
async def lab(contract: Contract, transport: str) -> AsyncIterator[LabWorker]:
    """A lab in this process, started."""
    worker = LabWorker(contract, stream=transport == "stream")
    await worker.start()
    yield worker
    await worker.stop()


@pytest.fixture
async def spare_lab(contract: Contract, transport: str) -> AsyncIterator[LabWorker]:
    """A second lab of the same contract, started and not registered."""
    worker = LabWorker(contract, stream=transport == "stream")
    await worker.start()
    yield worker
    await worker.stop()


@pytest.fixture
async def registered(baton: Baton, lab: LabWorker) -> LabWorker:
    """A lab that the shared server knows, under the name of its package without the version."""
    await baton.register(name_of(lab), lab.address)
    return lab


@pytest.fixture
async def start_server(database: str, tmp_path: Path) -> AsyncIterator[StartServer]:
    """Starts servers on this test's own database; keyword arguments are settings."""
    servers: list[ServerProcess] = []

    async def start(**settings: str) -> ServerProcess:
        server = ServerProcess(database, tmp_path / f"server{len(servers)}.log", settings)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.kill()
    for server in servers:
        assert not server.sound or "fault found" not in server.log(), server.log()[-3000:]


@pytest.fixture
async def lab_process(contract: Contract, transport: str, tmp_path: Path) -> AsyncIterator[LabProcess]:
    """A lab in a process of its own, started."""
    worker = LabProcess(contract, tmp_path, transport=transport)
    await worker.start()
    yield worker
    await worker.kill()


@pytest.fixture
async def own_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres of this test alone, which keeps what it committed when it is killed."""
    directory = Path(tempfile.mkdtemp(prefix="baton-lost-"))
    postgres = EmbeddedPostgres(directory)
    await migrate(postgres.start())
    yield postgres
    postgres.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Baton]]:
    """Makes connections to servers of this test, each in a namespace where one is given."""
    connections: list[Baton] = []

    def make(server: ServerProcess, namespace: str = "") -> Baton:
        connections.append(Baton(server.address, namespace))
        return connections[-1]

    yield make
    for connection in connections:
        await connection.close()


def name_of(lab: LabWorker) -> str:
    """The name that a lab is registered under."""
    return lab.contract.package.partition(".")[0]
