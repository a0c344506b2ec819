"""A worker of unary calls: a plain gRPC server that answers with what it was asked. Prints its address."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import grpc.aio
import uvloop
from grpc_reflection.v1alpha import reflection

from benchmarks.contract import SERVICE, DoResponse
from benchmarks.noop_pb2_grpc import NoopServiceServicer, add_NoopServiceServicer_to_server


class _Noop(NoopServiceServicer):
    async def Do(self, request: Any, context: Any) -> Any:
        return DoResponse(text=request.text)


async def _serve(address: str) -> None:
    server = grpc.aio.server()
    add_NoopServiceServicer_to_server(_Noop(), server)
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    server.add_insecure_port(address)
    await server.start()
    print(address, flush=True)
    # The processes of a benchmark end by the signal of the one that started them.
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--listen", required=True, help="host:port")
    uvloop.run(_serve(arguments.parse_args().listen))
