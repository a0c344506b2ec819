"""The client: makes the load of one work at a time and times it. Run as a program that is told what to do.

Reads one JSON object a line, `{"do": name, ...}`, and answers each with one line: the figures of that work. All
latencies are of whole calls as their caller sees them; nothing is left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import uvloop
from baton.v1 import (
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)
from google.protobuf import json_format

from benchmarks import baselines
from benchmarks.contract import PATH, STEPS, TEXT, WORKFLOWS, DoRequest, DoResponse, workflows

Figures = dict[str, float]
CALL_SECONDS = 60.0


class Client:
    """What the client is connected to. Addresses are `host:port`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._submit: Any = None

    async def connect(self, server: str) -> Figures:
        """Takes the server whose runs are timed."""
        self._submit = run_service_pb2_grpc.RunServiceStub(self._channel(server)).SubmitRun
        return {}

    async def prepare(self, server: str, worker: str) -> Figures:
        """Registers the worker and applies the workflows."""
        workers = worker_service_pb2_grpc.WorkerServiceStub(self._channel(server))
        await workers.RegisterWorker(
            worker_service_pb2.RegisterWorkerRequest(worker="noop", address=worker, max_in_flight=1000)
        )
        catalogue = workflow_service_pb2_grpc.WorkflowServiceStub(self._channel(server))
        for each in workflows():
            workflow = json_format.ParseDict(each, workflow_pb2.Workflow())
            await catalogue.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow))
        return {}

    async def runs(self, work: str, count: int, in_flight: int) -> Figures:
        """Submits runs and awaits each in the same call; figures of the runs and their steps."""
        request = run_service_pb2.SubmitRunRequest(workflow=WORKFLOWS[work], view=run_service_pb2.RUN_VIEW_BASIC)
        request.input.Pack(DoRequest(text=TEXT))
        request.wait_timeout.FromSeconds(int(CALL_SECONDS))

        async def run() -> None:
            answer = await self._submit(request, timeout=CALL_SECONDS, wait_for_ready=True)
            if answer.run.state != run_pb2.RUN_STATE_SUCCEEDED:
                raise RuntimeError(f"a run of {work} did not succeed: {answer.run}")

        return await timed(run, count, in_flight, STEPS[work])

    async def echo(self, worker: str, count: int, in_flight: int) -> Figures:
        """Calls the worker itself, without Baton."""
        method = self._channel(worker).unary_unary(
            PATH, request_serializer=DoRequest.SerializeToString, response_deserializer=DoResponse.FromString
        )
        request = DoRequest(text=TEXT)
        return await timed(lambda: method(request, timeout=CALL_SECONDS), count, in_flight, 1)

    async def commits(self, dsn: str, count: int, rows: int) -> Figures:
        """Commits rows to Postgres one statement after the other, without Baton."""
        async with baselines.insert(dsn, rows) as insert:
            return await timed(insert, count, 1, rows)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address)
        return self._channels[address]


async def timed(one: Callable[[], Awaitable[object]], count: int, in_flight: int, steps: int) -> Figures:
    """Does `one` so many times, `in_flight` at once; each does that many steps. Latencies in milliseconds."""
    latencies: list[float] = []
    numbers = iter(range(count))

    async def lane() -> None:
        for _ in numbers:
            began = time.perf_counter()
            await one()
            latencies.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    seconds = time.perf_counter() - began
    latencies.sort()
    figures = {f"p{part}_ms": latencies[min(count - 1, count * part // 100)] for part in (50, 95, 99)}
    # Of the median, so that one stall of the machine does not stand for every step.
    figures |= {"steps": count * steps, "steps_per_second": count * steps / seconds}
    return figures | {"ms_per_step": figures["p50_ms"] / steps}


def main() -> None:
    """Does what each line of standard input says."""
    client = Client()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            command = json.loads(line)
            work = getattr(client, command.pop("do"))
            print(json.dumps(runner.run(work(**command))), flush=True)


if __name__ == "__main__":
    main()
