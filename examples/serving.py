"""A plain gRPC server for the example workers: port, reflection, health, SIGTERM, and the metadata of each call.

Nothing of Baton is used here: any gRPC server is a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

DRAIN_SECONDS = 5.0
"""Longest time that calls in flight may take to end after SIGTERM."""

LOGGED_METADATA = (
    "baton-run",
    "baton-step",
    "baton-attempt",
    "idempotency-key",
    "traceparent",
)

Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("examples")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a command line with the options that every example worker has."""
    command_line = argparse.ArgumentParser(description=description)
    command_line.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )
    command_line.add_argument(
        "--port",
        type=int,
        default=0,
        help="port to listen on; 0 takes a free one (default)",
    )
    command_line.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return command_line


def serve(
    options: argparse.Namespace,
    services: Sequence[str],
    add: Callable[[grpc.aio.Server], None],
) -> None:
    """Serves until SIGTERM or SIGINT.

    `services` are the full names that reflection and health tell of; `add` adds their servicers to the server. One line
    goes to standard output once calls are answered: `listening on HOST:PORT`.
    """
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    asyncio.run(_serve(options.host, options.port, services, add))


async def _serve(
    host: str,
    port: int,
    services: Sequence[str],
    add: Callable[[grpc.aio.Server], None],
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = grpc.aio.server()
    add(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    bound_port = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    for service in ("", *services):
        await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    print(f"listening on {host}:{bound_port}", flush=True)
    await stop.wait()
    await health_servicer.enter_graceful_shutdown()
    await server.stop(DRAIN_SECONDS)


def call_metadata(context: Context) -> dict[str, str]:
    """Returns the text metadata of a call, and logs what tells who called."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug(
            "call %s",
            " ".join(f"{key}={metadata[key]}" for key in LOGGED_METADATA if key in metadata),
        )
    return metadata


async def refuse(context: Context, code: grpc.StatusCode, reason: str, message: str, **metadata: str) -> NoReturn:
    """Ends the call with `code` and a google.rpc.ErrorInfo that carries `reason` and `metadata`."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="shop.example", metadata=metadata))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status always raises")
