"""`baton dev`, `serve` and `migrate` as processes: what they print, keep and refuse."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import asyncpg
import pytest
from baton.cli.outcomes import Choices, OutputForm
from baton.cli.serving import plain_serve

from .conftest import Command
from .programs import Program, baton


async def _start_dev(directory: Path) -> Program:
    return await Program.start(
        "baton.cli", "dev", "--directory", str(directory), "--listen", "127.0.0.1:0", "-o", "json"
    )


async def test_dev_serves_with_a_postgres_of_its_own_and_keeps_its_data(tmp_path: Path) -> None:
    directory = tmp_path / "dev"
    first = await _start_dev(directory)
    try:
        told = json.loads(first.first_line)
        connection = await asyncpg.connect(told["dsn"])
        assert await connection.fetchval("SELECT count(*) FROM runs") == 0
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        await connection.close()
        assert (await baton("-s", first.address, "run", "ls", "-o", "json")).json == []

        second = await baton("dev", "--directory", str(directory), "--listen", "127.0.0.1:0")
        assert (second.code, second.out) == (1, "")
        assert f"{directory} is in use by another process" in second.error
    finally:
        assert await first.stop(signal.SIGINT) == 0

    again = await _start_dev(directory)
    try:
        connection = await asyncpg.connect(json.loads(again.first_line)["dsn"])
        assert await connection.fetchval("SELECT value FROM kept") == 42
        await connection.close()
    finally:
        assert await again.stop(signal.SIGTERM) == 0


async def test_serve_without_a_database_says_how_to_name_one() -> None:
    answer = await baton("serve")
    assert answer.code == 1
    assert "BATON_DATABASE_URL" in answer.error
    assert "baton dev" in answer.error


@pytest.mark.parametrize("address", ["nonsense", "0.0.0.0:7330", "[::]:7330", ":7330", "host:0", "host:65536"])
async def test_serve_at_an_address_that_others_cannot_reach(address: str) -> None:
    answer = await baton("serve", changes={"BATON_REPLICA_ADDRESS": address, "BATON_DATABASE_URL": "postgresql://"})
    assert answer.code == 1
    assert f"error: BATON_REPLICA_ADDRESS={address!r} is not HOST:PORT of this replica" in answer.error


async def test_serve_where_no_database_answers() -> None:
    answer = await baton("serve", changes={"BATON_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert answer.code == 1
    assert "the database cannot be reached: " in answer.error
    assert "check that Postgres runs" in answer.error


async def test_serve_where_the_address_of_the_database_cannot_be_read() -> None:
    answer = await baton("serve", changes={"BATON_DATABASE_URL": "postgresql://me:secret@127.0.0.1:port/none"})
    assert answer.code == 1
    assert "the address of the database cannot be read\n" in answer.error
    assert "secret" not in answer.error
    assert "postgresql://user:password@host:port/database" in answer.error


async def test_serve_asks_for_the_migration_that_migrate_makes(empty_database: str) -> None:
    changes = {"BATON_DATABASE_URL": empty_database}
    answer = await baton("serve", changes=changes)
    assert answer.code == 1
    assert "baton migrate" in answer.error

    first = await baton("migrate", "--database-url", empty_database, "-o", "json")
    assert "0001_initial" in first.json["applied"]
    again = await baton("migrate", changes=changes)
    assert (again.code, again.out) == (0, "")
    assert "up to date" in again.error


async def test_serve_on_an_address_in_use(database: str, server: Program) -> None:
    answer = await baton("serve", "--listen", server.address, changes={"BATON_DATABASE_URL": database})
    assert answer.code == 1
    assert answer.error.startswith(f"error: cannot listen on {server.address}")
    assert "--listen HOST:PORT" in answer.error


async def test_a_setting_that_does_not_exist_is_refused(database: str) -> None:
    answer = await baton("serve", changes={"BATON_DATABASE_URL": database, "BATON_LISTEN_ADRESS": "x"})
    assert answer.code == 1
    assert "BATON_LISTEN_ADRESS is not a setting of Baton; did you mean BATON_LISTEN_ADDRESS?" in answer.error


async def test_namespaces_are_named_as_they_may_be(database: str) -> None:
    answer = await baton("serve", changes={"BATON_DATABASE_URL": database, "BATON_NAMESPACES": "gold, Silver"})
    assert answer.code == 1
    assert "'Silver' is not of 1 to 63 of a-z, 0-9 and -, beginning with a letter" in answer.error


@pytest.mark.parametrize("by", ["option", "variable"])
async def test_a_namespace_that_the_server_does_not_have_is_refused(server: Program, by: str) -> None:
    options, changes = (("--namespace", "gold"), {}) if by == "option" else ((), {"BATON_NAMESPACE": "gold"})
    answer = await baton(*options, "run", "ls", "-s", server.address, changes=changes)
    assert answer.code == 1
    assert "BATON_NAMESPACES" in answer.error


async def test_errors_are_json_for_programs() -> None:
    answer = await baton("serve", "-o", "json")
    assert (answer.code, answer.out) == (1, "")
    assert json.loads(answer.error)["error"]["message"] == "no database is named"


async def test_health_says_by_its_exit_code_whether_a_server_serves(shop: Command) -> None:
    healthy = await shop("health")
    assert (healthy.code, "SERVING" in healthy.out) == (0, True)
    nobody = await shop("health", "--server", "127.0.0.1:1")
    assert nobody.code == 1
    assert "baton dev" in nobody.error


TABLE, JSON = Choices(None, OutputForm.TABLE), Choices(None, OutputForm.JSON)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("serve", (TABLE, None, None)),
        ("serve --listen 0.0.0.0:7330", (TABLE, "0.0.0.0:7330", None)),
        ("serve --listen=:1 -o json", (JSON, ":1", None)),
        ("serve --output=json --listen :1 --listen :2", (JSON, ":2", None)),
        ("serve -o table", (TABLE, None, None)),
        ("serve --processes 4", (TABLE, None, 4)),
    ],
)
def test_serve_is_read_without_the_library_of_command_lines(
    words: str, read: tuple[Choices, str | None, int | None]
) -> None:
    assert plain_serve(words.split()) == read


@pytest.mark.parametrize(
    "words",
    [
        "",
        "dev",
        "run ls",
        "--output json serve",
        "serve --help",
        "serve --listen",
        "serve --listen=",
        "serve -ojson",
        "serve -o=json",
        "serve --output xml",
        "serve --listen --output",
        "serve :1",
        "serve --server x",
        "serve --processes many",
        "serve --",
    ],
)
def test_all_else_is_left_to_that_library(words: str) -> None:
    assert plain_serve(words.split()) is None


async def test_serve_tells_of_mistakes_as_every_command_does() -> None:
    for words in (("--listen",), ("--listten", ":1"), ("-o", "xml"), (":1",)):
        answer = await baton("serve", *words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.error.splitlines()[-1].startswith("Error: ")
    json_form = await baton("-o", "json", "serve")
    assert json.loads(json_form.error)["error"]["message"] == "no database is named"
