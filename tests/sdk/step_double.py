"""Baton's StepService for tests: in memory, driven by the test, true to the comments of its proto."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
from baton.v1 import failure_pb2, run_pb2, step_service_pb2, step_service_pb2_grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message

from .double import rich


class StepDouble(step_service_pb2_grpc.StepServiceServicer):
    """One run: a step that delegates, and the steps that it has delegated by their keys."""

    def __init__(self) -> None:
        self.address = ""
        self.steps: dict[str, run_pb2.RunStep] = {}
        self.requests: list[step_service_pb2.DelegateRequest] = []
        self.heartbeats: list[step_service_pb2.HeartbeatRequest] = []
        self.waiting: Counter[str] = Counter()
        """Calls that wait now, by key."""
        self.checkpoint = any_pb2.Any()
        self.fail_next: list[Any] = []
        self.meeting = 0
        """Steps that must be there before any is answered for."""
        self.running = True
        """Whether the attempt is under way."""
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serves, at the same address again after a stop."""
        self._server = grpc.aio.server()
        step_service_pb2_grpc.add_StepServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Stops at once: every call that is under way is lost."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def until(self, fact: Callable[[], Any]) -> Any:
        """Waits until something holds, and returns it."""
        async with asyncio.timeout(20), self._changed:
            return await self._changed.wait_for(fact)

    async def finish(self, key: str, output: Message) -> None:
        """Ends a step with success; one that is not there yet will end at once."""
        step = self.steps.setdefault(key, run_pb2.RunStep(step=f"parent/{key}"))
        step.state = run_pb2.STEP_STATE_SUCCEEDED
        step.output.Pack(output)
        await self._tell()

    async def fail(self, key: str, failure: failure_pb2.Failure) -> None:
        """Ends a step with a failure."""
        step = self.steps.setdefault(key, run_pb2.RunStep(step=f"parent/{key}"))
        step.state = run_pb2.STEP_STATE_FAILED
        step.failure.CopyFrom(failure)
        await self._tell()

    async def end(self) -> None:
        """Ends the attempt."""
        self.running = False
        await self._tell()

    async def Delegate(
        self, request: step_service_pb2.DelegateRequest, context: Any
    ) -> step_service_pb2.DelegateResponse:
        self.requests.append(request)
        if self.fail_next:
            await self._tell()
            await context.abort_with_status(self.fail_next.pop(0))
        existing = request.key in self.steps
        step = self.steps.setdefault(
            request.key,
            run_pb2.RunStep(step=f"parent/{request.key}", method=request.method, state=run_pb2.STEP_STATE_READY),
        )
        self.waiting[request.key] += 1
        await self._tell()
        await self.until(lambda: len(self.steps) >= self.meeting)
        try:
            async with asyncio.timeout(request.wait_timeout.ToTimedelta().total_seconds()), self._changed:
                await self._changed.wait_for(lambda: _ended(step) or not self.running)
        except TimeoutError:
            pass
        finally:
            self.waiting[request.key] -= 1
            await self._tell()
        if not self.running:
            await context.abort_with_status(
                rich(grpc.StatusCode.FAILED_PRECONDITION, "STEP_NOT_RUNNING", "the attempt has ended")
            )
        return step_service_pb2.DelegateResponse(step=step, existing=existing)

    async def Heartbeat(
        self, request: step_service_pb2.HeartbeatRequest, context: Any
    ) -> step_service_pb2.HeartbeatResponse:
        self.heartbeats.append(request)
        if request.HasField("checkpoint"):
            self.checkpoint.CopyFrom(request.checkpoint)
        await self._tell()
        return step_service_pb2.HeartbeatResponse(checkpoint=self.checkpoint)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _ended(step: run_pb2.RunStep) -> bool:
    return step.state in (run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_STATE_FAILED, run_pb2.STEP_STATE_CANCELLED)
