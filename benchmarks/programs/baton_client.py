"""The client of Baton: one call a run by the plain stub, or the SDK's client, which decides itself how to call."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc.aio
import uvloop
from baton import Client
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

from benchmarks.contract import DoRequest, DoResponse, workflows
from benchmarks.load import One, serve
from benchmarks.works import TEXT

CALL_SECONDS = 60


class BatonClient:
    """What the client does. Addresses are `host:port`."""

    async def connect(self, server: str, sdk: bool) -> None:
        """Takes the server whose runs are timed, by the SDK or by the plain stub."""
        self._channel = grpc.aio.insecure_channel(server)
        self._sdk = Client(server, timeout=CALL_SECONDS) if sdk else None
        self._submit: Any = run_service_pb2_grpc.RunServiceStub(self._channel).SubmitRun

    async def prepare(self, worker: str) -> None:
        """Applies the workflows, and registers a worker where it does not do so itself."""
        if worker:
            workers = worker_service_pb2_grpc.WorkerServiceStub(self._channel)
            await workers.RegisterWorker(
                worker_service_pb2.RegisterWorkerRequest(worker="noop", address=worker, max_in_flight=1000)
            )
        catalogue = workflow_service_pb2_grpc.WorkflowServiceStub(self._channel)
        for each in workflows():
            workflow = json_format.ParseDict(each, workflow_pb2.Workflow())
            await catalogue.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow))

    def one(self, shape: str) -> One:
        """Returns what submits one run and awaits its end in the same call."""
        if self._sdk is not None:
            sdk, message = self._sdk, DoRequest(text=TEXT)
            return lambda: sdk.execute(shape, message, output=DoResponse, timeout=CALL_SECONDS)
        request = run_service_pb2.SubmitRunRequest(workflow=shape, view=run_service_pb2.RUN_VIEW_RESULT)
        request.input.Pack(DoRequest(text=TEXT))
        request.wait_timeout.FromTimedelta(timedelta(seconds=CALL_SECONDS))

        async def run() -> None:
            answer = await self._submit(request, timeout=CALL_SECONDS, wait_for_ready=True)
            if answer.run.state != run_pb2.RUN_STATE_SUCCEEDED:
                raise RuntimeError(f"a run of {shape} did not succeed: {answer.run}")

        return run


if __name__ == "__main__":
    uvloop.run(serve(BatonClient()))
