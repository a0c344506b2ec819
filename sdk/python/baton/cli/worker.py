"""`baton worker`: register workers and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.groups import new_group
from baton.cli.outcomes import CommandFailed, ExitCode
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from rich.text import Text

    from baton.client import Client
    from baton.v1 import contract_report_pb2, worker_pb2

app = new_group("Register workers and look at them.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker.")]
Address = Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help="One address of it. Default: all.")]


@app.command()
def add(
    context: typer.Context,
    name: Name,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="gRPC target, as Baton's host reaches it.")],
    descriptor_set: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FileDescriptorSet of a worker without reflection.")
    ] = None,
    service: Annotated[
        list[str] | None, typer.Option(metavar="SERVICE", help="Service to take, by full name; may be repeated.")
    ] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Calls in flight at each address. Default: 100.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Register a contract even where it breaks workflows.")] = False,
    check_only: Annotated[
        bool, typer.Option("--check", help="Tell what the contract breaks, by code 1 too, and register nothing.")
    ] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Register a worker, or one more address of it. Its contract is read by server reflection.

    A contract that breaks stored workflows or runs in flight is refused, unless with --force.
    """
    chosen = choices(context, server, output)

    async def work(client: Client) -> int | None:
        from baton.cli.output import clean, error_console, note, styled

        contract = _read_contract(descriptor_set) if descriptor_set is not None else None
        if check_only or force:
            report = await client.check_worker(name, address, contract=contract, services=service or ())
            if check_only:
                return _print_report(name, report, chosen.as_json)
            _warn_of(name, report)
        before = await _worker_before(client, name)
        worker = await client.register_worker(
            name, address, contract=contract, services=service or (), max_in_flight=max_in_flight or 0, force=force
        )
        _print_worker(worker, chosen.as_json)
        brought = _brought(before, worker, address)
        if brought:
            told = f"{address} brought services that {name} did not have: {', '.join(brought)}"
            error_console().print(styled("warning: ", "bold yellow"), clean(told), sep="")
            note(f"  a worker may serve several; if this is another one: baton worker rm {name} --address {address}")
        return None

    run_with_client(chosen, work)


@app.command("ls")
def list_(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """List workers."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json
        from baton.cli.output import print_table

        workers = [worker async for worker in client.list_workers()]
        if chosen.as_json:
            print_json([MessageToDict(worker, preserving_proto_field_name=True) for worker in workers])
            return
        rows = [
            [worker.name if not position else "", *_endpoint_row(endpoint), services if not position else ""]
            for worker in workers
            for services in [", ".join(each.service for each in worker.services)]
            for position, endpoint in enumerate(worker.endpoints)
        ]
        headers = ("WORKER", "ADDRESS", "BY", "STATE", "HEALTH", "CIRCUIT", "IN FLIGHT", "SERVICES")
        empty = "no worker is registered: baton worker add NAME ADDRESS"
        print_table(headers, rows, empty, spare=("SERVICES", "BY", "IN FLIGHT"))

    run_with_client(chosen, work)


@app.command()
def get(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Show a worker: its addresses, their health and circuits, and its methods."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        _print_worker(await client.get_worker(name), chosen.as_json)

    run_with_client(chosen, work)


@app.command()
def drain(
    context: typer.Context,
    name: Name,
    address: Address = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Stop new calls to a worker, or to one address of it; calls in flight go on."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        _print_worker(await client.drain_worker(name, address or ""), chosen.as_json)

    run_with_client(chosen, work)


@app.command("rm")
def remove(
    context: typer.Context,
    name: Name,
    address: Address = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Remove a worker, or one address of it. Steps that call it wait for another."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.output import note

        await client.delete_worker(name, address or "")
        note(f"removed {name}{f' at {address}' if address else ''}")

    run_with_client(chosen, work)


async def _worker_before(client: Client, name: str) -> worker_pb2.Worker | None:
    """The worker before an address is added to it; None where there is none, or the name is none."""
    from baton.errors import InvalidRequest, NotFound

    try:
        return await client.get_worker(name)
    except (NotFound, InvalidRequest):
        return None


def _brought(before: worker_pb2.Worker | None, after: worker_pb2.Worker, address: str) -> list[str]:
    """The services that a worker has only since an address was added to those it had."""
    if before is None or address in {each.address for each in before.endpoints}:
        return []
    known = {each.service for each in before.services}
    return [each.service for each in after.services if each.service not in known]


def _print_report(name: str, report: contract_report_pb2.ContractReport, as_json: bool) -> ExitCode:
    """Writes what a contract breaks, and returns the code that says whether it breaks anything."""
    from google.protobuf.json_format import MessageToDict

    from baton.cli.lines import print_json, write
    from baton.cli.output import clean
    from baton.errors import report_lines, report_summary

    if as_json:
        print_json(MessageToDict(report, preserving_proto_field_name=True))
    else:
        write(f"the contract of {name} breaks {report_summary(report)}")
        for line in report_lines(report):
            write(f"  {clean(line)}")
    return ExitCode.FAILED if report.broken_count else ExitCode.SUCCESS


def _warn_of(name: str, report: contract_report_pb2.ContractReport) -> None:
    """Tells on standard error what a contract breaks that is registered all the same."""
    from baton.cli.output import clean, error_console, note, styled
    from baton.errors import report_lines, report_summary

    if report.broken_count:
        told = f"the contract of {name} breaks {report_summary(report)}"
        error_console().print(styled("warning: ", "bold yellow"), clean(told), sep="")
        for line in report_lines(report):
            note(f"  {clean(line)}")


def _read_contract(path: Path) -> FileDescriptorSet:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.message import DecodeError

    try:
        return FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"cannot read {path}: {error.strerror}") from None
    except DecodeError:
        raise CommandFailed(
            f"{path} is not a FileDescriptorSet", "make one with protoc --include_imports --descriptor_set_out=FILE …"
        ) from None


_BY = {
    "ENDPOINT_TRANSPORT_UNARY": "calls",
    "ENDPOINT_TRANSPORT_STREAM": "stream",
    "ENDPOINT_TRANSPORT_ATTACHED": "attach",
}


def _endpoint_row(endpoint: worker_pb2.Endpoint) -> list[str | Text]:
    from baton.cli.output import state_text
    from baton.v1 import worker_pb2

    health = worker_pb2.EndpointHealth.Name(endpoint.health).removeprefix("ENDPOINT_HEALTH_")
    return [
        endpoint.address,
        _BY.get(worker_pb2.EndpointTransport.Name(endpoint.transport), "-"),
        state_text(worker_pb2.EndpointState.Name(endpoint.state).removeprefix("ENDPOINT_STATE_")),
        state_text("-" if health == "UNSPECIFIED" else health),
        state_text(worker_pb2.CircuitState.Name(endpoint.circuit).removeprefix("CIRCUIT_STATE_")),
        f"{endpoint.in_flight}/{endpoint.credit}" if endpoint.credit else str(endpoint.in_flight),
    ]


def _print_worker(worker: worker_pb2.Worker, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    from baton.cli.lines import print_json, write
    from baton.cli.output import print_table

    if as_json:
        print_json(MessageToDict(worker, preserving_proto_field_name=True))
        return
    headers = ("ADDRESS", "BY", "STATE", "HEALTH", "CIRCUIT", "IN FLIGHT")
    write(f"worker {worker.name}, at most {worker.max_in_flight} calls in flight at each address\n")
    print_table(headers, [_endpoint_row(each) for each in worker.endpoints], "no address")
    write()
    methods = [
        (f"{contract.service}/{method.method}", method.input_type, method.output_type, method.idempotency_level)
        for contract in worker.services
        for method in contract.methods
    ]
    columns = ("METHOD", "REQUEST", "RESPONSE", "IDEMPOTENCY")
    print_table(
        columns, methods, "no methods that steps can call", columns, spare=("IDEMPOTENCY", "RESPONSE", "REQUEST")
    )
