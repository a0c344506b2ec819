"""A worker in a process of its own: prints its port, then a line for each call that arrives or is cancelled.

It answers with what it was sent, but lets `hang` wait for ever. It serves grpc.health.v1 too.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health


async def _answer(payload: bytes, context: Any) -> bytes:
    print(payload.decode(), flush=True)
    if payload != b"hang":
        return payload
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
    raise AssertionError


class _Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method == "/test.Worker/Do":
            return grpc.unary_unary_rpc_method_handler(_answer)
        return None


async def _main(port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(bound, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
