"""A standby takes over that lacks the last commits: a server goes on from what is there, and knows nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from baton.v1 import run_pb2

from tests.acceptance.processes import STEADY, ServerProcess
from tests.acceptance.wire import Baton, eventually, refused, submission
from tests.chaos.behind import Behind, standing_behind

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


def nap(seconds: float, name: str = "") -> dict[str, Any]:
    """A workflow that only sleeps."""
    return {"name": name, "steps": [{"id": "nap", "sleep": {"duration": {"literal": f"{seconds}s"}}}]}


@pytest.fixture
async def behind() -> AsyncIterator[Behind]:
    async with standing_behind() as servers:
        yield servers


@pytest.fixture
async def baton(behind: Behind, tmp_path: Path) -> AsyncIterator[Baton]:
    """A connection to a server whose lease outlives the change: nothing that it knows is forgotten for want of one."""
    server = ServerProcess(behind.dsn, tmp_path / "server.log", STEADY | {"BATON_LEASE_SECONDS": "30"})
    await server.start()
    connection = Baton(server.address)
    yield connection
    await connection.close()
    await server.kill()
    assert "fault found" not in server.log()


async def test_a_server_knows_nothing_that_the_new_primary_does_not(behind: Behind, baton: Baton) -> None:
    first = await baton.apply(nap(0.01, "changed"))
    kept = await baton.submit(nap(60))
    await behind.hold()
    await baton.apply(nap(0.02, "changed"))
    await baton.apply(nap(0.03, "gone"))
    lost = await baton.submit(nap(60), request_id="lost")
    assert (await baton.run(nap(0.04))).state == SUCCEEDED
    assert await baton.submit("changed") is not None
    await behind.fail_over()

    async def is_unknown() -> bool:
        """Looked for as long as the server has not met the new primary."""
        try:
            await baton.get(lost.run_id)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND
        return False

    async def submitted_again() -> run_pb2.Run | None:
        """As any client does, while the server takes its lease anew."""
        try:
            return await baton.submit(nap(60), request_id="lost")
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        return None

    assert await eventually(is_unknown)
    again = await eventually(submitted_again)
    assert again is not None
    assert again.run_id != lost.run_id
    run = (await baton.runs.SubmitRun(submission("changed", wait_seconds=30), timeout=60)).run
    assert (run.state, run.revision) == (SUCCEEDED, first.revision)
    assert (await refused(baton.submit("gone"))).reason == "WORKFLOW_NOT_FOUND"
    inline = await baton.run(nap(0.04))
    assert inline.state == SUCCEEDED
    assert (await baton.cancel(kept.run_id)).run_id == kept.run_id

    # What it takes on must be readable for whoever takes it over.
    connection = await asyncpg.connect(behind.dsn)
    missing = await connection.fetch(
        "SELECT run_id FROM runs AS r WHERE NOT EXISTS ("
        "SELECT FROM workflow_revisions AS w WHERE (w.namespace, w.revision) = (r.namespace, r.revision))"
    )
    await connection.close()
    assert not missing
