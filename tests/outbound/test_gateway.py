"""Who is told of an address, and that a fault of one who is told keeps nothing from the others."""

# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from baton.worker.v1 import work_pb2, work_pb2_grpc

from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue_ports import EndpointRow, Reach
from orchestrator.engine.worker_ports import Health
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.security.tokens import TokenSigner


class ShortStreams(work_pb2_grpc.WorkerServiceServicer):
    """A worker that says who it is, and ends each stream after Baton's next frame."""

    async def Work(  # type: ignore[override]
        self, frames: AsyncIterator[work_pb2.BatonFrame], context: object
    ) -> AsyncIterator[work_pb2.WorkerFrame]:
        await anext(frames)
        yield work_pb2.WorkerFrame(opening=work_pb2.WorkerOpening(instance_id="i", credit=7))
        await anext(frames)


async def test_streams_and_other_namespaces_go_on_where_one_who_is_told_has_a_fault() -> None:
    def fail(_: Health, credit: int | None) -> None:
        if credit:
            raise RuntimeError("a fault")

    server = grpc.aio.server()
    work_pb2_grpc.add_WorkerServiceServicer_to_server(ShortStreams(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    gateway = GrpcWorkerGateway(5, 30.0, TokenSigner(bytes(32)))
    told: asyncio.Queue[tuple[Health, int | None]] = asyncio.Queue()
    for namespace, follower in (("one", fail), ("two", lambda *fact: told.put_nowait(fact))):
        key = EndpointKey(namespace, "w", address)
        gateway.follow(EndpointRow(key, "digest", False, 0, Reach(work_stream=True)), follower)
    served = 0
    async with asyncio.timeout(20):
        while served < 3:  # each by a stream of its own
            served += await told.get() == ("serving", 4)
    await gateway.close()
    await server.stop(None)
