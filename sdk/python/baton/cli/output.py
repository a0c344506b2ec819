"""Forms of output for people: tables, states with their colours, times and lengths. Nothing here asks a server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baton.cli.lines import write

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 200
"""Columns of a table that is not written to a terminal."""

_COLOURS = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "RUNNING": "cyan",
    "WAITING": "blue",
    "UNDOING": "yellow",
    "READY": "yellow",
    "BLOCKED": "dim",
    "SKIPPED": "dim",
    "PENDING": "dim",
    "ACTIVE": "green",
    "PAUSED": "yellow",
    "ENDED": "dim",
    "LOST": "red",
    "DRAINING": "yellow",
    "SERVING": "green",
    "NOT_SERVING": "yellow",
    "UNREACHABLE": "red",
    "CLOSED": "green",
    "OPEN": "red",
    "HALF_OPEN": "yellow",
}


_WHOLE = ("RUN", "STEP", "STATE", "ATTEMPTS", "TIME", "HASH")
"""Columns that are never broken on a narrow terminal: ids stay fit for reading and copying."""


@cache
def console() -> Console:
    """Standard output."""
    return Console(
        width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=not sys.stdout.isatty()
    )


@cache
def error_console() -> Console:
    """Standard error. Long lines are the terminal's to wrap."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def note(text: str) -> None:
    """Writes a remark for a person to standard error."""
    error_console().print(Text(text, "dim"))


def clean(text: str) -> str:
    """Takes out what could steer a terminal: names and messages come from workers and other callers."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def styled(text: str, style: str) -> Text:
    """Text in a style."""
    return Text(text, style)


def state_text(name: str) -> Text:
    """The name of a state, in its colour."""
    return Text(name, _COLOURS.get(name, ""))


def new_table(headers: Sequence[str], whole: Sequence[str] = ()) -> Table:
    """Makes a table without frames; the columns `whole` are never broken either."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        if header in _WHOLE or header in whole:
            table.add_column(header, overflow="ellipsis", no_wrap=True)
        else:
            table.add_column(header, overflow="fold")
    return table


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str | Text]], empty: str, whole: Sequence[str] = ()
) -> None:
    """Writes rows as a table whose columns `whole` are not broken, or tells on standard error that there are none."""
    table = new_table(headers, whole)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    if table.row_count:
        show(table)
    else:
        note(empty)


def show(renderable: RenderableType) -> None:
    """Writes to standard output, without blanks at the ends of lines where it is not a terminal."""
    target = console()
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable, soft_wrap=False)
    write("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def instant(time: Timestamp) -> str:
    """An instant in local time, to the millisecond; empty where it is not set."""
    if not time.seconds:
        return ""
    moment = datetime.fromtimestamp(time.seconds, UTC).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time.nanos // 1_000_000:03}"


def clock(time: Timestamp) -> str:
    """The time of day of an instant, to the millisecond."""
    return instant(time).partition(" ")[2]


def micros(time: Timestamp) -> int:
    """An instant as microseconds since the Unix epoch."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def length(length_us: int) -> str:
    """A length of time in the unit that reads best."""
    if length_us < 1_000_000:
        return f"{length_us / 1_000:.1f} ms"
    if length_us < 60_000_000:
        return f"{length_us / 1_000_000:.2f} s"
    seconds = length_us // 1_000_000
    if seconds < 3_600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3_600} h {seconds % 3_600 // 60} min"
