"""A planner that delegates to a search, as workers of the SDK whose handlers a test gives."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from baton import Worker
from baton.v1 import run_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.acceptance.wire import Baton
from tests.sdk.conftest import generated

sys.path.insert(0, str(generated(Path(__file__).parent / "protos_of_agents")))

pb: Any = importlib.import_module("agents.v1.agents_pb2")
grpc_stubs: Any = importlib.import_module("agents.v1.agents_pb2_grpc")
Planner: Any = grpc_stubs.PlannerServiceServicer
Search: Any = grpc_stubs.SearchServiceServicer

PLAN = "agents.v1.PlannerService/Plan"
WORKFLOW = {
    "input_type": "agents.v1.PlanRequest",
    "output_type": "agents.v1.PlanResponse",
    "steps": [{"id": "plan", "method": PLAN, "whole_request": {"path": "input"}}],
    "whole_output": {"path": "steps.plan.output"},
}
"""One step, which delegates."""

Handler = Callable[[Any], Awaitable[Any]]


class AsyncPlanner(Planner):  # type: ignore[misc]
    """Plans as a test says."""

    def __init__(self, plan: Handler) -> None:
        self._plan = plan

    async def Plan(self, request: Any, context: Any) -> Any:
        return await self._plan(request)


class PlainPlanner(Planner):  # type: ignore[misc]
    """The same in a thread."""

    def __init__(self, plan: Callable[[Any], Any]) -> None:
        self._plan = plan

    def Plan(self, request: Any, context: Any) -> Any:
        return self._plan(request)


class Searcher(Search):  # type: ignore[misc]
    """Searches as a test says."""

    def __init__(self, query: Handler) -> None:
        self._query = query

    async def Query(self, request: Any, context: Any) -> Any:
        return await self._query(request)


@asynccontextmanager
async def serving(
    address: str, *servicers: Any, name: str = "agents", attach: bool = False, **options: Any
) -> AsyncIterator[Worker]:
    """Serves until the end of the block, registered."""
    worker = Worker(name, baton=address, **options)
    for servicer in servicers:
        worker.add(servicer)
    await worker.start(attach=attach)
    try:
        await worker.registered()
        yield worker
    finally:
        await worker.stop(0)


def asked(*questions: str) -> AnyMessage:
    """The input of a run."""
    packed = AnyMessage()
    packed.Pack(pb.PlanRequest(questions=questions))
    return packed


def answers(run: run_pb2.Run) -> list[str]:
    """The output of a run."""
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED, run
    output = pb.PlanResponse()
    assert run.output.Unpack(output)
    return list(output.answers)


async def plan(baton: Baton, *questions: str, **fields: Any) -> run_pb2.Run:
    """Runs the workflow to its end."""
    return await baton.run(WORKFLOW, asked(*questions), **fields)
