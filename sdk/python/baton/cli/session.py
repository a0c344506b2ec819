"""What every command shares: its options, its exit codes, and one place that runs it and tells of its errors."""

from __future__ import annotations

import enum
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from baton.client import Client

RETRY_SECONDS = 2.0
"""How long a call is repeated while Baton is away: a person at a terminal wants to know soon."""


class OutputForm(enum.StrEnum):
    """Form of the data on standard output."""

    TABLE = "table"
    JSON = "json"


class ExitCode(enum.IntEnum):
    """What the command ended with; told in `baton --help`."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    RUN_FAILED = 3
    RUN_CANCELLED = 4
    WAIT_OVER = 5
    NOT_FOUND = 6
    INTERRUPTED = 130


ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", "-s", metavar="ADDRESS", help="Address of Baton. Default: BATON_ADDRESS, else 127.0.0.1:7330."
    ),
]
OutputOption = Annotated[
    OutputForm | None, typer.Option("--output", "-o", help="Tables for people, JSON for programs.")
]


class CommandFailed(Exception):
    """The command cannot do what it was asked; the text tells why, `cure` what to do about it."""

    def __init__(self, message: str, cure: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.code = code


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen for every command: `address` of Baton, None for the default, and the form of the output."""

    address: str | None
    output: OutputForm

    @property
    def as_json(self) -> bool:
        """Whether data is written as JSON."""
        return self.output is OutputForm.JSON


def choices(context: typer.Context, address: str | None, output: OutputForm | None) -> Choices:
    """Joins the options of a command with those before it; the nearer ones count."""
    outer = context.obj if isinstance(context.obj, Choices) else Choices(None, OutputForm.TABLE)
    return Choices(address or outer.address, output or outer.output)


def run_with_client(chosen: Choices, work: Callable[[Client], Awaitable[int | None]]) -> None:
    """Runs `work` with a client and ends the command with the code that it returns, or with that of its error."""
    from baton.client import Client

    async def with_client() -> int | None:
        async with Client(chosen.address, retry_timeout=RETRY_SECONDS, channel_name="cli") as client:
            return await work(client)

    run_command(chosen, with_client)


def run_command(chosen: Choices, work: Callable[[], Awaitable[int | None]]) -> None:
    """Runs `work` on an event loop; see run_with_client."""
    import asyncio

    from baton.cli.reports import report_error
    from baton.errors import BatonError, WaitTimeout

    async def awaited() -> int | None:
        return await work()

    try:
        code = asyncio.run(awaited())
    except (BatonError, WaitTimeout, CommandFailed) as error:
        code = report_error(error, chosen)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough, as `| head` does; nothing more can be written, also not at exit.
        sys.stdout = None
        code = ExitCode.SUCCESS
    if code:
        raise typer.Exit(code)
