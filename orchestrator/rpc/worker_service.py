"""WorkerService: requests of the wire to calls of the engine, and back."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from baton.v1 import worker_service_pb2, worker_service_pb2_grpc

from orchestrator.domain.errors import FieldFault, PayloadTooLarge
from orchestrator.engine.api import Workers
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, page_size

CONTRACT_LIMIT_BYTES = 4 << 20
"""Size of an uploaded contract."""


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """Serves WorkerService by `workers`. Requests have been validated, and the caller is known."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def RegisterWorker(
        self, request: worker_service_pb2.RegisterWorkerRequest, context: object
    ) -> worker_service_pb2.RegisterWorkerResponse:
        """Registers an address of a worker."""
        size = request.contract.ByteSize()
        if size > CONTRACT_LIMIT_BYTES:
            text = f"the contract has {size} bytes; send at most {CONTRACT_LIMIT_BYTES}, without source_code_info"
            raise PayloadTooLarge(text, faults=[FieldFault("contract", "PAYLOAD_TOO_LARGE", text)])
        return await self._workers.register(current_caller(), request)

    async def GetWorker(
        self, request: worker_service_pb2.GetWorkerRequest, context: object
    ) -> worker_service_pb2.GetWorkerResponse:
        """Reads a worker."""
        worker = await self._workers.get(current_caller(), request.worker)
        return worker_service_pb2.GetWorkerResponse(worker=worker)

    async def ListWorkers(
        self, request: worker_service_pb2.ListWorkersRequest, context: object
    ) -> worker_service_pb2.ListWorkersResponse:
        """Lists workers."""
        caller = current_caller()
        listing = Listing("ListWorkers", caller.namespace)
        size = page_size(request.page_size)
        found = await self._workers.list(caller, listing.position(request.page_token), size + 1)
        workers, more = cut_page(found, size)
        return worker_service_pb2.ListWorkersResponse(
            workers=workers, next_page_token=listing.token(workers[-1].name) if more else ""
        )

    async def DrainWorker(
        self, request: worker_service_pb2.DrainWorkerRequest, context: object
    ) -> worker_service_pb2.DrainWorkerResponse:
        """Drains a worker or one address of it."""
        worker = await self._workers.drain(current_caller(), request.worker, request.address)
        return worker_service_pb2.DrainWorkerResponse(worker=worker)

    async def DeleteWorker(
        self, request: worker_service_pb2.DeleteWorkerRequest, context: object
    ) -> worker_service_pb2.DeleteWorkerResponse:
        """Deletes a worker or one address of it."""
        worker = await self._workers.delete(current_caller(), request.worker, request.address)
        return worker_service_pb2.DeleteWorkerResponse(worker=worker)
