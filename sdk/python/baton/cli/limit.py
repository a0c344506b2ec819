"""`baton limit`: bound how many calls are in flight, and how many start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.groups import new_group
from baton.cli.outcomes import CommandFailed, ExitCode
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from baton.client import Client
    from baton.v1 import limit_pb2

app = new_group("Bound the calls of steps.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the limit.")]


@app.command()
def apply(
    context: typer.Context,
    name: Name,
    method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Bounds calls of this method, as package.Service/Method.")
    ] = None,
    worker: Annotated[str | None, typer.Option(metavar="WORKER", help="Bounds calls of this worker.")] = None,
    namespace: Annotated[bool, typer.Option("--namespace", help="Bounds every call of the namespace.")] = False,
    key: Annotated[bool, typer.Option("--key", help="Bounds calls of steps that name it, for each key apart.")] = False,
    max_in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most calls in flight at a time.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/TIME", help="Most calls that start in a time, such as 100/s or 5/1m.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Calls that may start at once. Default: that of the rate.")
    ] = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Store a limit under its name. Say what it bounds, and by --max-in-flight, --rate or both, how far."""
    if sum((method is not None, worker is not None, namespace, key)) != 1:
        raise typer.BadParameter("give one of --method, --worker, --namespace and --key")
    if max_in_flight is None and rate is None:
        raise typer.BadParameter("give --max-in-flight, --rate or both")
    if burst is not None and rate is None:
        raise typer.BadParameter("--burst goes with --rate")
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.v1 import limit_pb2

        limit = limit_pb2.Limit(name=name, target=method or worker or "", max_in_flight=max_in_flight or 0)
        scope = "METHOD" if method else "WORKER" if worker else "NAMESPACE" if namespace else "KEY"
        limit.scope = limit_pb2.LimitScope.Value(f"LIMIT_SCOPE_{scope}")
        if rate is not None:
            limit.rate.CopyFrom(_rate(rate, burst or 0))
        _print_limits([await client.apply_limit(limit)], chosen.as_json, one=True)

    run_with_client(chosen, work)


@app.command("ls")
def list_(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """List limits."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        _print_limits([limit async for limit in client.list_limits()], chosen.as_json)

    run_with_client(chosen, work)


@app.command("show", hidden=True)
@app.command()
def get(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Show a limit and how much of it is in use."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json, write
        from baton.cli.output import note, print_table
        from baton.cli.wording import in_commands

        shown = await client.get_limit(name)
        if chosen.as_json:
            print_json(MessageToDict(shown, preserving_proto_field_name=True))
            return
        _print_limits([shown.limit], as_json=False)
        write()
        use = shown.use
        keys = f", {use.key_count} keys" if use.key_count else ""
        write(f"{use.in_flight} in flight, {use.waiting} waiting{keys}\n")
        if use.paused:
            note(f"no permit is given at the moment: {in_commands(use.paused)}")
        if use.keys:
            rows = [[key.key, str(key.in_flight), str(key.waiting)] for key in use.keys]
            print_table(("KEY", "IN FLIGHT", "WAITING"), rows, "")

    run_with_client(chosen, work)


@app.command("delete", hidden=True)
@app.command("rm")
def remove(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Remove a limit. Steps that name it wait until there is one of the name again."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.output import note

        await client.delete_limit(name)
        note(f"removed {name}")

    run_with_client(chosen, work)


def _rate(text: str, burst: int) -> limit_pb2.Rate:
    """Reads `100/s` or `5/1m`."""
    from baton.cli.times import seconds_of
    from baton.v1 import limit_pb2

    count, _, per = text.partition("/")
    if not count.strip().isdecimal() or not per.strip():
        raise CommandFailed(f"{text} is not a rate", "give one such as 100/s or 5/1m", ExitCode.USAGE)
    per = per.strip()
    rate = limit_pb2.Rate(count=int(count), burst=burst)
    rate.per.FromNanoseconds(int(seconds_of(per if per[0].isdecimal() else f"1{per}") * 1e9))
    return rate


def _print_limits(limits: list[limit_pb2.Limit], as_json: bool, one: bool = False) -> None:
    from google.protobuf.json_format import MessageToDict

    from baton.cli.lines import print_json
    from baton.cli.output import print_table
    from baton.v1 import limit_pb2

    if as_json:
        found = [MessageToDict(limit, preserving_proto_field_name=True) for limit in limits]
        print_json(found[0] if one else found)
        return
    rows = [
        [
            limit.name,
            limit_pb2.LimitScope.Name(limit.scope).removeprefix("LIMIT_SCOPE_"),
            limit.target,
            str(limit.max_in_flight or "-"),
            _rate_text(limit.rate) if limit.HasField("rate") else "-",
        ]
        for limit in limits
    ]
    headers = ("LIMIT", "BOUNDS", "TARGET", "IN FLIGHT", "RATE")
    print_table(headers, rows, "no limit: baton limit apply NAME --method METHOD --max-in-flight N")


def _rate_text(rate: limit_pb2.Rate) -> str:
    text = f"{rate.count} in {rate.per.ToMicroseconds() / 1e6:g} s"
    return text if rate.burst == rate.count else f"{text}, at once {rate.burst}"
