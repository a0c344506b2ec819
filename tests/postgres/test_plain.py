"""Holds that the schema and all statements need nothing of Postgres that a managed or replicated one lacks, and
that a namespace can be moved to another database by itself."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from tests.postgres.test_isolation import SHARED

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FOREIGN = {
    "LISTEN and NOTIFY": r"(?i:\b(UN)?LISTEN\b|\bNOTIFY\b|pg_notify)",
    "advisory locks": r"advisory",
    "triggers and rules": r"\bTRIGGER\b|\bCREATE (OR REPLACE )?RULE\b",
    "sequences": r"\bSEQUENCE\b(?! =)|\bnextval\b|\b(big|small)?serial\b|\bGENERATED\b|\bIDENTITY\b",
    "extensions": r"\bEXTENSION\b",
    "functions of its own": r"\bCREATE (OR REPLACE )?(FUNCTION|PROCEDURE)\b",
    "tables that a standby lacks": r"\bUNLOGGED\b|\bTEMP(ORARY)? TABLE\b",
    "prepared transactions": r"\bPREPARE TRANSACTION\b",
}


def statements() -> list[tuple[str, str]]:
    """Every file of SQL, without its comments and its texts."""
    package = resources.files("orchestrator.postgres")
    found = []
    for folder in ("migrations", "queries"):
        for file in package.joinpath(folder).iterdir():
            if file.name.endswith(".sql"):
                text = re.sub(r"--[^\n]*", "", file.read_text("utf-8"))
                found.append((file.name, re.sub(r"'[^']*'", "''", text)))
    return found


@pytest.mark.parametrize("what", FOREIGN)
def test_no_statement_uses(what: str) -> None:
    # A column of the journal is named sequence, which is not the thing: those are made in capitals.
    pattern = re.compile(FOREIGN[what])
    assert [name for name, text in statements() if pattern.search(text)] == []


def test_no_code_asks_the_driver_for_it() -> None:
    package = Path(str(resources.files("orchestrator")))
    pattern = re.compile(
        r"add_listener|pg_notify|\bnotify\b.*execute|execute.*\b(un)?listen\b|advisory_lock", re.IGNORECASE
    )
    files = sorted(package.rglob("*.py"))
    assert len(files) > 100
    assert [file.name for file in files if pattern.search(file.read_text("utf-8"))] == []


async def test_the_schema_has_no_such_objects(administrator: Connection) -> None:
    counts = {
        "triggers": "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal",
        "sequences": "SELECT count(*) FROM pg_class WHERE relkind = 'S'",
        "rules": "SELECT count(*) FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class"
        " WHERE c.relnamespace = 'public'::regnamespace",
        "identity columns": "SELECT count(*) FROM pg_attribute WHERE attidentity <> '' OR attgenerated <> ''",
        "functions": "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "extensions": "SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql'",
        "tables that are not logged": "SELECT count(*) FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relpersistence <> 'p'",
        "defaults that call for a sequence": "SELECT count(*) FROM pg_attrdef"
        " WHERE pg_get_expr(adbin, adrelid) LIKE '%nextval%'",
    }
    assert {what: await administrator.fetchval(query) for what, query in counts.items()} == dict.fromkeys(counts, 0)


async def test_the_namespace_is_first_in_every_key(administrator: Connection) -> None:
    rows = await administrator.fetch(
        "SELECT c.relname AS name, i.indkey[0] = a.attnum AS first"
        " FROM pg_class AS c"
        " LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisunique"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'namespace'"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
    )
    assert len({row["name"] for row in rows}) > 12
    assert [row["name"] for row in rows if row["name"] not in SHARED and row["first"] is not True] == []


async def test_foreign_keys_stay_within_a_namespace(administrator: Connection) -> None:
    rows = await administrator.fetch(
        "SELECT conrelid::regclass::text AS name, conkey[1] = a.attnum AS first FROM pg_constraint AS f"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = f.conrelid AND a.attname = 'namespace' WHERE contype = 'f'"
    )
    assert [row["name"] for row in rows if row["first"] is not True] == []
