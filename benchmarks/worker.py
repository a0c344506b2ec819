"""The no-op worker: a plain gRPC server that answers with what it was asked. Run as a program; prints its address."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import uvloop
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection

from benchmarks.contract import SERVICE, DoRequest, DoResponse


async def _do(request: Message, context: object) -> Message:
    return DoResponse(text=request.text)  # type: ignore[attr-defined]


async def _serve() -> None:
    method = grpc.unary_unary_rpc_method_handler(
        _do, request_deserializer=DoRequest.FromString, response_serializer=DoResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Do": method}),))
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    # The processes of a benchmark end by the signal of the one that started them.
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
