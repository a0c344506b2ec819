"""`baton run`: submit runs, follow them and look at them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.groups import new_group
from baton.cli.mend import fork, mend, pause, resume, retry, skip
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client
from baton.cli.signal import signal
from baton.cli.submit import submit

if TYPE_CHECKING:
    from baton.client import Client

app = new_group("Submit runs, follow them and look at them.")
app.command()(submit)
app.command()(signal)
for command in (retry, skip, fork, pause, resume, mend):
    app.command()(command)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]


@app.command()
def watch(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help="Id of the run.")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="TERMS", help="Instead of one run: tell which of these end.")
    ] = None,
    rounds: Annotated[bool, typer.Option("--rounds", help="Go on where the run is mended, until Ctrl-C.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Follow a run until it ends: a live table on a terminal, else a line for each event.

    With --filter, such as 'workflow = "fulfil-order" AND state = FAILED', a line for each run as it ends, until you
    press Ctrl-C; an empty one means every run.

    Where the connection is lost it is tried for 5 minutes to go on; standard error says so, but not with -o json.
    """
    if (run_id is None) == (filter_ is None):
        raise typer.BadParameter("give either the id of a run or --filter TERMS")
    if rounds and run_id is None:
        raise typer.BadParameter("--rounds goes with the id of a run")
    chosen = choices(context, server, output)

    async def work(client: Client) -> int:
        from baton.cli.watching import watch, watch_ends

        if run_id is None:
            return await watch_ends(client, filter_ or "", chosen)
        return await watch(client, client.run(run_id), chosen, rounds=rounds)

    run_with_client(chosen, work)


@app.command()
def wait(
    context: typer.Context,
    run_id: RunId,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Longest wait, such as 30s or 5m.")] = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Wait until a run has ended, and show its output."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> int:
        from baton.cli.lines import print_json
        from baton.cli.times import seconds_of
        from baton.cli.types import Types
        from baton.cli.watching import exit_code, print_end

        handle = client.run(run_id)
        await handle.refresh()  # A wait has patience with a server that goes away, not with one that is not there.
        run = await handle.wait(seconds_of(timeout) if timeout else None)
        if chosen.as_json:
            print_json(await Types(client.address).to_json(run))
        else:
            await print_end(client, run)
        return exit_code(run)

    run_with_client(chosen, work)


@app.command("ls")
def list_(
    context: typer.Context,
    filter_: Annotated[
        str, typer.Option("--filter", metavar="TERMS", help='Such as: attributes.team = "pay" AND state = FAILED.')
    ] = "",
    state: Annotated[str, typer.Option(metavar="STATE", help="Such as FAILED.")] = "",
    workflow: Annotated[str, typer.Option(metavar="NAME", help="Runs of this workflow.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Most runs to list.")] = 50,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """List runs, newest first."""
    chosen = choices(context, server, output)
    terms = [filter_] if filter_ else []
    if state:
        terms.append(f"state = {state.upper()}")
    if workflow:
        terms.append(f"workflow = {json.dumps(workflow)}")

    async def work(client: Client) -> None:
        from baton.cli.event_view import why_briefly
        from baton.cli.lines import print_json
        from baton.cli.output import print_table, state_text
        from baton.cli.run_view import run_state, run_time
        from baton.cli.types import Types

        runs = []
        async for run in client.list_runs(" AND ".join(terms), page_size=min(limit, 1_000)):
            runs.append(run)
            if len(runs) == limit:
                break
        if chosen.as_json:
            types = Types(client.address)
            print_json([await types.to_json(run) for run in runs])
            return
        rows = [
            (
                run.run_id,
                run.workflow or "(inline)",
                state_text(run_state(run)),
                run.create_time,
                run_time(run),
                why_briefly(run.failure) if run.HasField("failure") else "",
            )
            for run in runs
        ]
        headers = ("RUN", "WORKFLOW", "STATE", "SUBMITTED", "TIME", "FAILURE")
        print_table(headers, rows, "no runs", spare=("TIME", "FAILURE"))

    run_with_client(chosen, work)


@app.command()
def get(
    context: typer.Context,
    run_id: RunId,
    waterfall: Annotated[bool, typer.Option("--waterfall", help="Draw where the time went.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Show a run: its steps, why they wait or failed, its output."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.lines import print_json, write
        from baton.cli.output import console, show, styled
        from baton.cli.run_view import facts, head, steps_table
        from baton.cli.types import Types

        run = await client.get_run(run_id)
        types = Types(client.address)
        if chosen.as_json:
            print_json(await types.to_json(run))
            return
        show(head(run))
        for name, value in facts(run):
            show(styled(f"  {name:<11}{value}", "red" if name == "failure" else ""))
        write()
        show(steps_table(run.steps, console().width))
        if waterfall:
            from baton.cli.waterfalls import print_waterfall

            write()
            print_waterfall(run)
        told = await types.payload_to_json(run.output)
        if told is not None:
            write("\noutput")
            print_json(told)

    run_with_client(chosen, work)


@app.command()
def events(
    context: typer.Context,
    run_id: RunId,
    full: Annotated[bool, typer.Option("--full", help="With inputs and outputs (JSON).")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """List the journal of a run, oldest first."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.event_view import event_line
        from baton.cli.lines import print_json_line
        from baton.cli.output import show
        from baton.cli.types import Types

        types = Types(client.address)
        async for event in client.list_events(run_id, full=full):
            if chosen.as_json:
                print_json_line(await types.to_json(event))
            else:
                show(event_line(event))

    run_with_client(chosen, work)


@app.command()
def cancel(
    context: typer.Context,
    run_id: RunId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the journal.")] = "",
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Cancel a run and the calls that it is making."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.lines import print_json
        from baton.cli.output import show
        from baton.cli.run_view import head
        from baton.cli.types import Types

        run = await client.cancel_run(run_id, reason)
        if chosen.as_json:
            print_json(await Types(client.address).to_json(run))
        else:
            show(head(run))

    run_with_client(chosen, work)
