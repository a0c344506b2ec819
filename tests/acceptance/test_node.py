"""A Node server without any SDK, whose reflection differs from protoc's, orchestrated together with a Python one."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from baton.v1 import failure_pb2, run_pb2, worker_pb2, worker_service_pb2
from google.protobuf import json_format

from tests.acceptance.contracts import Contract, compiled
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.wire import Baton, eventually

NODE = Path(__file__).parents[1] / "node"
SUCCEEDED, FAILED = run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED

pytestmark = pytest.mark.skipif(shutil.which("node") is None or shutil.which("npm") is None, reason="Node is not here")

ITEM = {
    "name": "table",
    "quantity": 2,
    "parts": [
        {"name": "top", "quantity": 1},
        {"name": "leg", "quantity": 4, "parts": [{"name": "wood", "quantity": 3}]},
    ],
}
PRICES = {
    "top": {"currency_code": "EUR", "minor_units": "5000"},
    "wood": {"currency_code": "EUR", "minor_units": "100"},
}


@pytest.fixture(scope="session")
def node_packages() -> None:
    """The packages of the worker, from its lock file."""
    if not (NODE / "node_modules" / "@grpc").is_dir():
        made = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=NODE, capture_output=True, check=False)
        if made.returncode:
            pytest.skip("npm cannot get the packages of the Node worker")


@pytest.fixture
def pricing() -> Contract:
    """What the Node worker serves, as protoc reads it."""
    return Contract("pricing.v1", compiled(NODE / "protos", "pricing/v1/pricing.proto"))


@pytest.fixture(params=[[], ["--work-stream"]], ids=["unary", "work stream"])
async def node_worker(request: pytest.FixtureRequest, node_packages: None, baton: Baton) -> AsyncIterator[str]:
    """The Node worker, registered as `pricing`; its address."""
    process = await asyncio.create_subprocess_exec(
        "node", str(NODE / "worker.mjs"), *request.param, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        address = (await process.stdout.readline()).decode().split()[-1]
    await baton.register("pricing", address)
    if request.param:

        async def streams() -> bool:
            return (await baton.worker("pricing")).endpoints[0].transport == worker_pb2.ENDPOINT_TRANSPORT_STREAM

        await eventually(streams)
    yield address
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="pricing"))
    process.kill()
    await process.wait()


def quote_step(**fields: Any) -> dict[str, Any]:
    request = {
        "item": {"literal": ITEM},
        "price_by_material": {"literal": PRICES},
        "pieces_by_warehouse": {"literal": {"7": "70", "-1": "9007199254740993"}},
        "tier": {"literal": "CUSTOMER_TIER_GOLD"},
        "ask_time": {"literal": "2026-01-01T00:00:00.5Z"},
        "validity": {"literal": "3600.75s"},
    }
    return {"id": "quote", "method": "pricing.v1.PricingService/Quote", "request": request | fields}


async def test_a_quote_of_the_node_worker_comes_whole(baton: Baton, pricing: Contract, node_worker: str) -> None:
    definition = {
        "output_type": "pricing.v1.QuoteResponse",
        "steps": [quote_step(percent={"expression": "12.5 * 2.0"})],
        "whole_output": {"path": "steps.quote.output"},
    }
    run = await baton.run(definition)
    assert run.state == SUCCEEDED, run.failure
    quote = json_format.MessageToDict(pricing.unpack("QuoteResponse", run.output), preserving_proto_field_name=True)
    told = quote.pop("metadata")
    assert quote["net"] == {"currency_code": "EUR", "minor_units": "12400"}
    assert quote["total"] == {"currency_code": "EUR", "minor_units": "9300"}
    assert quote["expire_time"] == "2026-01-01T01:00:01.250Z"
    assert quote["discount"]["kind"] == "DISCOUNT_KIND_PERCENT"
    assert quote["pieces_by_warehouse"] == {"7": "70", "-1": "9007199254740993"}
    assert quote["tier"] == "CUSTOMER_TIER_GOLD"
    assert quote["priced"]["parts"][1]["parts"][0]["name"] == "wood"
    assert (told["baton-run"], told["baton-step"], told["baton-attempt"]) == (run.run_id, "quote", "1")
    assert told["traceparent"].split("-")[1] == run.trace_id
    assert told["idempotency-key"].startswith(run.run_id)


async def test_node_and_python_pass_messages_to_each_other(
    baton: Baton, registered: LabWorker, pricing: Contract, node_worker: str
) -> None:
    contract = registered.contract
    note = {
        "id": "note",
        "method": contract.method("Lab/Do"),
        "request": {
            "text": {"expression": "steps.quote.output.priced.parts.map(part, part.name).join('+')"},
            "number": {"path": "steps.quote.output.total.minor_units"},
        },
    }
    again = quote_step(amount={"message": {"fields": {"minor_units": {"path": "steps.note.output.number"}}}})
    again["id"] = "again"
    definition = {
        "output_type": "pricing.v1.Money",
        "steps": [quote_step(code={"literal": "SPRING"}), note, again],
        "whole_output": {"path": "steps.again.output.total"},
    }
    run = await baton.run(definition)
    assert run.state == SUCCEEDED, run.failure
    assert registered.arrivals()[0].text == "top+leg"
    assert pricing.unpack("Money", run.output).minor_units == 12_400 - (12_400 - 1_000 + 1)


async def test_a_rich_error_of_node_is_the_failure_of_the_run(baton: Baton, node_worker: str) -> None:
    request = {"reason": {"literal": "SOLD_OUT"}, "message": {"literal": "nothing left"}}
    step = {"id": "a", "method": "pricing.v1.PricingService/Fail", "request": request}
    run = await baton.run({"steps": [step]})
    assert (run.state, run.failure.reason, run.failure.message) == (FAILED, "SOLD_OUT", "step a failed: nothing left")
    assert (run.failure.code, run.failure.origin) == (9, failure_pb2.FAILURE_ORIGIN_WORKER)


async def test_cancellation_and_deadlines_reach_node(baton: Baton, pricing: Contract, node_worker: str) -> None:
    def hang(name: str, **more: Any) -> dict[str, Any]:
        step = {"id": "a", "method": "pricing.v1.PricingService/Hang", "request": {"name": {"literal": name}}, **more}
        return {"steps": [step]}

    run = await baton.run(hang("late", attempt_timeout="0.3s"))
    assert run.failure.reason == "ATTEMPT_TIMEOUT"
    asked = {
        "output_type": "pricing.v1.CancelledResponse",
        "steps": [{"id": "a", "method": "pricing.v1.PricingService/Cancelled"}],
        "whole_output": {"path": "steps.a.output"},
    }

    async def told(begun: int, names: list[str]) -> bool:
        answer = pricing.unpack("CancelledResponse", (await baton.run(asked)).output)
        return (answer.begun_count, list(answer.names)) == (begun, names)

    run = await baton.submit(hang("unwanted"))
    await eventually(lambda: told(2, ["late"]))
    await baton.cancel(run.run_id)
    await eventually(lambda: told(2, ["late", "unwanted"]))
