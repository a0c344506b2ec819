"""The doors of baton.worker.v1: for workers that dial in, and for replicas that call those here.

Frames pass through; their meaning is known in `outbound`.
"""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from baton.v1 import worker_service_pb2
from baton.worker.v1 import work_pb2, work_pb2_grpc

from orchestrator.domain.errors import FieldFault
from orchestrator.engine.api import Workers
from orchestrator.engine.worker_ports import RELAY_ADDRESS_KEY, RELAY_TOKEN_KEY
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.validation import RequestValidator, invalid_request

_ANY_ADDRESS = "127.0.0.1:1"
INSTANCE_ID_CHARACTERS = 128


class AttachService(work_pb2_grpc.AttachServiceServicer):
    """Serves AttachService by `workers`. The caller is known."""

    def __init__(self, workers: Workers, validator: RequestValidator) -> None:
        self._workers, self._validator = workers, validator

    async def Attach(  # type: ignore[override]  # it writes to the context itself
        self,
        frames: AsyncIterator[work_pb2.WorkerFrame],
        context: grpc.aio.ServicerContext[work_pb2.WorkerFrame, work_pb2.BatonFrame],
    ) -> None:
        """Carries frames between Baton and a worker that dialled in."""

        async def read() -> work_pb2.WorkerFrame | None:
            return await anext(frames, None)

        async def write(frame: work_pb2.BatonFrame) -> None:
            await context.write(frame)

        first = await self._workers.greet(read, write)
        self._check(first.opening)
        await self._workers.attach(current_caller(), first, read, write)

    def _check(self, opening: work_pb2.WorkerOpening) -> None:
        """Holds an opening to the rules of a registration. Errors: InvalidRequest."""
        registration = worker_service_pb2.RegisterWorkerRequest(
            worker=opening.worker, address=_ANY_ADDRESS, services=opening.services
        )
        faults = [
            FieldFault(f"opening.{fault.path}", fault.reason, fault.message)
            for fault in self._validator.faults(registration)
        ]
        if not 0 < len(opening.instance_id) <= INSTANCE_ID_CHARACTERS or not opening.instance_id.isprintable():
            text = f"give 1 to {INSTANCE_ID_CHARACTERS} printable characters, others at each start of the worker"
            faults.append(FieldFault("opening.instance_id", "INVALID_REQUEST", text))
        if not opening.HasField("contract"):
            text = "give the descriptors of the services that the worker serves, with all imports"
            faults.append(FieldFault("opening.contract", "INVALID_REQUEST", text))
        if faults:
            raise invalid_request(faults)


class RelayService(work_pb2_grpc.WorkerServiceServicer):
    """Serves WorkerService to other replicas, for workers that are attached to this one."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def Work(  # type: ignore[override]  # it writes to the context itself
        self,
        frames: AsyncIterator[work_pb2.BatonFrame],
        context: grpc.aio.ServicerContext[work_pb2.BatonFrame, work_pb2.WorkerFrame],
    ) -> None:
        """Carries frames between another replica and a worker that is attached here."""

        async def read() -> work_pb2.BatonFrame | None:
            return await anext(frames, None)

        async def write(frame: work_pb2.WorkerFrame) -> None:
            await context.write(frame)

        told = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        await self._workers.relay(told.get(RELAY_ADDRESS_KEY, ""), told.get(RELAY_TOKEN_KEY, ""), read, write)
