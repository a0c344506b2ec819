"""The SDK's client under load against real servers: killed with everything under way, it loses and doubles nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from baton import Client
from baton.v1 import run_pb2

from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import diamond, diamond_output, require_sound
from tests.acceptance.wire import Baton, eventually, workflow

Connect = Callable[[ServerProcess], Baton]
RUNS = 200


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_executions_outlive_kills_of_the_server(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    await connect(server).register("lab", lab_process.address)
    done: dict[str, str] = {}

    async with Client(server.address, retry_timeout=40) as client:
        await client.apply(workflow(diamond(contract)))

        async def execute(number: int) -> None:
            given = contract.message("Task", {"number": str(number)})
            run = await client.submit("diamond", given, output=contract.of("Result"), request_id=f"request-{number}")
            assert (await run.result(60)).number == diamond_output(number)  # type: ignore[attr-defined]
            done[f"request-{number}"] = run.id

        async def kill() -> None:
            for goal in (RUNS // 8, RUNS // 2):

                async def enough(goal: int = goal) -> bool:
                    return len(done) >= goal

                await eventually(enough, 60)
                await server.kill()
                await server.start()

        async with asyncio.TaskGroup() as group:
            group.create_task(kill())
            for number in range(RUNS):
                group.create_task(execute(number))
    runs = await require_sound(server.dsn, done, lab_process)
    assert len(runs) == RUNS
    assert any(run.epoch > 1 for run in runs.values()), "no run was adopted: the kills came at the wrong time"


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_a_thousand_waits_do_not_hold_up_a_submission(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    await connect(server).register("lab", lab_process.address)
    step = {"id": "a", "method": contract.method("Lab/Do"), "request": {"conduct": {"literal": {"gate": "open"}}}}
    async with Client(server.address) as client:
        await client.apply(workflow({"name": "held", "steps": [step]}))
        handles = await asyncio.gather(*(client.submit("held") for _ in range(1000)))
        waiting = [asyncio.ensure_future(handle.wait()) for handle in handles]
        one_by_one = [asyncio.ensure_future(client.run(handle.id).wait()) for handle in handles[:101]]
        await handles[0].refresh()
        other = await client.submit("held")
        assert other.id not in {handle.id for handle in handles}
        assert not any(each.done() for each in (*waiting, *one_by_one))
        for handle in (*handles, other):
            await client.cancel_run(handle.id)
        ended = await asyncio.gather(*waiting, *one_by_one)
    assert {run.state for run in ended} == {run_pb2.RUN_STATE_CANCELLED}
    assert all(len(run.steps) == 1 for run in ended)
