"""The whole command line: every command and its options, its help and its exit codes.

Nothing heavy is imported until a command runs, so that `--help` and completion answer at once. Only the commands
`dev`, `serve` and `migrate` need the server's package.
"""

from __future__ import annotations

from typing import Annotated

import typer

from baton.cli import approval, health, limit, replica, run, schedule, server, worker, workflow
from baton.cli.outcomes import Choices, OutputForm
from baton.cli.session import NamespaceOption, OutputOption, PrincipalOption, ServerOption

_EPILOG = """\b
Exit codes:
  0  success
  1  the command failed: it was refused, or Baton could not be reached
  2  the command line is wrong
  3  the run ended as FAILED    (run submit --wait or --watch, run wait, run watch)
  4  the run ended as CANCELLED (likewise)
  5  the wait was over before the run
  6  no worker, workflow, revision, run, schedule or limit of this name
\b
Start with: baton dev
"""

app = typer.Typer(
    name="baton",
    help="Typed gRPC orchestration: workflows, workers, runs and schedules.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"baton {version('baton')}")
        raise typer.Exit


@app.callback()
def choose(
    context: typer.Context,
    address: ServerOption = None,
    output: OutputOption = None,
    principal: PrincipalOption = None,
    namespace: NamespaceOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Typed gRPC orchestration: workflows, workers, runs and schedules.

    Every command takes --server and --output too. Data goes to standard output, everything else to standard error.
    """
    context.obj = Choices(address, output or OutputForm.TABLE, principal or "", namespace)


server.add_to(app)
health.add_to(app)
app.add_typer(worker.app, name="worker")
app.add_typer(workflow.app, name="workflow")
app.add_typer(run.app, name="run")
app.add_typer(approval.app, name="approval")
app.add_typer(schedule.app, name="schedule")
app.add_typer(limit.app, name="limit")
app.add_typer(replica.app, name="replica")
