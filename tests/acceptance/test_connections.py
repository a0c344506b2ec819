"""Connections to the database: none is lost to hundreds of clients that give up, and a server bears to get no more."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from baton.v1 import run_pb2

from orchestrator.app import Server
from orchestrator.config import Settings
from orchestrator.engine.limits import EngineLimits
from orchestrator.postgres import replicas
from orchestrator.postgres.pool import Pool
from tests.acceptance.processes import ROOT
from tests.acceptance.storm import NAP
from tests.acceptance.wire import Baton, Refusal, eventually, refused, submission

CLIENTS = 500
CALLS = 12_000
FEW_CALLS = 1_000
"""Enough for a server that loses a connection to each call that is given up at the database."""

LIMITS = EngineLimits(lease_seconds=10.0, drain_seconds=1.0)
LONG_NAP = {"steps": [{"id": "nap", "sleep": {"duration": {"literal": "1.6s"}}}]}
KEPT = 1
"""Connections that a server at rest has lent: one, to its journal."""

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
_UNENDED = "SELECT run_id::text FROM runs WHERE end_time IS NULL LIMIT 10"
_SESSIONS = (
    "SELECT count(*) AS sessions, count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS left_open"
    " FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'baton%'"
)
_NOTE_RENEWALS = """
CREATE TABLE renewals (replica_id uuid, left_seconds float8);
CREATE FUNCTION note_renewal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO renewals VALUES (OLD.replica_id, extract(epoch FROM OLD.lease_expire_time - clock_timestamp()));
    RETURN NULL;
END
$$;
CREATE TRIGGER note_renewal AFTER UPDATE OF lease_expire_time ON replicas
FOR EACH ROW EXECUTE FUNCTION note_renewal();
"""
"""Keeps how long each lease still went on when it was renewed."""


def tasks() -> Counter[str]:
    """What is under way on this loop."""
    return Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())


@dataclass(frozen=True, slots=True)
class Served:
    """A server in this process, every pool of connections that it has made, and a superuser's connection."""

    address: str
    pools: list[asyncpg.Pool[asyncpg.Record]]
    administrator: asyncpg.Connection[asyncpg.Record]

    async def storm(self, calls: int) -> dict[str, Any]:
        """Lets clients of another process make so many calls; returns what it says of them."""
        command = ["-m", "tests.acceptance.storm", self.address, "14", str(calls), str(CLIENTS)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        said: dict[str, Any] = json.loads(output.splitlines()[-1])
        return said

    async def missing(self) -> list[str]:
        """What the server lacks of its connections, now that nobody asks for anything."""
        row = await self.administrator.fetchrow(_SESSIONS)
        assert row is not None
        pools = [pool for pool in self.pools if not pool.is_closing()]
        size = sum(pool.get_size() for pool in pools)
        lent = size - sum(pool.get_idle_size() for pool in pools)
        found = []
        if lent > KEPT:
            found.append(f"{lent} connections are lent")
        if row["left_open"]:
            found.append(f"{row['left_open']} sessions are idle in a transaction")
        if row["sessions"] != size:
            found.append(f"{row['sessions']} sessions, of which the pools know {size}")
        return found


@asynccontextmanager
async def serving(
    database: str, monkeypatch: pytest.MonkeyPatch, login: str = "", limits: EngineLimits = LIMITS
) -> AsyncIterator[Served]:
    """Starts a server, as another user where `login` is given, and notes each renewal of its lease in the database."""
    pools: list[asyncpg.Pool[asyncpg.Record]] = []
    create_pool = asyncpg.create_pool

    def noted(*arguments: Any, **settings: Any) -> Any:
        pools.append(create_pool(*arguments, **settings))
        return pools[-1]

    monkeypatch.setattr(asyncpg, "create_pool", noted)
    administrator = await asyncpg.connect(database)
    await administrator.execute(_NOTE_RENEWALS)
    dsn = database.replace("//postgres@", f"//{login}@") if login else database
    server = Server(Settings(listen_address="127.0.0.1:0", limits=limits), dsn)
    port = await server.start()
    try:
        yield Served(f"127.0.0.1:{port}", pools, administrator)
    finally:
        await server.stop()
        await server.close()
        await administrator.close()


async def test_nothing_is_lost_to_clients_that_give_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(database, monkeypatch) as served:
        baton = Baton(served.address)
        assert (await baton.run(NAP)).state == SUCCEEDED
        before = tasks()
        said = await served.storm(CALLS)
        assert said["codes"]["DEADLINE_EXCEEDED"] + said["codes"]["CANCELLED"] > CALLS / 2, said["codes"]

        assert (await baton.run(NAP)).state == SUCCEEDED  # At once: nothing waits for what is gone.
        await baton.close()
        for run_id in said["acknowledged"]:
            assert await served.administrator.fetchval("SELECT true FROM runs WHERE run_id = $1", UUID(run_id)), run_id

        async def at_rest() -> bool:
            unended = await served.administrator.fetch(_UNENDED)
            return not unended and not await served.missing() and not tasks() - before

        try:
            await eventually(at_rest)
        except AssertionError:
            left = tasks() - before, await served.missing(), await served.administrator.fetch(_UNENDED)
            pytest.fail(f"tasks, connections, runs: {left}")
        renewals = await served.administrator.fetch("SELECT replica_id, left_seconds FROM renewals")
        assert len({row["replica_id"] for row in renewals}) == 1
        assert min(row["left_seconds"] for row in renewals) > 0


async def test_the_storm_finds_a_pool_that_loses_connections(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would that gives a connection back only where its borrower comes to an end."""

    @asynccontextmanager
    async def losing(
        self: Pool, within_seconds: float | None = None
    ) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        connection = await self._acquire(within_seconds)
        try:
            yield connection
        except Exception:
            await self._pool.release(connection)
            raise
        await self._pool.release(connection)

    monkeypatch.setattr(Pool, "lend", losing)
    async with serving(database, monkeypatch) as served:
        for _ in range(5):  # Whether a call is given up just while it holds a connection is chance.
            await served.storm(FEW_CALLS)
            if missing := await served.missing():
                break
        assert any("connections are lent" in each for each in missing)
        for pool in served.pools:
            pool.terminate()  # It would wait for what was lost.


@pytest.fixture
async def login(database: str) -> AsyncIterator[str]:
    """A user who may act as the server does, and no more, so that its connections can be limited."""
    administrator = await asyncpg.connect(database)
    name = f"crowded_{uuid4().hex}"
    await administrator.execute(f"CREATE ROLE {name} LOGIN; GRANT baton_api, baton_engine TO {name}")
    yield name
    await administrator.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    await administrator.close()


async def test_a_server_that_gets_no_more_connections_keeps_its_lease_and_goes_on(
    database: str, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    limits = EngineLimits(lease_seconds=2.0, drain_seconds=1.0, park_seconds=0.05, adoption_interval_seconds=0.2)
    async with serving(database, monkeypatch, login, limits) as served:
        baton, administrator = Baton(served.address), served.administrator
        run = await baton.run(LONG_NAP)
        assert run.state == SUCCEEDED
        await administrator.execute(f"ALTER ROLE {login} CONNECTION LIMIT 0")
        await administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'baton api'"
        )

        async def refusal_of_the_limit() -> Refusal | None:
            """The first may be that of a connection which is found to be gone."""
            refusal = await refused(baton.get(run.run_id))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            return refusal if refusal.metadata["cause"] == "TOO_MANY_CONNECTIONS" else None

        refusal = await eventually(refusal_of_the_limit)
        assert refusal is not None
        assert refusal.retry_seconds

        # What it has is enough to keep the lease, to write, and to take up runs that are parked.
        begun = await administrator.fetchval("SELECT count(*) FROM renewals")
        parked = await baton.submit(LONG_NAP)

        async def has_gone_on() -> bool:
            query = "SELECT epoch > 1 AND end_time IS NOT NULL FROM runs WHERE run_id = $1"
            return bool(await administrator.fetchval(query, UUID(parked.run_id)))

        async def is_renewed() -> bool:
            return int(await administrator.fetchval("SELECT count(*) FROM renewals")) >= begun + 3

        assert await eventually(has_gone_on)
        assert await eventually(is_renewed)
        assert await administrator.fetchval("SELECT count(DISTINCT replica_id) FROM renewals") == 1

        await administrator.execute(f"ALTER ROLE {login} CONNECTION LIMIT -1")
        assert (await baton.get(run.run_id)).state == SUCCEEDED
        await baton.close()


async def test_a_server_that_was_cut_off_for_long_reads_catalogues_again(
    database: str, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    """For longer than renewals tell of changes."""
    monkeypatch.setattr(replicas, "CHANGE_MARGIN_SECONDS", 0.0)
    limits = EngineLimits(lease_seconds=1.0, drain_seconds=1.0)
    other = Server(Settings(listen_address="127.0.0.1:0", limits=LIMITS), database)
    port = await other.start()
    try:
        async with serving(database, monkeypatch, login, limits) as served:
            baton, beside = Baton(served.address), Baton(f"127.0.0.1:{port}")
            first = await baton.apply(NAP | {"name": "changed"})
            begun = await served.administrator.fetchval("SELECT count(*) FROM renewals")

            async def has_heard() -> bool:
                """Of its own change: what it reads then it keeps."""
                query = "SELECT count(*) >= $1 FROM renewals"
                return bool(await served.administrator.fetchval(query, begun + 4))

            assert await eventually(has_heard)
            assert (await baton.runs.SubmitRun(submission("changed"), timeout=30)).run.revision == first.revision
            await served.administrator.execute(f"ALTER ROLE {login} CONNECTION LIMIT 0")
            await served.administrator.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", login
            )
            second = await beside.apply(LONG_NAP | {"name": "changed"})

            async def is_long_ago() -> bool:
                query = "SELECT max(change_time) < clock_timestamp() - interval '2 s' FROM catalogues"
                return bool(await served.administrator.fetchval(query))

            async def submitted() -> str:
                try:
                    answer = await baton.runs.SubmitRun(submission("changed"), timeout=30)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    return ""
                revision: str = answer.run.revision
                return revision

            assert await eventually(is_long_ago)
            await served.administrator.execute(f"ALTER ROLE {login} CONNECTION LIMIT -1")
            assert await eventually(submitted) == second.revision
            await baton.close()
            await beside.close()
    finally:
        await other.stop()
        await other.close()
