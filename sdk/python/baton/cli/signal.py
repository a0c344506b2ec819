"""`baton run signal`: sends a typed message to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from baton.client import Client


def signal(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    name: Annotated[str, typer.Argument(metavar="SIGNAL", help="Name of the signal.")],
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", "-i", metavar="PATH=VALUE", help="Set a field of the message; may be repeated."),
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", "-f", metavar="FILE", help="Message as JSON; `-` is standard input.")
    ] = None,
    type_: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Full name of the message. Default: the workflow's.")
    ] = "",
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The same id is taken once, however often it is sent.")
    ] = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Send a signal to a run, whose steps wait for it or will."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.inputs import build_message
        from baton.cli.lines import print_json
        from baton.cli.output import note
        from baton.cli.reading import read_json
        from baton.cli.types import Types

        document = read_json(input_) if input_ is not None else None
        message = None
        if document is not None or fields:
            kind = type_ or await _type_of(client, run_id, name)
            message = await build_message(kind, document, fields or (), Types(client.address))
        existing = await client.signal(run_id, name, message, request_id=request_id)
        if chosen.as_json:
            print_json({"existing": existing})
        else:
            note("it had arrived before" if existing else "it has arrived")

    run_with_client(chosen, work)


async def _type_of(client: Client, run_id: str, name: str) -> str:
    """Finds the type of a signal's message in the workflow of the run. Raises CommandFailed."""
    from baton.cli.outcomes import CommandFailed

    run = await client.get_run(run_id, full=False)
    if not run.workflow:
        raise CommandFailed("the run is of an inline workflow, which is not stored", "name the message with --type")
    revision = await client.get_workflow(run.workflow, run.revision)
    for step in revision.definition.steps:
        if step.wait_signal.signal == name:
            if not step.wait_signal.type:
                raise CommandFailed(f"the signal {name} carries nothing", "leave out --input and -i")
            return step.wait_signal.type
    known = sorted({step.wait_signal.signal for step in revision.definition.steps if step.HasField("wait_signal")})
    told = f"its signals are {', '.join(known)}" if known else "no step of it waits for one"
    raise CommandFailed(f"the workflow {run.workflow} has no signal {name}; {told}")
