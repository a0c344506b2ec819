"""`baton dev`, `baton serve` and `baton migrate`: the only commands that need the server's package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from baton.cli.session import Choices, CommandFailed, ExitCode, OutputOption, choices, output_fault

if TYPE_CHECKING:
    from orchestrator.config import Settings

T = TypeVar("T")

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
        settings = _settings(listen)
        from orchestrator.postgres.embedded import EmbeddedPostgres

        # Postgres is forked before grpc is imported: grpc's threads do not survive a fork.
        with EmbeddedPostgres(place, port=postgres_port) as postgres:
            made = _await(_migrate(postgres.dsn))
            _configure_logs()
            if made and not chosen.as_json:
                _note(f"prepared the database in {place}")
            shown = postgres.tcp_dsn if postgres_port else postgres.dsn
            _serve(settings, postgres.dsn, lambda port: _tell_dev(chosen, settings, port, shown, place))

    _run(chosen, work)


def serve(context: typer.Context, listen: Listen = None, output: OutputOption = None) -> None:
    """Start Baton on a Postgres that is there.

    The environment names it: BATON_DATABASE_URL, or PGHOST and the other PG* variables.
    """
    chosen = choices(context, None, output)

    def work() -> None:
        settings = _settings(listen)
        dsn = _dsn(None)
        _configure_logs()
        _serve(settings, dsn, lambda port: _tell_serve(chosen, settings, port))

    _run(chosen, work)


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
        from baton.cli.output import print_json, write

        applied = _await(_migrate(_dsn(database_url)))
        if chosen.as_json:
            print_json({"applied": applied})
        elif applied:
            write("\n".join(f"applied {name}" for name in applied))
        else:
            _note("the schema is up to date")

    _run(chosen, work)


def default_directory() -> Path:
    """Where `baton dev` keeps its data unless told otherwise."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "baton" / "dev"


def _run(chosen: Choices, work: Callable[[], None]) -> None:
    """Runs `work` and tells of the errors that a person can mend."""
    from baton.cli.reports import report_error

    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - a service may have none
    try:
        try:
            work()
        except ImportError as error:
            package = (error.name or "").partition(".")[0]
            if package == "baton":
                raise
            raise CommandFailed(
                f"the server is not installed: {package or error} is missing",
                "pip install 'baton[server,embedded]'",
            ) from error
        except CommandFailed:
            raise
        except Exception as error:
            told = _foreseen(error)
            if told is None:
                raise
            raise told from error
    except CommandFailed as failed:
        raise typer.Exit(report_error(failed, chosen)) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _foreseen(error: Exception) -> CommandFailed | None:
    """Turns an error whose text is for a person into one of this command; None for any other."""
    if isinstance(error, OSError):
        return output_fault(error)
    from orchestrator.config import SettingInvalid
    from orchestrator.domain.errors import DatabaseUnavailable
    from orchestrator.postgres.errors import EmbeddedPostgresError, RoleError, SchemaError
    from orchestrator.telemetry.settings import TelemetrySettingInvalid

    if isinstance(error, DatabaseUnavailable):
        return CommandFailed(
            "the database does not answer", "check that it runs, and BATON_DATABASE_URL or PG*; or use `baton dev`"
        )
    known = (EmbeddedPostgresError, RoleError, SchemaError, SettingInvalid, TelemetrySettingInvalid)
    # AddressUnavailable is looked up only where the server has been imported.
    rpc_server = sys.modules.get("orchestrator.rpc.server")
    if isinstance(error, known) or (rpc_server is not None and isinstance(error, rpc_server.AddressUnavailable)):
        return CommandFailed(str(error))
    return None


def _settings(listen: str | None) -> Settings:
    from dataclasses import replace

    from orchestrator.config import read_settings

    settings = read_settings(os.environ)
    return replace(settings, listen_address=listen) if listen else settings


def _dsn(given: str | None) -> str:
    from orchestrator.postgres.pool import dsn_from_environment

    dsn = given or dsn_from_environment()
    if not dsn:
        raise CommandFailed(
            "no database is named",
            "set BATON_DATABASE_URL=postgresql://user:password@host/database, or PGHOST and its like; "
            "or start `baton dev`, which brings its own",
        )
    return dsn


async def _migrate(dsn: str) -> list[str]:
    from orchestrator.postgres.migrate import migrate as apply_migrations

    return await apply_migrations(dsn)


def _configure_logs() -> None:
    from orchestrator.telemetry.logs import configure_logs, log_settings

    configure_logs(log_settings(os.environ, terminal=sys.stderr.isatty()))


def _serve(settings: Settings, dsn: str, on_ready: Callable[[int], None]) -> None:
    from orchestrator.app import serve as serve_until_signal

    _await(serve_until_signal(settings, dsn, on_ready))


def _await(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on uvloop where it is installed: it serves more calls in the same time."""
    import asyncio
    import importlib.util

    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _address(settings: Settings, port: int) -> str:
    host = settings.listen_address.rpartition(":")[0]
    # 0.0.0.0 and [::] are listened on, not called.
    return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]', '') else host}:{port}"


def _tell_serve(chosen: Choices, settings: Settings, port: int) -> None:
    from baton.cli.output import print_json_line, write

    address = _address(settings, port)
    if chosen.as_json:
        print_json_line({"address": address})
    else:
        write(f"Baton serves at {address}")


def _tell_dev(chosen: Choices, settings: Settings, port: int, dsn: str, place: Path) -> None:
    from baton.cli.output import clean, console, print_json_line, styled

    address = _address(settings, port)
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


def _note(text: str) -> None:
    from baton.cli.output import note

    note(text)
