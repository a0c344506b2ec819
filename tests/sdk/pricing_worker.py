"""The pricing worker of tests/node in Python: as much of it as the conformance of the work stream asks for."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

from baton import Failure, Worker

from .conftest import generated

NODE_PROTOS = Path(__file__).parents[1] / "node" / "protos"
sys.path.insert(0, str(generated(NODE_PROTOS)))

pricing_pb2: Any = importlib.import_module("pricing.v1.pricing_pb2")
pricing_pb2_grpc: Any = importlib.import_module("pricing.v1.pricing_pb2_grpc")


class Pricing(pricing_pb2_grpc.PricingServiceServicer):  # type: ignore[misc]
    """Answers, fails and hangs as its requests say."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: list[str] = []

    async def Quote(self, request: Any, context: Any) -> Any:
        told = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        price = request.price_by_material[request.item.name]
        return pricing_pb2.QuoteResponse(net=price, total=price, metadata=told)

    async def Fail(self, request: Any, context: Any) -> Any:
        raise Failure("FAILED_PRECONDITION", request.reason, request.message, dict(request.metadata))

    async def Hang(self, request: Any, context: Any) -> Any:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(request.name)

    def nothing(self) -> Any:
        """The empty answer of Hang."""
        return pricing_pb2.HangResponse()

    async def Cancelled(self, request: Any, context: Any) -> Any:
        return pricing_pb2.CancelledResponse(begun_count=self.begun, cancelled_count=len(self.ended), names=self.ended)


def pricing_worker(baton: str, **options: Any) -> Worker:
    """Makes the worker."""
    worker = Worker("pricing", baton=baton, **options)
    worker.add(Pricing())
    return worker
