"""Runs whose journals were damaged by SQL, as callers see them: a typed error, and nobody else kept from anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance.conftest import StartServer
from tests.acceptance.processes import STEADY, ServerProcess
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import FULL, Baton, refused

SLEEP = {"steps": [{"id": "a", "sleep": {"duration": {"literal": "0s"}}}]}
SECRET = "sincerely yours"

NOT_A_MESSAGE = rf"UPDATE events SET header = '\xff{SECRET.encode().hex()}' WHERE run_id = $1 AND sequence = 2"
BEGINNING_LOST = "DELETE FROM events WHERE run_id = $1 AND sequence = 1"
END_LOST = "DELETE FROM events WHERE run_id = $1 AND sequence = 4"

Read = Callable[[Baton, str], Awaitable[object]]


def unary(name: str, request: Callable[[str], Any]) -> Read:
    return lambda baton, run_id: getattr(baton.runs, name)(request(run_id), timeout=20)


async def watched(baton: Baton, run_id: str) -> object:
    return [update async for update in baton.watch(run_id)]


READS: dict[str, Read] = {
    "get": unary("GetRun", lambda run_id: run_service_pb2.GetRunRequest(run_id=run_id)),
    "wait": unary("WaitRun", lambda run_id: run_service_pb2.WaitRunRequest(run_id=run_id)),
    "steps": unary("ListRunSteps", lambda run_id: run_service_pb2.ListRunStepsRequest(run_id=run_id)),
    "fork": unary("ForkRun", lambda run_id: run_service_pb2.ForkRunRequest(run_id=run_id, step="a")),
    "retry": unary("RetryRun", lambda run_id: run_service_pb2.RetryRunRequest(run_id=run_id)),
    "watch": watched,
}
EVENTS = unary("ListRunEvents", lambda run_id: run_service_pb2.ListRunEventsRequest(run_id=run_id))


@pytest.fixture
async def server(start_server: StartServer) -> ServerProcess:
    server = await start_server(**STEADY)
    server.sound = False
    return server


@pytest.fixture
async def tables(server: ServerProcess) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(server.dsn)
    yield connection
    await connection.close()


async def test_a_run_that_cannot_be_read_is_told_as_that(
    server: ServerProcess, tables: asyncpg.Connection[asyncpg.Record], connect: Connect
) -> None:
    baton = connect(server)
    sound = (await baton.run(SLEEP)).run_id
    runs = [sound]
    for damage in (NOT_A_MESSAGE, BEGINNING_LOST, END_LOST):
        damaged = (await baton.run(SLEEP)).run_id
        runs.append(damaged)
        assert await tables.execute(damage, UUID(damaged)) in ("UPDATE 1", "DELETE 1")
        reads = READS | ({"events": EVENTS} if damage is NOT_A_MESSAGE else {})
        for name, read in reads.items():
            answer = await refused(read(baton, damaged))
            assert (answer.code, answer.reason) == (grpc.StatusCode.DATA_LOSS, "RUN_UNREADABLE"), name
            assert damaged in answer.text
            assert "baton replica faults" in answer.text
            for foreign in (SECRET, "DecodeError", "SequenceGap", "event 1"):
                assert foreign not in answer.text
        assert f"run {damaged}: its journal cannot be read" in server.log()
    assert (await baton.get(sound)).state == run_pb2.RUN_STATE_SUCCEEDED

    # They keep nobody from the others.
    listed = await baton.runs.ListRuns(run_service_pb2.ListRunsRequest(view=FULL), timeout=20)
    assert {run.run_id: run.state for run in listed.runs} == dict.fromkeys(runs, run_pb2.RUN_STATE_SUCCEEDED)


async def test_a_watch_of_many_tells_of_a_run_that_cannot_be_read_and_goes_on(
    server: ServerProcess, tables: asyncpg.Connection[asyncpg.Record], connect: Connect
) -> None:
    baton = connect(server)
    request = run_service_pb2.WatchRunsRequest(view=FULL)
    call = baton.runs.WatchRuns(request, timeout=60)
    cursor = ""
    async for message in call:
        cursor = message.cursor
        break
    call.cancel()
    damaged, sound = [(await baton.run(SLEEP)).run_id for _ in range(2)]
    await tables.execute(NOT_A_MESSAGE, UUID(damaged))
    told: dict[str, int] = {}
    async with asyncio.timeout(30):
        async for message in baton.runs.WatchRuns(run_service_pb2.WatchRunsRequest(cursor=cursor, view=FULL)):
            told |= {run.run_id: run.state for run in message.runs}
            if sound in told:
                break
    assert told == dict.fromkeys((damaged, sound), run_pb2.RUN_STATE_SUCCEEDED)
