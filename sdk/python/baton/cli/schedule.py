"""`baton schedule`: run workflows at set times."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.groups import new_group
from baton.cli.outcomes import Choices, CommandFailed, ExitCode, OutputForm
from baton.cli.session import OutputOption, ServerOption, choices, errors_told, run_with_client

if TYPE_CHECKING:
    from baton.cli.schedule_files import ScheduleSource
    from baton.client import Client
    from baton.v1 import schedule_pb2

app = new_group("Run workflows at set times.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]


class ScheduleForm(enum.StrEnum):
    """Form of one schedule."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


@app.command()
def apply(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML or JSON, `-` for standard input.")],
    check_only: Annotated[bool, typer.Option("--check-only", help="Make every check and store nothing.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Check schedules and store each under its name, in place of what that had."""
    chosen = choices(context, server, output)
    with errors_told(chosen):
        sources = _read(files)

    async def work(client: Client) -> int:
        from baton.cli.lines import print_json
        from baton.cli.output import console, styled, zoned
        from baton.cli.reports import report_error
        from baton.cli.types import Types
        from baton.errors import BatonError

        told: list[Any] = []
        for source in sources:
            try:
                applied = await client.apply_schedule(await source.complete(client), check_only=check_only)
            except BatonError as error:
                return report_error(error, chosen, source=source.file, locate=source.line)
            stored = applied.stored
            if chosen.as_json:
                told.append({"schedule": await Types(client.address).to_json(stored), "existing": applied.existing})
                continue
            name, next_time = stored.schedule.name, zoned(stored.next_times[0]) if stored.next_times else "never"
            state = "valid" if check_only else "unchanged" if applied.existing else "applied"
            note = f"{state}; fires next: {next_time}" if not stored.HasField("pause_time") else f"{state}; paused"
            console().print(styled("✓ ", "green"), f"{name} ({note})", sep="")
        if chosen.as_json:
            print_json(told)
        return ExitCode.SUCCESS

    run_with_client(chosen, work)


@app.command("ls")
def list_(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """List schedules."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json
        from baton.cli.output import print_table, state_text, zoned

        found = [each async for each in client.list_schedules()]
        if chosen.as_json:
            print_json([MessageToDict(each, preserving_proto_field_name=True) for each in found])
            return
        rows = [
            (
                each.schedule.name,
                state_text(_state(each)),
                each.schedule.cron,
                each.schedule.time_zone or "UTC",
                each.schedule.run.workflow,
                zoned(each.next_times[0]) if each.next_times else "",
                str(each.fired_count),
            )
            for each in found
        ]
        headers = ("SCHEDULE", "STATE", "CRON", "ZONE", "WORKFLOW", "NEXT", "FIRED")
        empty = "there is no schedule: baton schedule apply FILE"
        print_table(headers, rows, empty, whole=("NEXT",), spare=("FIRED", "WORKFLOW"))

    run_with_client(chosen, work)


@app.command()
def get(
    context: typer.Context,
    name: Name,
    next_count: Annotated[
        int, typer.Option("--next", metavar="N", min=1, max=100, help="How many next times to show.")
    ] = 5,
    server: ServerOption = None,
    output: Annotated[
        ScheduleForm | None,
        typer.Option("--output", "-o", help="A table, what was applied as it can be applied again, or all as JSON."),
    ] = None,
) -> None:
    """Show a schedule: when it fires next, what it has done, and its newest runs."""
    as_json = output is ScheduleForm.JSON
    chosen = choices(context, server, OutputForm.JSON if as_json else OutputForm.TABLE if output else None)

    async def work(client: Client) -> None:
        from baton.cli.lines import write
        from baton.cli.types import Types

        found = await client.get_schedule(name, next_count=next_count)
        if output is ScheduleForm.YAML:
            import json

            import yaml

            # Any comes as a kind of mapping of its own, which YAML does not know.
            definition = json.loads(json.dumps(await Types(client.address).to_json(found.schedule)))
            definition["run"].get("input", {}).pop("@type", None)
            write(yaml.safe_dump(definition, sort_keys=False, allow_unicode=True, width=120).rstrip())
        else:
            await _print(client, chosen, found)

    run_with_client(chosen, work)


@app.command()
def pause(
    context: typer.Context,
    name: Name,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why, in a sentence.")] = "",
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Stop a schedule from firing; runs that are under way go on."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        await _print(client, chosen, await client.pause_schedule(name, note))

    run_with_client(chosen, work)


@app.command()
def resume(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Let a schedule fire again, from its next time on."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        await _print(client, chosen, await client.resume_schedule(name))

    run_with_client(chosen, work)


@app.command()
def trigger(
    context: typer.Context,
    name: Name,
    request_id: Annotated[str, typer.Option(metavar="ID", help="The same id gives the same run.")] = "",
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Run what a schedule runs now, and print the id of the run."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.lines import print_json, write
        from baton.cli.output import note

        run = await client.trigger_schedule(name, request_id=request_id or None)
        if chosen.as_json:
            print_json({"run_id": run.id, "existing": run.existing})
            return
        write(run.id)
        note(f"{'there already; ' if run.existing else ''}follow it with: baton run watch {run.id}")

    run_with_client(chosen, work)


@app.command()
def backfill(
    context: typer.Context,
    name: Name,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="First moment, such as 2026-03-01.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Moment before which the range ends.")],
    check_only: Annotated[bool, typer.Option("--check-only", help="Show the times and run nothing.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Run what a schedule runs for each of its times in a range that has no run yet."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> int:
        from baton.cli.lines import print_json
        from baton.cli.output import print_table
        from baton.cli.times import time_of

        begin, past = time_of(start), time_of(end)
        if begin >= past:
            raise CommandFailed(f"--to {end} is not after --from {start}", code=ExitCode.USAGE)
        firings = await client.backfill_schedule(name, begin, past, check_only=check_only)
        refused = [each for each in firings if each.refused is not None]
        if chosen.as_json:
            told = [
                {
                    "fire_time": each.fire_time.isoformat(),
                    "run_id": each.run_id,
                    "existing": each.existing,
                    "refused": each.refused.reason if each.refused is not None else "",
                }
                for each in firings
            ]
            print_json([{key: value for key, value in each.items() if value} for each in told])
        else:
            rows = [(str(each.fire_time.astimezone()), each.run_id, _what(each, check_only)) for each in firings]
            print_table(("TIME", "RUN", ""), rows, "no time of the schedule lies in the range")
        return ExitCode.FAILED if refused else ExitCode.SUCCESS

    run_with_client(chosen, work)


@app.command("rm")
def remove(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Remove a schedule. Its runs go on."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.output import note

        await client.delete_schedule(name)
        note(f"removed {name}")

    run_with_client(chosen, work)


def _read(files: list[str]) -> list[ScheduleSource]:
    """Reads every file before anything is asked of Baton: a slip in the last one changes nothing."""
    from baton.cli.schedule_files import read_schedules

    return [each for name in files for each in read_schedules(name)]


def _state(stored: schedule_pb2.StoredSchedule) -> str:
    from baton.v1 import schedule_pb2

    return schedule_pb2.ScheduleState.Name(stored.state).removeprefix("SCHEDULE_STATE_")


def _what(firing: Any, check_only: bool) -> str:
    if firing.refused is not None:
        return f"refused: {firing.refused.message}"
    return "" if check_only else "there already" if firing.existing else "submitted"


async def _print(client: Client, chosen: Choices, stored: schedule_pb2.StoredSchedule) -> None:
    from baton.cli.lines import print_json, write
    from baton.cli.output import clean, instant, print_table, state_text, zoned
    from baton.cli.types import Types
    from baton.v1 import run_pb2, schedule_pb2

    if chosen.as_json:
        print_json(await Types(client.address).to_json(stored))
        return
    schedule = stored.schedule
    write(f"schedule {schedule.name}, {_state(stored)}: {schedule.cron} in {schedule.time_zone or 'UTC'}")
    if schedule.description:
        write(clean(schedule.description))
    if stored.HasField("pause_time"):
        note = f": {clean(stored.pause_note)}" if stored.pause_note else ""
        write(f"paused {instant(stored.pause_time)} by {clean(stored.pause_principal)}{note}")
    policy = schedule_pb2.OverlapPolicy.Name(schedule.overlap_policy or schedule_pb2.OVERLAP_POLICY_SKIP)
    write(f"runs {schedule.run.workflow}, overlap {policy.removeprefix('OVERLAP_POLICY_')}")
    counts = ("fired", "skipped", "missed", "refused")
    write(", ".join(f"{name} {getattr(stored, f'{name}_count')}" for name in counts))
    if stored.HasField("last_refusal"):
        refusal = stored.last_refusal
        write(f"last refusal, {zoned(refusal.fire_time)}: {clean(refusal.message)} [{refusal.reason}]")
    if stored.HasField("waiting_time"):
        write(f"waits for its runs to end: the firing of {zoned(stored.waiting_time)}")
    write()
    print_table(("NEXT",), [(zoned(each),) for each in stored.next_times], "it does not fire")
    rows = [
        (
            each.run_id,
            state_text(run_pb2.RunState.Name(each.state).removeprefix("RUN_STATE_")),
            each.fire_time,
            "trigger" if each.triggered else "",
            each.trace_id,
        )
        for each in stored.runs
    ]
    if rows:
        write()
        headers = ("RUN", "STATE", "FIRED", "BY", "TRACE")
        print_table(headers, rows, "", whole=("FIRED", "BY", "TRACE"), spare=("TRACE",))
