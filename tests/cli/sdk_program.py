"""A worker, a workflow and a client in one program, by the SDK alone: prints what the run gave."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import sys
from typing import Any

from baton import Client, Worker, Workflow, bind, workflow
from shop.v1.notifications_pb2 import SendNotificationRequest, SendNotificationResponse
from shop.v1.notifications_pb2_grpc import NotificationServiceServicer
from shop.v1.order_pb2 import Customer


class Notifications(NotificationServiceServicer):
    """Answers with what it was asked."""

    async def SendNotification(self, request: SendNotificationRequest, context: Any) -> SendNotificationResponse:
        return SendNotificationResponse(text=request.recipient.name)


@workflow(SendNotificationRequest, SendNotificationResponse)
def tell(wf: Workflow[SendNotificationRequest, SendNotificationResponse]) -> SendNotificationResponse:
    told = wf.step(
        NotificationServiceServicer.SendNotification, bind(SendNotificationRequest, recipient=wf.input.recipient)
    )
    return bind(SendNotificationResponse, text=told.output.text)


async def main(address: str) -> None:
    worker = Worker("base-only", baton=address)
    worker.add(Notifications())
    await worker.start()
    try:
        await worker.registered()
        async with Client(address) as client:
            await client.apply(tell)
            given = SendNotificationRequest(recipient=Customer(name="Ada"))
            answer = await client.execute(tell, given, timeout=30)
            print(answer.text)
    finally:
        await worker.stop(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
