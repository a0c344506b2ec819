"""A base backup, taken while runs go, and archived WAL bring Baton back to a point in time, and a dump to the moment at
which it was begun; runs go on from there."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.states import EventKind
from orchestrator.postgres.binaries import find_binaries
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.migrate import migrate
from tests.acceptance import invariants
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import EDGES, Submitter, diamond
from tests.acceptance.test_replicas import require_results
from tests.acceptance.wire import Baton, eventually
from tests.chaos.checker import load_invariants
from tests.chaos.evidence import PREPARE, Evidence

Connect = Callable[[ServerProcess], Baton]


def server_user() -> pwd.struct_passwd:
    """Whom an embedded Postgres runs as."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that Postgres can reach, with one for the archive."""
    directory = Path(tempfile.mkdtemp(prefix="baton-backup-"))
    directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
    (directory / "archive").mkdir()
    os.chown(directory / "archive", server_user().pw_uid, server_user().pw_gid)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def first(place: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A Postgres that archives its WAL, as one in earnest."""
    postgres = EmbeddedPostgres(place / "first")
    with postgres:
        pass
    settings = f"archive_mode = on\narchive_command = 'cp %p {place}/archive/%f'\n"
    with (place / "first/data/postgresql.conf").open("a") as file:
        file.write(settings)
    await migrate(postgres.start())
    yield postgres
    postgres.stop()


async def run_program(name: str, *arguments: str) -> tuple[int | None, str]:
    """Runs a program of Postgres; returns its exit code and what it wrote to standard error."""
    folder = next(iter(find_binaries(server_user().pw_uid))).folder
    process = await asyncio.create_subprocess_exec(str(folder / name), *arguments, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def back_up(postgres: EmbeddedPostgres, target: Path) -> None:
    """Takes a base backup without WAL: that comes from the archive."""
    place = ("--dbname", postgres.dsn, "--pgdata", str(target))
    how = ("--wal-method", "none", "--checkpoint", "fast", "--no-sync")
    code, told = await run_program("pg_basebackup", *place, *how)
    assert code == 0, told


async def archive_everything(dsn: str) -> datetime:
    """Returns the time, once all that was committed until then is in the archive."""
    connection = await asyncpg.connect(dsn)
    try:
        instant: datetime = await connection.fetchval("SELECT clock_timestamp()")
        # A commit that comes later tells recovery that the time is reached.
        await connection.execute("CREATE TABLE later ()")
        last = await connection.fetchval("SELECT pg_walfile_name(pg_switch_wal())")

        async def archived() -> bool:
            return bool(await connection.fetchval("SELECT last_archived_wal >= $1 FROM pg_stat_archiver", last))

        await eventually(archived)
        return instant
    finally:
        await connection.close()


def prepare_restore(place: Path, backup: Path, instant: datetime) -> None:
    """Puts the backup in its place, with what tells Postgres how far to go."""
    data = place / "second/data"
    data.parent.mkdir()
    backup.rename(data)
    (data / "recovery.signal").touch()
    settings = f"restore_command = 'cp {place}/archive/%f %p'\nrecovery_target_time = '{instant.isoformat()}'\n"
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write(f"archive_mode = off\nrecovery_target_action = promote\n{settings}")
    for file_or_folder in [data, *data.rglob("*")]:
        os.chown(file_or_folder, server_user().pw_uid, server_user().pw_gid)


async def restore(place: Path, backup: Path, instant: datetime) -> EmbeddedPostgres:
    """Starts a Postgres on the backup, brought to a point in time by the archive."""
    prepare_restore(place, backup, instant)
    postgres = EmbeddedPostgres(place / "second")
    connection = await asyncpg.connect(postgres.start())
    try:

        async def promoted() -> bool:
            return not await connection.fetchval("SELECT pg_is_in_recovery()")

        await eventually(promoted)
        assert await connection.fetchval("SELECT to_regclass('later')") is None, "it went beyond the point in time"
    finally:
        await connection.close()
    return postgres


STORED = ("duplicated/", "double_transitions/", "stale_writes_accepted/", "lost/acknowledged")
"""Of the invariants of campaigns, those that hold of a database at any moment, whatever clients and workers noted."""


async def require_stored(dsn: str, acknowledged: dict[str, str]) -> None:
    """Those of the invariants of campaigns hold of what is stored. Claims are noted from the first call on."""
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regnamespace('chaos')") is None:
            await connection.execute(PREPARE)
        tables = ("acknowledged", "edge", "run", "event")
        await connection.execute("; ".join(f"TRUNCATE chaos.{table}" for table in tables))
        told = [("client", request, "", run, "", 0, 0, 0.0) for request, run in acknowledged.items()]
        await connection.copy_records_to_table("acknowledged", schema_name="chaos", records=told)
        await connection.copy_records_to_table("edge", schema_name="chaos", records=EDGES)
        await Evidence(connection).take_journal([EventKind.DELIVERY_STARTED])
        assert await connection.fetchval("SELECT count(*) FROM chaos.event") > len(acknowledged)
        queries = {name: query for name, query in load_invariants().items() if name.startswith(STORED)}
        assert len(queries) > 10
        assert {name: rows for name, query in queries.items() if (rows := await connection.fetch(query))} == {}
    finally:
        await connection.close()


@pytest.mark.parametrize("transport", ["stream"])
async def test_a_restored_database_goes_on_from_the_point_in_time(
    first: EmbeddedPostgres,
    place: Path,
    tmp_path: Path,
    connect: Connect,
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    server = ServerProcess(first.dsn, tmp_path / "first.log")
    await server.start()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    kept, lost = Submitter(baton, contract), Submitter(baton, contract)

    async def submit(submitter: Submitter, numbers: range) -> None:
        await asyncio.gather(*(submitter.submit(number, diamond(contract, "0.1s")) for number in numbers))

    # Runs begin before, during and after the base backup; some have ended by the point in time, and some have not.
    await submit(kept, range(20))
    await asyncio.gather(back_up(first, place / "backup"), submit(kept, range(20, 40)))
    await baton.end(kept.acknowledged["request-0"])
    await submit(kept, range(40, 60))
    instant = await archive_everything(first.dsn)
    await submit(lost, range(100, 110))
    await server.kill()
    first.stop()

    second = await restore(place, place / "backup", instant)
    try:
        restored = await invariants.read_runs(second.dsn)
        assert set(restored) == set(kept.acknowledged.values())
        assert not invariants.journal_faults(restored, EDGES)
        await require_stored(second.dsn, kept.acknowledged)
        assert len({run.ended for run in restored.values()}) == 2, "all had ended, or none: the moment was wrong"

        heir = ServerProcess(second.dsn, tmp_path / "second.log")
        again_us = await _now(second.dsn)
        await heir.start()
        try:
            await require_results(connect(heir), contract, kept)
        finally:
            await heir.kill()
        runs = await invariants.read_runs(second.dsn)
        assert not invariants.journal_faults(runs, EDGES)
        await require_stored(second.dsn, kept.acknowledged)
        assert not invariants.submission_faults(runs, kept.acknowledged)
        # What was called after the point in time is not known any more, and is called again under the same keys.
        notes = lab_process.notes()
        instant_us = round(instant.timestamp() * 1_000_000)
        known = [note for note in notes if note.time <= instant_us or note.time >= again_us]
        assert len(known) < len(notes)
        assert not invariants.call_faults(runs, known)
        assert not invariants.answer_faults(runs, notes)
        keys = {(note.run, note.step, note.key) for note in notes}
        assert len(keys) == len({(run, step) for run, step, _ in keys})
    finally:
        second.stop()


@pytest.mark.parametrize("transport", ["stream"])
async def test_a_dump_goes_on_in_another_postgres(
    database: str, place: Path, tmp_path: Path, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = ServerProcess(database, tmp_path / "first.log")
    await server.start()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    kept = Submitter(baton, contract)
    await asyncio.gather(*(kept.submit(number, diamond(contract, "0.3s")) for number in range(20)))
    await baton.end(kept.acknowledged["request-0"])
    await kept.submit(20, diamond(contract, "1s"))

    dump = ("--dbname", database, "--format", "custom", "--file", str(tmp_path / "baton.dump"))
    assert await run_program("pg_dump", *dump) == (0, "")
    await server.kill()

    with EmbeddedPostgres(place / "other", durable=False) as other:
        connection = await asyncpg.connect(other.dsn)
        await connection.execute(
            "CREATE ROLE baton LOGIN; CREATE ROLE baton_api NOLOGIN; CREATE ROLE baton_engine NOLOGIN;"
            " GRANT baton_api, baton_engine TO baton; GRANT ALL ON SCHEMA public TO baton"
        )
        await connection.close()
        where = ("--dbname", other.dsn, "--no-owner", "--role", "baton", "--exit-on-error")
        assert await run_program("pg_restore", *where, str(tmp_path / "baton.dump")) == (0, "")
        restored = await invariants.read_runs(other.dsn)
        assert set(restored) == set(kept.acknowledged.values())
        assert len({run.ended for run in restored.values()}) == 2, "all had ended, or none: the moment was wrong"
        dsn = other.dsn.replace("postgres@", "baton@")
        assert await migrate(dsn) == []
        heir = ServerProcess(dsn, tmp_path / "second.log")
        await heir.start()
        try:
            await require_results(connect(heir), contract, kept)
        finally:
            await heir.kill()
        assert not invariants.journal_faults(await invariants.read_runs(other.dsn), EDGES)


async def test_an_owner_whom_row_level_security_binds_gets_no_dump(database: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database)
    user = f"owner_{uuid7().hex}"
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    try:
        await connection.execute(f"CREATE ROLE {user} LOGIN; GRANT ALL ON SCHEMA public TO {user}")
        await connection.execute("; ".join(f"ALTER TABLE {each['tablename']} OWNER TO {user}" for each in tables))
        dump = ("--dbname", database.replace("postgres@", f"{user}@"), "--file", str(tmp_path / "baton.dump"))
        code, told = await run_program("pg_dump", *dump)
        assert (code, "row-level security" in told) == (1, True), told
        await connection.execute(f"ALTER ROLE {user} BYPASSRLS")
        assert await run_program("pg_dump", *dump) == (0, "")
    finally:
        await connection.execute(f"REASSIGN OWNED BY {user} TO postgres; DROP OWNED BY {user}; DROP ROLE {user}")
        await connection.close()


async def _now(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        return round(now.timestamp() * 1_000_000)
    finally:
        await connection.close()
