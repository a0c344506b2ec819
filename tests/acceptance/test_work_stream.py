"""Workflows over the work stream against a whole server: a worker that listens, one that attaches, and one in Node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from baton import Worker, current
from baton.v1 import run_pb2, worker_pb2

from tests.acceptance.contracts import Contract, compiled
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually
from tests.sdk.pricing_worker import NODE_PROTOS, Pricing

STREAM, ATTACHED = worker_pb2.ENDPOINT_TRANSPORT_STREAM, worker_pb2.ENDPOINT_TRANSPORT_ATTACHED
SERVICE = "pricing.v1.PricingService"


class Steady(Pricing):
    """Tells progress before it hangs, and can be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()

    async def Hang(self, request: Any, context: Any) -> Any:  # noqa: N802 - named as in the proto
        current().progress(40, f"hanging {request.name}")
        if request.name != "held":
            return await super().Hang(request, context)
        await self.release.wait()
        return self.nothing()


@pytest.fixture
def contract() -> Contract:
    return Contract("pricing.v1", compiled(NODE_PROTOS, "pricing/v1/pricing.proto"))


@pytest.fixture(params=[False, True], ids=["listening", "attached"])
async def worker(
    request: pytest.FixtureRequest, baton: Baton, shared_server: ServerProcess
) -> AsyncIterator[tuple[Worker, Steady]]:
    """An SDK worker that Baton gives work on a stream."""
    made, servicer = Worker("pricing", baton=shared_server.address), Steady()
    made.add(servicer)
    await made.start(attach=request.param)
    try:
        await made.registered()
        transport = ATTACHED if request.param else STREAM
        await eventually(lambda: given_by(baton, transport))
        yield made, servicer
    finally:
        await made.stop(0)


async def given_by(baton: Baton, transport: int) -> bool:
    """Tells whether Baton gives the worker its calls so."""
    try:
        endpoints = (await baton.worker("pricing")).endpoints
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False
    return [(each.transport, each.credit) for each in endpoints] == [(transport, 100)]


def hanging(name: str, **more: Any) -> dict[str, Any]:
    step = {"id": "a", "method": f"{SERVICE}/Hang", "request": {"name": {"literal": name}}, **more}
    return {"steps": [step]}


async def test_steps_run_and_know_what_they_serve(
    baton: Baton, contract: Contract, worker: tuple[Worker, Steady]
) -> None:
    step = {
        "id": "quote",
        "method": f"{SERVICE}/Quote",
        "request": {
            "item": {"literal": {"name": "wood"}},
            "price_by_material": {"literal": {"wood": {"minor_units": "7"}}},
        },
    }
    definition = {
        "output_type": "pricing.v1.QuoteResponse",
        "steps": [step],
        "whole_output": {"path": "steps.quote.output"},
    }
    runs = await asyncio.gather(*(baton.run(definition) for _ in range(20)))
    for run in runs:
        assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run.failure
        quote = contract.unpack("QuoteResponse", run.output)
        assert quote.net.minor_units == 7
        assert (quote.metadata["baton-run"], quote.metadata["baton-attempt"]) == (run.run_id, "1")
        assert quote.metadata["traceparent"].split("-")[1] == run.trace_id


async def test_failures_deadlines_and_cancellation(baton: Baton, worker: tuple[Worker, Steady]) -> None:
    request = {"reason": {"literal": "SOLD_OUT"}, "message": {"literal": "nothing left"}}
    run = await baton.run({"steps": [{"id": "a", "method": f"{SERVICE}/Fail", "request": request}]})
    assert (run.failure.reason, run.failure.code) == ("SOLD_OUT", 9)
    run = await baton.run(hanging("late", attempt_timeout="0.3s"))
    assert run.failure.reason == "ATTEMPT_TIMEOUT"
    run = await baton.submit(hanging("unwanted"))

    async def told() -> bool:
        progress = (await baton.get(run.run_id)).steps[0].progress
        return (progress.percent, progress.message) == (40, "hanging unwanted")

    await eventually(told)
    await baton.cancel(run.run_id)

    async def heard() -> bool:
        return worker[1].ended == ["late", "unwanted"]

    await eventually(heard)


async def test_a_worker_that_stops_ends_what_it_holds_first(baton: Baton, worker: tuple[Worker, Steady]) -> None:
    made, servicer = worker
    run = await baton.submit(hanging("held"))

    async def running() -> bool:
        return (await baton.get(run.run_id)).steps[0].progress.message == "hanging held"

    await eventually(running)
    stopping = asyncio.ensure_future(made.stop())
    servicer.release.set()
    await stopping
    ended = await baton.end(run.run_id)
    assert ended.state == run_pb2.RUN_STATE_SUCCEEDED, ended.failure
