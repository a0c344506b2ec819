"""`baton dev`, `baton serve` and `baton migrate`: the only commands that need the server's package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli import serving
from baton.cli.lines import print_json, print_json_line, write
from baton.cli.outcomes import Choices
from baton.cli.session import OutputOption, choices

if TYPE_CHECKING:
    from orchestrator.config import Settings

DIRECTORY_VARIABLE = "BATON_DEV_DIRECTORY"

Listen = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address to listen on. Default: BATON_LISTEN_ADDRESS, else 127.0.0.1:7330."),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (dev, serve, migrate):
        app.command()(command)


def dev(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Where data is kept. Default: {DIRECTORY_VARIABLE}, else below ~/.local."),
    ] = None,
    listen: Listen = None,
    postgres_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Let Postgres listen on this port of 127.0.0.1 too.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Start Baton with a Postgres of its own.

    Its data stays in a directory between starts.
    """
    chosen = choices(context, None, output)
    place = directory or default_directory()

    def work() -> None:
        settings = serving.server_settings(listen)
        from orchestrator.postgres.embedded import EmbeddedPostgres

        # Postgres is forked before grpc is imported: grpc's threads do not survive a fork.
        with EmbeddedPostgres(place, port=postgres_port) as postgres:
            made = serving.run_loop(serving.migrate_schema(postgres.dsn))
            serving.configure_server_logs()
            if made and not chosen.as_json:
                from baton.cli.output import note

                note(f"prepared the database in {place}")
            shown = postgres.tcp_dsn if postgres_port else postgres.dsn
            serving.serve_until_signal(
                settings, postgres.dsn, lambda port: _tell_dev(chosen, settings, port, shown, place)
            )

    serving.leave(serving.ended(chosen, work))


def serve(
    context: typer.Context,
    listen: Listen = None,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", help="So many servers on the one address, kept running; Linux. Default: this one."),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Start Baton on a Postgres that is there.

    The environment names it: BATON_DATABASE_URL, or PGHOST and the other PG* variables.
    """
    serving.serve(choices(context, None, output), listen, processes)


def migrate(
    context: typer.Context,
    database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Database. Default: BATON_DATABASE_URL, else PG*.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Bring the database's schema to the newest version."""
    chosen = choices(context, None, output)

    def work() -> None:
        applied = serving.run_loop(serving.migrate_schema(serving.named_dsn(database_url)))
        if chosen.as_json:
            print_json({"applied": applied})
        elif applied:
            write("\n".join(f"applied {name}" for name in applied))
        else:
            from baton.cli.output import note

            note("the schema is up to date")

    raise typer.Exit(serving.ended(chosen, work))


def default_directory() -> Path:
    """Where `baton dev` keeps its data unless told otherwise."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "baton" / "dev"


def _tell_dev(chosen: Choices, settings: Settings, port: int, dsn: str, place: Path) -> None:
    from baton.cli.output import clean, console, styled

    address = serving.shown_address(settings, port)
    if chosen.as_json:
        print_json_line({"address": address, "dsn": dsn, "directory": str(place)})
        return
    server = "" if address == "127.0.0.1:7330" else f" --server {address}"
    lines = [
        ("gRPC", address),
        ("Postgres", dsn),
        ("data", str(place)),
    ]
    show = console()
    show.print(styled("\nBaton is up.\n", "bold green"))
    for name, value in lines:
        show.print(styled(f"  {name:<9} ", "bold"), clean(value), sep="", soft_wrap=True)
    show.print(styled("\nNext, in another terminal:\n", "bold"))
    for command, why in (
        (f"baton{server} worker add NAME HOST:PORT", "any gRPC server with reflection"),
        (f"baton{server} workflow apply FILE.yaml", ""),
        (f"baton{server} run submit WORKFLOW -i field=value --watch", ""),
        (f"baton{server} run ls", ""),
        (f'psql "{dsn}"', ""),
    ):
        show.print(f"  {command}", styled(f"   {why}" if why else "", "dim"), sep="", soft_wrap=True)
    show.print(styled("\nCtrl-C drains and stops; once more stops at once.\n", "dim"))
    sys.stdout.flush()
