"""The doors about replicas: ReplicaService of baton.v1 shows them, that of baton.internal.v1 is how they let each other
know."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

import grpc
from baton.internal.v1 import replicas_pb2, replicas_pb2_grpc
from baton.v1 import replica_service_pb2, replica_service_pb2_grpc

from orchestrator.engine.api import Replicas
from orchestrator.engine.replica_ports import HINT_TOKEN_KEY
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, page_size


class ReplicaService(replica_service_pb2_grpc.ReplicaServiceServicer):
    """Serves baton.v1.ReplicaService by `replicas`. The caller is known."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def ListReplicas(
        self, request: replica_service_pb2.ListReplicasRequest, context: object
    ) -> replica_service_pb2.ListReplicasResponse:
        """Lists replicas."""
        listing = Listing("ListReplicas", current_caller().namespace, str(request.include_ended))
        size = page_size(request.page_size)
        after = listing.id_position(request.page_token)
        found = await self._replicas.list(after, size + 1, include_ended=request.include_ended)
        replicas, more = cut_page(found, size)
        return replica_service_pb2.ListReplicasResponse(
            replicas=replicas, next_page_token=listing.token(replicas[-1].replica_id) if more else ""
        )

    async def ListFaults(
        self, request: replica_service_pb2.ListFaultsRequest, context: object
    ) -> replica_service_pb2.ListFaultsResponse:
        """Lists what was found that should not exist."""
        listing = Listing("ListFaults", current_caller().namespace)
        size, offset = page_size(request.page_size), listing.number_position(request.page_token)
        faults, more = cut_page(await self._replicas.list_faults(offset, size + 1), size)
        return replica_service_pb2.ListFaultsResponse(
            faults=faults, next_page_token=listing.token(str(offset + len(faults))) if more else ""
        )


class HintService(replicas_pb2_grpc.ReplicaServiceServicer):
    """Serves baton.internal.v1.ReplicaService by `replicas`, to those who show a replica's token."""

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
