"""A worker as a whole program, for the tests of its signals."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import sys
from typing import Any

from baton import Worker
from teabank.v1.money_pb2 import ChargeRequest
from teashop.v1.teashop_pb2 import ChargeResponse
from teashop.v1.teashop_pb2_grpc import PaymentsServiceServicer

worker = Worker("payments", grace=30)


@worker.service
class Payments(PaymentsServiceServicer):
    """Charges at once; charges later only when told to, which is never."""

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        return ChargeResponse(payment_id=request.order_id)

    async def ChargeLater(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        print("waiting", flush=True)
        await asyncio.sleep(float(request.order_id))
        return ChargeResponse(payment_id="late")


if __name__ == "__main__":
    worker.run(*sys.argv[1:])
