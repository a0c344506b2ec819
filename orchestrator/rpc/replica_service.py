"""ReplicaService: the door for what other replicas let this one know."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

import grpc
from baton.internal.v1 import replicas_pb2, replicas_pb2_grpc

from orchestrator.engine.api import Replicas
from orchestrator.engine.replica_ports import HINT_TOKEN_KEY


class ReplicaService(replicas_pb2_grpc.ReplicaServiceServicer):
    """Serves ReplicaService by `replicas`, to those who show a replica's token."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def LookForRuns(
        self,
        request: replicas_pb2.LookForRunsRequest,
        context: grpc.aio.ServicerContext[replicas_pb2.LookForRunsRequest, replicas_pb2.LookForRunsResponse],
    ) -> replicas_pb2.LookForRunsResponse:
        """Lets this replica look for runs now."""
        metadata = tuple(context.invocation_metadata() or ())
        token = next((value for key, value in metadata if key == HINT_TOKEN_KEY and isinstance(value, str)), "")
        self._replicas.look_for_runs(token)
        return replicas_pb2.LookForRunsResponse()
