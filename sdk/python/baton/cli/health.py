"""`baton health`: asks a server whether it serves, for container engines and scripts."""

from __future__ import annotations

from typing import Any

import typer

from baton.cli.outcomes import CommandFailed
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

TIMEOUT_SECONDS = 3.0


def health(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """Ask the server whether it serves; exit code 0 says yes."""
    chosen = choices(context, server, output)

    async def work(client: object) -> None:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from baton.cli.lines import print_json
        from baton.cli.reports import how_to_reach
        from baton.connection import server_address

        address = server_address(chosen.address)
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # Its stubs name no methods.
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise CommandFailed(f"{address} does not answer: {error.code().name}", how_to_reach(address)) from None
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise CommandFailed(f"{address} is {state}: it is draining or starting")
        if chosen.as_json:
            print_json({"address": address, "health": state})
        else:
            typer.echo(f"{address} is {state}")

    run_with_client(chosen, work)


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(health)
