"""StepService: requests of workers, on behalf of the steps that they were called for, to calls of the engine."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from baton.v1 import step_service_pb2, step_service_pb2_grpc

from orchestrator.engine.api import Steps


class StepService(step_service_pb2_grpc.StepServiceServicer):
    """Serves StepService by `steps`. Requests have been validated; the step token says who asks."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    async def Delegate(
        self, request: step_service_pb2.DelegateRequest, context: object
    ) -> step_service_pb2.DelegateResponse:
        """Adds a step to the run of the caller's step."""
        return await self._steps.delegate(request)

    async def Heartbeat(
        self, request: step_service_pb2.HeartbeatRequest, context: object
    ) -> step_service_pb2.HeartbeatResponse:
        """Takes a sign of life."""
        return await self._steps.heartbeat(request)
