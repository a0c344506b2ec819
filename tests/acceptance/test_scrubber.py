"""The scrubber of a real server: each fault is planted by SQL, found, repaired and reported."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from baton.v1 import replica_pb2, replica_service_pb2, run_pb2, schedule_pb2, schedule_service_pb2
from google.protobuf import json_format
from uuid_utils.compat import uuid7

from tests.acceptance.conftest import StartServer
from tests.acceptance.processes import ServerProcess
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import Baton, eventually

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
SCRUBBING = {
    "BATON_SCRUB_INTERVAL_SECONDS": "0.2",
    # One that loses its lease finds everything once more, under another id.
    "BATON_LEASE_SECONDS": "10",
    "BATON_LOG_FORMAT": "json",
}
WAITS_FOR_SIGNAL = {"steps": [{"id": "a", "wait_signal": {"signal": "go"}}], "run_timeout": "7200s"}


def sleeping(duration: str) -> dict[str, Any]:
    """A workflow that does nothing for a while."""
    return {"steps": [{"id": "a", "sleep": {"duration": {"literal": duration}}}]}


@dataclass(slots=True)
class Bench:
    """A server that scrubs often, and the database beneath it."""

    server: ServerProcess
    baton: Baton
    database: asyncpg.Connection[asyncpg.Record]

    async def parked(self, definition: dict[str, Any]) -> UUID:
        """Submits a run and waits until it is parked."""
        run_id = UUID((await self.baton.submit(definition)).run_id)
        query = "SELECT owner_replica IS NULL AND wake_time IS NOT NULL FROM runs WHERE run_id = $1"
        await eventually(lambda: self.database.fetchval(query, run_id))
        return run_id

    async def set(self, run_id: UUID, what: str, *arguments: object) -> None:
        """Changes the row of a run."""
        changed = await self.database.execute(f"UPDATE runs SET {what} WHERE run_id = $1", run_id, *arguments)
        assert changed == "UPDATE 1"

    async def tells(self, fault: str) -> None:
        """Waits until the server's log tells of a fault."""

        async def told() -> bool:
            return self.faults()[fault] > 0

        await eventually(told)

    def faults(self) -> Counter[str]:
        """The faults that the log tells of, and how often."""
        found: Counter[str] = Counter()
        for line in self.server.log().splitlines():
            if "fault found" in line:
                told = json.loads(line)
                found[told["fault"]] += told["count"]
        return found

    async def found(self, baton: Baton | None = None) -> list[replica_pb2.FoundFault]:
        """The faults that a server shows."""
        request = replica_service_pb2.ListFaultsRequest()
        return list((await (baton or self.baton).replicas.ListFaults(request, timeout=20)).faults)

    async def shows(self, faults: Mapping[str, int], baton: Baton | None = None) -> None:
        """Waits until exactly these faults are shown."""

        async def shown() -> bool:
            found = await self.found(baton)
            name = replica_pb2.Fault.Name
            return {name(each.fault).removeprefix("FAULT_").lower(): each.count for each in found} == faults

        await eventually(shown)


@pytest.fixture
async def bench(start_server: StartServer, connect: Connect) -> AsyncIterator[Bench]:
    server = await start_server(**SCRUBBING, BATON_PARK_SECONDS="0.5")
    server.sound = False
    database = await asyncpg.connect(server.dsn)
    yield Bench(server, connect(server), database)
    await database.close()


async def test_faults_that_are_planted_are_found_and_repaired(
    bench: Bench, start_server: StartServer, connect: Connect
) -> None:
    baton, database = bench.baton, bench.database
    unknown, unheld, late = [await bench.parked(WAITS_FOR_SIGNAL) for _ in range(3)]
    sleeper = await bench.parked(sleeping("3s"))
    ended = [
        UUID((await baton.run({"steps": [{"id": "a", "sleep": {"duration": {"literal": "0s"}}}]})).run_id)
        for _ in range(2)
    ]
    me = await database.fetchval("SELECT replica_id FROM replicas WHERE end_time IS NULL")

    await bench.set(unknown, "owner_replica = $2", uuid7())
    await bench.set(unheld, "owner_replica = $2", me)
    await bench.set(late, "wake_time = clock_timestamp() + interval '1 year'")
    await bench.set(sleeper, "wake_time = clock_timestamp() + interval '1 hour'")
    unended = "state = 2, end_time = NULL, end_xid = NULL, wake_time = {}"
    await bench.set(ended[0], unended.format("clock_timestamp() + interval '1 hour'"))
    await bench.set(ended[1], unended.format("NULL"))

    # Its timer is what ends this one: nobody asks for it.
    assert (await baton.end(str(sleeper))).state == SUCCEEDED
    for fault in ("owner_unknown", "not_held", "woken_too_late"):
        await bench.tells(fault)
    for run_id in (unknown, unheld, late):
        await baton.signal(str(run_id), "go")
        assert (await baton.end(str(run_id))).state == SUCCEEDED
    for run_id in ended:
        query = "SELECT state = 3 AND end_time IS NOT NULL AND owner_replica IS NULL FROM runs WHERE run_id = $1"
        await eventually(lambda run_id=run_id, query=query: database.fetchval(query, run_id))  # type: ignore[misc]
        assert (await baton.get(str(run_id))).state == SUCCEEDED
    found = bench.faults()
    assert (found["owner_unknown"], found["woken_too_late"], found["ended"]) == (1, 2, 2)
    assert 1 <= found["not_held"] <= 2, "the run that was woken although it had ended may have been one too"

    # What a replica found stays known at the others when it is gone.
    await bench.shows(found)
    await bench.server.kill()
    other = connect(await start_server())
    await bench.shows(found, other)
    listed = (await other.replicas.ListReplicas(replica_service_pb2.ListReplicasRequest(), timeout=20)).replicas
    assert {fault.count for fault in listed[0].faults} == set(found.values())


UNREADABLE = (
    r"UPDATE events SET header = '\xff' WHERE run_id = $1 AND sequence = 2",
    "DELETE FROM events WHERE run_id = $1 AND sequence = 1",
    # As if the database had lost what was written last.
    "DELETE FROM events WHERE run_id = $1 AND sequence = 2",
)


async def test_what_cannot_be_repaired_is_reported_once_and_harms_nobody(bench: Bench) -> None:
    sound = await bench.parked(WAITS_FOR_SIGNAL)
    for statement in UNREADABLE:
        run_id = await bench.parked(WAITS_FOR_SIGNAL)
        await bench.database.execute(statement, run_id)
    await bench.shows({"unreadable": 3})
    # The server that takes them over goes on, and drives the others.
    await bench.database.execute("UPDATE runs SET wake_time = clock_timestamp() WHERE run_id <> $1", sound)
    await bench.shows({"unreadable": 3, "not_held": 3})
    await bench.baton.signal(str(sound), "go")
    assert (await bench.baton.end(str(sound))).state == SUCCEEDED
    assert bench.faults() == {"unreadable": 3, "not_held": 3}


async def test_runs_that_a_schedule_keeps_and_that_are_gone_are_forgotten(bench: Bench) -> None:
    await bench.baton.apply({"name": "nothing", **sleeping("0s")})
    given = {"name": "daily", "cron": "@daily", "run": {"workflow": "nothing"}}
    schedule = json_format.ParseDict(given, schedule_pb2.Schedule())
    await bench.baton.schedules.ApplySchedule(schedule_service_pb2.ApplyScheduleRequest(schedule=schedule))
    await bench.database.execute(
        "INSERT INTO schedule_runs VALUES ('default', 'daily', $1, clock_timestamp(), false)", uuid7()
    )
    await eventually(lambda: bench.database.fetchval("SELECT count(*) = 0 FROM schedule_runs"))
    await bench.tells("run_gone")
    await bench.shows({"run_gone": 1})


async def test_a_replica_that_there_is_none_of_keeps_no_limit_from_giving_permits(bench: Bench) -> None:
    join = "UPDATE replica_sets SET members = members || $1::uuid, generation = generation + 1 WHERE purpose = 'limits'"
    ghost, joined = uuid7(), uuid7()
    await bench.database.execute(
        "INSERT INTO replicas (replica_id, address, create_time, lease_expire_time) "
        "VALUES ($1, 'x:1', clock_timestamp(), clock_timestamp() + interval '1 hour')",
        joined,
    )
    for member in (ghost, joined):
        await bench.database.execute(join, member)
    await bench.shows({"member_unknown": 1})
    members = await bench.database.fetchval("SELECT members FROM replica_sets WHERE purpose = 'limits'")
    assert joined in members
    assert ghost not in members
    assert len(members) == 2


async def test_runs_that_are_due_and_that_nobody_takes_are_told_of(start_server: StartServer, connect: Connect) -> None:
    server = await start_server(
        **SCRUBBING,
        BATON_PARK_SECONDS="3600",
        BATON_MAX_ACTIVE_RUNS="1",
    )
    server.sound = False
    database = await asyncpg.connect(server.dsn)
    try:
        bench = Bench(server, connect(server), database)
        due = await bench.parked(WAITS_FOR_SIGNAL)
        holder = await bench.baton.submit(sleeping("600s"))
        await bench.set(due, "wake_time = clock_timestamp() - interval '2 minutes'")
        await bench.shows({"overdue": 1})
        assert await database.fetchval("SELECT owner_replica IS NULL FROM runs WHERE run_id = $1", due)
        assert bench.faults() == {"overdue": 1}
        assert [fault.repaired for fault in await bench.found()] == [False]

        await bench.baton.cancel(holder.run_id)
        taken = "SELECT owner_replica IS NOT NULL OR wake_time > clock_timestamp() FROM runs WHERE run_id = $1"
        await eventually(lambda: database.fetchval(taken, due))
        await bench.shows({"overdue": 1})
    finally:
        await database.close()


async def test_rows_that_differ_from_their_journals_are_set_right_once(bench: Bench) -> None:
    baton, database = bench.baton, bench.database
    parked, owned, early = [await bench.parked(WAITS_FOR_SIGNAL) for _ in range(3)]
    ended = UUID((await baton.run(sleeping("0s"))).run_id)
    me = await database.fetchval("SELECT replica_id FROM replicas WHERE end_time IS NULL")
    behind = "next_sequence = next_sequence - 1"
    await bench.set(parked, behind)
    await bench.set(owned, f"{behind}, owner_replica = $2", me)
    await bench.set(early, "state = 3, end_time = clock_timestamp(), end_xid = pg_current_xact_id(), wake_time = NULL")
    await bench.set(ended, f"{behind}, state = 2, end_time = NULL, end_xid = NULL, end_replica = NULL")

    await eventually(lambda: database.fetchval(AGREE))
    for fault, count in (("behind", 2), ("ended_early", 1), ("ended", 1)):
        await bench.tells(fault)
        assert bench.faults()[fault] == count
    for run_id in (parked, owned, early):
        await baton.signal(str(run_id), "go")
        assert (await baton.end(str(run_id))).state == SUCCEEDED
    assert await database.fetchval(AGREE)
    found = bench.faults()
    found.pop("not_held", None)  # Whichever look came first to the one that was owned and not held.
    assert found == {"behind": 2, "ended_early": 1, "ended": 1}


AGREE = """
SELECT bool_and(
    r.next_sequence = 1 + (SELECT max(e.sequence) FROM events AS e WHERE e.run_id = r.run_id)
    AND (r.end_time IS NOT NULL) = EXISTS (SELECT FROM events AS e WHERE e.run_id = r.run_id AND e.kind IN (19, 20, 21))
)
FROM runs AS r
"""
"""Whether every row agrees with its journal."""


async def test_a_watch_of_a_run_whose_row_has_ended_and_its_journal_has_not_ends(
    start_server: StartServer, connect: Connect
) -> None:
    """Nothing is left to wait for, until the scrubber comes by: it must not turn for ever."""
    server = await start_server(**SCRUBBING | {"BATON_SCRUB_INTERVAL_SECONDS": "3600"}, BATON_PARK_SECONDS="0.5")
    database = await asyncpg.connect(server.dsn)
    bench = Bench(server, connect(server), database)
    run_id = await bench.parked(WAITS_FOR_SIGNAL)
    await bench.set(run_id, "state = 3, end_time = clock_timestamp(), end_xid = pg_current_xact_id(), wake_time = NULL")
    async with asyncio.timeout(20):
        seen = [update async for update in bench.baton.watch(str(run_id))]
    await database.close()
    assert [update.WhichOneof("update") for update in seen] == ["snapshot"]
