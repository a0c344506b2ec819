"""Baton's side of one call to a worker, by either of its doors: a unary call, or an assignment on the work stream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from baton import Worker
from google.rpc import status_pb2
from grpc_status import rpc_status
from teabank.v1.money_pb2 import ChargeRequest
from teashop.v1.teashop_pb2 import ChargeResponse
from teashop.v1.teashop_pb2_grpc import PaymentsServiceStub

from .work_double import WorkDouble

TOKEN = "token"
"""The step token of every call."""


class Calling:
    """A worker that is called by one of two doors."""

    def __init__(self, worker: Worker, door: str, method: str) -> None:
        self.worker, self.door, self.method = worker, door, method
        self.stream = WorkDouble()
        self.channel: grpc.aio.Channel | None = None
        self.calls: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Serves."""
        address = await self.worker.start()
        if self.door == "stream":
            await self.stream.dial(address)
        else:
            self.channel = grpc.aio.insecure_channel(address)

    async def stop(self) -> None:
        """Ends all."""
        await self.stream.close()
        await self.worker.stop(0)
        if self.channel is not None:
            await self.channel.close()

    def begin(self, order: str = "o-1") -> asyncio.Task[Any]:
        """Begins a call; the task gives its response or its status."""
        self.calls.append(asyncio.create_task(self._called(ChargeRequest(order_id=order))))
        return self.calls[-1]

    async def call(self, order: str = "o-1") -> Any:
        """Makes a call: its response, or its status."""
        async with asyncio.timeout(20):
            return await self.begin(order)

    async def _called(self, request: ChargeRequest) -> Any:
        if self.door == "stream":
            number = self.stream.give(self.method, request, timeout_seconds=30, step_token=TOKEN)
            outcome = await self.stream.outcome(number)
            if outcome.WhichOneof("result") == "status":
                return outcome.status
            return ChargeResponse.FromString(outcome.response)
        assert self.channel is not None
        stub: Any = PaymentsServiceStub(self.channel)
        try:
            rpc = getattr(stub, self.method.rpartition("/")[2])
            return await rpc(request, timeout=30, metadata=(("baton-step-token", TOKEN),))
        except grpc.aio.AioRpcError as failed:
            status = rpc_status.from_call(failed)  # type: ignore[arg-type]
            return status or status_pb2.Status(code=failed.code().value[0], message=failed.details())
