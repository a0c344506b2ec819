"""A short campaign of everything, and the proxy that its faults of the network come from."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.migrate import migrate
from orchestrator.postgres.sql import load
from tests.acceptance.processes import ROOT
from tests.acceptance.wire import eventually
from tests.chaos.database import Database, Standby
from tests.chaos.logs import read_logs
from tests.chaos.proxy import CommitCut, FaultyProxy, Way
from tests.chaos.statements import CLAIMS, JOURNAL, measured
from tests.ports import free_port

SECONDS = 20
LONG = "x" * 400
"""Makes a statement as long as those of the journal are."""


def _run(directory: Path, campaign: str, seconds: float) -> dict[str, Any]:
    """Runs a campaign as a command, in which nothing may go wrong; returns what it wrote."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(seconds), "--seed", "7"]
    command += ["--campaigns", campaign, "--output", str(directory / "chaos.json"), "--keep", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads((directory / "chaos.json").read_text())
    (judged,) = written["campaigns"]
    assert not judged["faults"], "\n".join(judged["faults"])
    assert not judged["unexpected_exits"], "\n".join(judged["unexpected_exits"])
    return written


def count_seen(directory: Path) -> int:
    """Counts the events that watchers of a campaign saw, by its logs."""
    logs = [read_logs(folder) for folder in directory.rglob("*") if folder.is_dir()]
    return sum(
        record["what"] == "event"
        for log in logs
        for name, records in log.items()
        if name.startswith("watcher")
        for record in records
    )


@pytest.mark.timeout(180)  # on a busy machine; otherwise 45 s
def test_everything_holds_in_a_short_campaign(tmp_path: Path) -> None:
    """Run as the command is, in a process of its own: a campaign starts a Postgres that is to die with it."""
    written = _run(tmp_path, "everything", SECONDS)
    (campaign,) = written["campaigns"]
    assert campaign["acknowledged"] >= SECONDS
    assert campaign["needed"] >= 4 * SECONDS
    assert written["total"]["effects_over_needed"] == round(campaign["effects"] / campaign["needed"], 3) >= 1
    assert len(campaign["injections_by_kind"]) >= 5, campaign["injections_by_kind"]
    assert written["total"]["injections"] == campaign["injections"]
    # What holds of nothing proves nothing: replicas died, runs of theirs went on, and watchers saw what happened.
    assert any("replica" in kind and "killed" in kind for kind in campaign["injections_by_kind"])
    assert campaign["recoveries"] > 0
    assert 0 < campaign["recovery_p50_s"] <= campaign["recovery_p99_s"]
    assert campaign["events"] > 4 * campaign["acknowledged"]
    assert count_seen(tmp_path) > campaign["acknowledged"]
    # Replicas hold connections, and none of them grows without end: to Postgres, clients, workers and one another.
    assert campaign["backends_peak"] > 0
    assert 0 < campaign["descriptors_before"] <= campaign["descriptors_peak"] < 200
    assert 0 < campaign["descriptors_after"] < campaign["descriptors_before"] + 100


@pytest.mark.timeout(180)  # on a busy machine; otherwise 10 s
def test_what_all_replicas_left_is_taken_over_once_and_worked_off(tmp_path: Path) -> None:
    (campaign,) = _run(tmp_path, "herd", 2)["campaigns"]
    herd = campaign["herd"]
    assert campaign["acknowledged"] == herd["runs"] == 500
    assert herd["left_over"] >= herd["orphaned"] > 100
    assert herd["adoptions"] == herd["orphaned"]
    assert campaign["backends_peak"] <= herd["backends_limit"]


@pytest.mark.timeout(180)  # on a busy machine; otherwise 11 s
def test_all_goes_on_after_tables_were_locked(tmp_path: Path) -> None:
    (campaign,) = _run(tmp_path, "locked", 4)["campaigns"]
    for table in ("runs", "events"):
        met = campaign["locked"][table]
        assert met["queued_and_accepted"] > 0
        assert met["queued_and_accepted"] + met["refused"] <= met["submitted_meanwhile"]


async def test_postgres_tells_how_long_statements_of_the_product_take(reachable: Path) -> None:
    database = Database(reachable, free_port, standby=Standby.NONE, small_disk=False)
    await database.start()
    try:
        await migrate(database.dsn)
        async with measured(database) as durations:
            connection = await asyncpg.connect(database.dsn)
            for _ in range(3):
                await connection.fetch(load("replicas")["marked"], [])
                await connection.fetch(load("replicas")["list_owned"], uuid4())
            await connection.close()
        assert durations.by_statement.keys() == {"marked"}
        assert durations.figures(CLAIMS)["count"] == 3
        assert durations.figures(CLAIMS)["p99_ms"] > 0
        assert durations.figures(JOURNAL) == {"count": 0, "p50_ms": None, "p99_ms": None}
    finally:
        await database.stop()


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, FaultyProxy]]:
    """A Postgres that listens, the address of a proxy before it, and the proxy."""
    port = free_port()
    with EmbeddedPostgres(tmp_path_factory.mktemp("proxied"), durable=False, port=port) as postgres:
        proxy = FaultyProxy("127.0.0.1", port)
        yield postgres.tcp_dsn.replace(f":{port}/", f":{await proxy.start()}/"), proxy
        await proxy.stop()


@pytest.mark.parametrize("how", CommitCut)
async def test_a_connection_ends_when_its_commit_has_gone_up(served: tuple[str, FaultyProxy], how: CommitCut) -> None:
    dsn, proxy = served
    table = f"notes_{how.name.lower()}"
    before = proxy.commits_cut
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE TABLE {table} (note text)")
    proxy.cut_next_commit(how)
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.execute(f"INSERT INTO {table} VALUES ($1)", LONG)
    assert proxy.commits_cut == before + 1
    again = await asyncpg.connect(dsn)
    written = await again.fetchval(f"SELECT count(*) FROM {table}")
    assert written == 1 or (how is CommitCut.SENT and written == 0)
    await again.execute(f"INSERT INTO {table} VALUES ($1)", LONG)  # Only one is cut.
    await again.close()


async def test_what_was_swallowed_is_cut_when_the_proxy_heals(served: tuple[str, FaultyProxy]) -> None:
    dsn, proxy = served
    connection = await asyncpg.connect(dsn)
    proxy.swallow()
    asked = asyncio.ensure_future(connection.fetchval("SELECT 1"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asked), 0.2)
    proxy.heal()
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await asked
    again = await asyncpg.connect(dsn)
    assert await again.fetchval("SELECT 1") == 1
    await again.close()


@pytest.mark.parametrize("way", Way)
async def test_one_direction_alone_is_swallowed(served: tuple[str, FaultyProxy], way: Way) -> None:
    dsn, proxy = served
    table = f"heard_{way.name.lower()}"
    connection, leaving = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    await connection.execute(f"CREATE TABLE {table} (note text)")
    past = await asyncpg.connect(dsn.replace(f":{proxy.port}/", f":{proxy.leads_to}/"))
    left = await leaving.fetchval("SELECT pg_backend_pid()")
    proxy.swallow(way)
    written = asyncio.ensure_future(connection.execute(f"INSERT INTO {table} VALUES ('heard')"))
    leaving.terminate()

    async def heard() -> bool:
        return bool(await past.fetchval(f"SELECT count(*) FROM {table}"))

    async def has_left() -> bool:
        return not await past.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", left)

    if way is Way.DOWN:
        await eventually(heard)
        await eventually(has_left)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(written), 0.2)
    assert (await heard(), await has_left()) == ((way is Way.DOWN), (way is Way.DOWN))
    proxy.heal()
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await written
    await eventually(has_left)
    await past.close()


async def test_a_proxy_is_led_to_another_port(served: tuple[str, FaultyProxy]) -> None:
    dsn, proxy = served
    connection = await asyncpg.connect(dsn)
    own = await connection.fetchval("SELECT current_setting('port')::integer")
    proxy.lead_to(free_port())
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await asyncpg.connect(dsn)
    proxy.lead_to(own)
    await (await asyncpg.connect(dsn)).close()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that a Postgres of another user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


async def test_a_standby_has_what_was_committed_when_it_takes_over(reachable: Path) -> None:
    database = Database(reachable, free_port, standby=Standby.SYNCHRONOUS, small_disk=False)
    await database.start()
    try:
        connection = await asyncpg.connect(database.dsn)
        await connection.execute("CREATE TABLE notes AS SELECT 1 AS note")
        await database.fail_over()
        assert connection.is_closed()
        again = await asyncpg.connect(database.dsn)
        assert await again.fetchval("SELECT note FROM notes") == 1
        await again.close()
    finally:
        await database.stop()


async def test_a_standby_that_nobody_waits_for_lacks_the_last_commits_when_it_takes_over(reachable: Path) -> None:
    database = Database(reachable, free_port, standby=Standby.ASYNCHRONOUS, small_disk=False)
    await database.start()
    try:
        connection = await asyncpg.connect(database.dsn)
        await connection.execute("CREATE TABLE notes AS SELECT 1 AS note")
        await database.catch_up()
        database.hold_supply()
        await connection.execute("INSERT INTO notes VALUES (2)")
        fail_over = await database.fail_over_behind()
        again = await asyncpg.connect(database.dsn)
        assert [row["note"] for row in await again.fetch("SELECT note FROM notes")] == [1]
        assert 0 < fail_over.lag_seconds < 60
        assert fail_over.death_time < fail_over.takeover_time
        await again.close()
    finally:
        await database.stop()


async def test_a_proxy_that_is_down_refuses(served: tuple[str, FaultyProxy]) -> None:
    dsn, proxy = served
    proxy.down = True
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await asyncpg.connect(dsn)
    proxy.heal()
    await (await asyncpg.connect(dsn)).close()
