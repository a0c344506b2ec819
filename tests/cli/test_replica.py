"""`baton replica`: the servers of one database, and what they found amiss."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

import asyncpg
from uuid_utils.compat import uuid7

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.conftest import dsn_of

from .conftest import Command


async def test_replicas_are_listed_with_what_they_found(command: Command, postgres_server: EmbeddedPostgres) -> None:
    shown = (await command("replica", "ls", "-o", "json")).json
    (me,) = [each for each in shown if each["state"] == "REPLICA_STATE_ACTIVE"]
    assert me["version"] == version("baton")
    assert datetime.fromisoformat(me["lease_expire_time"]) > datetime.now(UTC)
    connection = await asyncpg.connect(dsn_of(postgres_server.dsn, "cli"))
    try:
        found = "INSERT INTO faults VALUES ($1, $2, $3, clock_timestamp(), clock_timestamp())"
        await connection.execute(found, me["replica_id"], "not_held", 2)
        await connection.execute(found, me["replica_id"], "unreadable", 1)
        await connection.execute(found, uuid7(), "not_held", 40)
    finally:
        await connection.close()
    line = next(line for line in (await command("replica", "ls")).out.splitlines() if me["replica_id"] in line)
    assert line.split()[1] == "ACTIVE"
    assert line.endswith("not_held 2, unreadable 1")
    faults = await command("replica", "faults")
    assert [line.split()[:3] for line in faults.out.splitlines()[1:]] == [
        ["not_held", "42", "repaired"],
        ["unreadable", "1", "not"],
    ]
    assert "unreadable: runs cannot be read: the log" in faults.error
    assert (await command("replica", "faults", "-o", "json")).json[0]["repaired"] is True
