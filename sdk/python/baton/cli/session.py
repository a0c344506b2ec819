"""What every command shares: its options, and one place that runs it and tells of its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.outcomes import Choices, CommandFailed, ExitCode, OutputForm, output_fault

if TYPE_CHECKING:
    from baton.client import Client

PRINCIPAL_VARIABLE = "BATON_PRINCIPAL"
RETRY_SECONDS = 2.0
"""How long a call is repeated while Baton is away: a person at a terminal wants to know soon."""


ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", "-s", metavar="ADDRESS", help="Address of Baton. Default: BATON_ADDRESS, else 127.0.0.1:7330."
    ),
]
OutputOption = Annotated[
    OutputForm | None, typer.Option("--output", "-o", help="Tables for people, JSON for programs.")
]

PrincipalOption = Annotated[
    str | None,
    typer.Option("--principal", metavar="NAME", help="Who you are to a development server. Default: BATON_PRINCIPAL."),
]

NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Namespace of a development server. Default: BATON_NAMESPACE, else default.",
    ),
]


def choices(
    context: typer.Context, address: str | None, output: OutputForm | None, principal: str | None = None
) -> Choices:
    """Joins the options of a command with those before it; the nearer ones count."""
    outer = context.obj if isinstance(context.obj, Choices) else Choices(None, OutputForm.TABLE)
    who = principal or outer.principal or os.environ.get(PRINCIPAL_VARIABLE, "")
    return Choices(address or outer.address, output or outer.output, who, outer.namespace)


def run_with_client(chosen: Choices, work: Callable[[Client], Awaitable[int | None]]) -> None:
    """Runs `work` with a client and ends the command with the code that it returns, or with that of its error."""
    from baton.client import Client

    async def with_client() -> int | None:
        async with Client(
            chosen.address,
            retry_timeout=RETRY_SECONDS,
            channel_name="cli",
            principal=chosen.principal,
            namespace=chosen.namespace,
        ) as client:
            return await work(client)

    run_command(chosen, with_client)


def run_command(chosen: Choices, work: Callable[[], Awaitable[int | None]]) -> None:
    """Runs `work` on an event loop; see run_with_client."""
    import asyncio

    async def awaited() -> int | None:
        return await work()

    with errors_told(chosen):
        if sys.stdout is None:
            raise CommandFailed("standard output is closed", "give it a place to write to, such as > /dev/null")
        code = asyncio.run(awaited())
        if code:
            raise typer.Exit(code)


@contextmanager
def errors_told(chosen: Choices) -> Iterator[None]:
    """Tells of an error that a person can mend, and ends the command with its code."""
    from baton.cli.reports import report_error
    from baton.errors import BatonError, WaitTimeout

    try:
        yield
    except (BatonError, WaitTimeout, CommandFailed) as error:
        raise typer.Exit(report_error(error, chosen)) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has seen enough, as `| head` does; nothing more can be written, also not at exit.
        sys.stdout = None
        raise typer.Exit(ExitCode.SUCCESS) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        fault = output_fault(error) or CommandFailed(f"{error.filename}: {why}" if error.filename else why)
        raise typer.Exit(report_error(fault, chosen)) from None
