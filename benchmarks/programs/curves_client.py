"""The client of the curves. Run as a program that is told what to do, like the others here."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
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

from benchmarks.contract import SERVICE, DoRequest
from benchmarks.curves_shapes import SHAPES, step_count
from benchmarks.load import One, closed
from benchmarks.programs.curves_worker import host
from benchmarks.record import figures
from benchmarks.works import TEXT

Figures = dict[str, float]
CALL_SECONDS = 900.0
WAIT_SECONDS = 600
WATCHES_PER_CHANNEL = 90
_OPTIONS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1))


class Client:
    """A client of one server."""

    def __init__(self) -> None:
        self._channels: list[grpc.aio.Channel] = []
        self._server = ""
        self._run_id = ""

    async def connect(self, server: str) -> Figures:
        """Takes the server that everything is asked of from now on."""
        for channel in self._channels:
            await channel.close()
        self._channels = []
        self._server = server
        self._runs = run_service_pb2_grpc.RunServiceStub(self._channel())
        self._workers = worker_service_pb2_grpc.WorkerServiceStub(self._channel())
        self._workflows = workflow_service_pb2_grpc.WorkflowServiceStub(self._channel())
        return {}

    async def register(self, port: int, worker: str, first: int, count: int, in_flight: int, service: str) -> Figures:
        """Registers so many addresses of a worker, one after the other; milliseconds of the slowest."""
        longest = 0.0
        for number in range(first, first + count):
            began = time.perf_counter()
            await self._workers.RegisterWorker(
                worker_service_pb2.RegisterWorkerRequest(
                    worker=worker, address=f"{host(number)}:{port}", max_in_flight=in_flight, services=[service]
                ),
                timeout=CALL_SECONDS,
            )
            longest = max(longest, (time.perf_counter() - began) * 1e3)
        return {"longest_ms": longest}

    async def drain(self, worker: str) -> Figures:
        """Lets nothing more be sent to a worker, until it is registered again."""
        await self._workers.DrainWorker(worker_service_pb2.DrainWorkerRequest(worker=worker))
        return {}

    async def apply(self, shape: str, size: int) -> Figures:
        """Applies a workflow; seconds that it took."""
        workflow = json_format.ParseDict(SHAPES[shape](size), workflow_pb2.Workflow())
        began = time.perf_counter()
        request = workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow)
        await self._workflows.ApplyWorkflow(request, timeout=CALL_SECONDS)
        return {"apply_seconds": time.perf_counter() - began}

    async def runs(self, shape: str, size: int, count: int, in_flight: int) -> Figures:
        """Submits runs and awaits each; figures of the runs and their steps."""

        async def run() -> None:
            request = _submission(shape, size, view=run_service_pb2.RUN_VIEW_BASIC)
            request.wait_timeout.FromSeconds(WAIT_SECONDS)
            answer = await self._runs.SubmitRun(request, timeout=CALL_SECONDS)
            self._run_id = answer.run.run_id
            if answer.run.state != run_pb2.RUN_STATE_SUCCEEDED:
                raise RuntimeError(f"a run of {shape} {size} did not succeed: {answer.run.failure}")

        return await _timed(run, count, in_flight, step_count(shape, size))

    async def start(self, shape: str, size: int) -> Figures:
        """Submits a run and waits until half of its events are there."""
        accepted = await self._runs.SubmitRun(_submission(shape, size))
        self._run_id = accepted.run.run_id
        async for update in self._runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=self._run_id)):
            if update.event.sequence >= size:
                break
        return {}

    async def go_on(self) -> Figures:
        """Waits for the first event that is newer than the last one there is now; seconds."""
        began = time.perf_counter()
        found = await self._runs.GetRun(
            run_service_pb2.GetRunRequest(run_id=self._run_id, view=run_service_pb2.RUN_VIEW_BASIC), timeout=60
        )
        async for update in self._runs.WatchRun(
            run_service_pb2.WatchRunRequest(run_id=self._run_id, cursor=found.cursor)
        ):
            if update.HasField("event"):
                break
        return {"seconds": time.perf_counter() - began}

    async def end(self) -> Figures:
        """Waits for the end of the run that was begun last."""
        await self._ended(self._run_id)
        return {}

    async def _ended(self, run_id: str) -> run_pb2.Run:
        request = run_service_pb2.WaitRunRequest(run_id=run_id, view=run_service_pb2.RUN_VIEW_BASIC)
        request.wait_timeout.FromSeconds(WAIT_SECONDS)
        return (await self._runs.WaitRun(request, timeout=CALL_SECONDS)).run

    async def last_run(self) -> dict[str, str]:
        """Tells which run was submitted last."""
        return {"run_id": self._run_id}

    async def reads(self, count: int, run_id: str = "") -> Figures:
        """Reads a run (the one submitted last where none is given) and lists; milliseconds and bytes."""
        found: Figures = {}
        for name, view in (("basic", run_service_pb2.RUN_VIEW_BASIC), ("full", run_service_pb2.RUN_VIEW_FULL)):
            request = run_service_pb2.GetRunRequest(run_id=run_id or self._run_id, view=view)
            sizes: list[int] = []

            async def get(request: run_service_pb2.GetRunRequest = request, sizes: list[int] = sizes) -> None:
                sizes.append((await self._runs.GetRun(request, timeout=CALL_SECONDS)).ByteSize())

            found[f"get_{name}_ms"] = (await _timed(get, count, 1, 1))["p50_ms"]
            found[f"get_{name}_kb"] = max(sizes) / 1024
        for name, term in (("list", ""), ("list_state", "state=SUCCEEDED"), ("list_failed", "state=FAILED")):
            listing = run_service_pb2.ListRunsRequest(page_size=50, filter=term)

            async def lists(listing: run_service_pb2.ListRunsRequest = listing) -> None:
                await self._runs.ListRuns(listing, timeout=CALL_SECONDS)

            found[f"{name}_ms"] = (await _timed(lists, count, 1, 1))["p50_ms"]
        return found

    async def watch(self, size: int, runs: int, watchers: int, batch: bool) -> Figures:
        """Submits chains of `size` steps that nobody may serve yet, and has each watched by so many.

        Watchers are elsewhere, as a rule: they must not take the processor from those who are measured.
        """
        os.nice(10)
        await self.drain("noop")
        self._watched = [(await self._runs.SubmitRun(_submission("chain", size))).run.run_id for _ in range(runs)]
        number_of_channels = runs * watchers // WATCHES_PER_CHANNEL + 1
        stubs = [run_service_pb2_grpc.RunServiceStub(self._channel()) for _ in range(number_of_channels)]
        attached = asyncio.Semaphore(0)

        async def watch(number: int) -> int:
            delivered = 0
            request = run_service_pb2.WatchRunRequest(run_id=self._watched[number % runs], batch=batch)
            async for update in stubs[number // WATCHES_PER_CHANNEL].WatchRun(request, timeout=CALL_SECONDS):
                if update.HasField("event"):
                    delivered += 1 + len(update.more)
                else:
                    attached.release()
            return delivered

        self._watches = [asyncio.create_task(watch(number)) for number in range(runs * watchers)]
        for _ in self._watches:
            await attached.acquire()
        return {}

    async def go(self, port: int) -> Figures:
        """Lets the watched runs go on, to their ends; milliseconds a step by their own times, and events delivered."""
        await self.register(port, "noop", 0, 1, 1000, SERVICE)
        ends = await asyncio.gather(*map(self._ended, self._watched))
        delivered = sum(await asyncio.gather(*self._watches))
        seconds = [
            (run.end_time.ToNanoseconds() - min(one.start_time.ToNanoseconds() for one in ends)) / 1e9 for run in ends
        ]
        return {"run_seconds": max(seconds), "delivered": delivered}

    def _channel(self) -> grpc.aio.Channel:
        self._channels.append(grpc.aio.insecure_channel(self._server, options=_OPTIONS))
        return self._channels[-1]


async def _timed(one: One, count: int, in_flight: int, steps: int) -> Figures:
    """Does `one`, which does so many steps, so many times."""
    return figures(await closed(one, count, in_flight, math.inf), steps) | {"steps": count * steps}


def _submission(shape: str, size: int, view: Any = run_service_pb2.RUN_VIEW_BASIC) -> run_service_pb2.SubmitRunRequest:
    request = run_service_pb2.SubmitRunRequest(workflow=f"{shape}-{size}", view=view)
    request.input.Pack(DoRequest(text=TEXT))
    return request


def main() -> None:
    """Does what each line of standard input says."""
    client = Client()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        while line := sys.stdin.readline():
            command = json.loads(line)
            work = getattr(client, command.pop("do"))
            print(json.dumps(runner.run(work(**command))), flush=True)


if __name__ == "__main__":
    main()
