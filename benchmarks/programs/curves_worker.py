"""The worker of the curves: answers with what it was asked, on as many addresses as its argument says.

Run as a program; prints the first address and the port, which all addresses share. Address number n is 127.1.x.y.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from benchmarks.contract import SERVICE, DoRequest, DoResponse
from benchmarks.curves_shapes import MANY_SERVICE, METHODS


def host(number: int) -> str:
    """Returns the host of address `number` of this machine, from 0."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


async def _do(request: DoRequest, context: object) -> DoResponse:
    return DoResponse(text=request.text)


async def _serve(addresses: int) -> None:
    method = grpc.unary_unary_rpc_method_handler(
        _do, request_deserializer=DoRequest.FromString, response_serializer=DoResponse.SerializeToString
    )
    server = grpc.aio.server()
    services = {SERVICE: {"Do": method}, MANY_SERVICE: {f"Do{number}": method for number in range(METHODS)}}
    for service, methods in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    with socket.socket() as probe:
        probe.bind((host(0), 0))
        port: int = probe.getsockname()[1]
    for number in range(addresses):
        server.add_insecure_port(f"{host(number)}:{port}")
    await server.start()
    print(port, flush=True)
    # The processes of a benchmark end by the signal of the one that started them.
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
