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


_WHOLE = (
    "RUN",
    "STEP",
    "STATE",
    "ATTEMPTS",
    "TIME",
    "HASH",
    "SUBMITTED",
    "APPLIED",
    "ASKED",
    "EXPIRES",
    "ADDRESS",
    "METHOD",
)
"""Columns that are never broken on a narrow terminal: ids stay fit for reading and copying."""

_CUT = ("WORKFLOW", "WORKER")
"""Columns that are cut, not broken, where a terminal is too narrow for all the others."""

_FOLDED_WIDTH = 24
"""Least columns of a terminal for a text that may be broken."""

_GAP = 2

Cell = str | Text | Timestamp
"""What stands in a table: a time is shown as far as there is room."""


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
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for header in headers:
        kept = header in _WHOLE or header in whole
        table.add_column(header, overflow="ellipsis" if kept or header in _CUT else "fold", no_wrap=kept)
    return table


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    empty: str,
    whole: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Writes rows as a table whose columns `whole` are not broken, or tells on standard error that there are none.

    On a terminal that is too narrow, times are shortened, then columns `spare` are left out, the first of them first;
    standard error says which.
    """
    held = list(rows)
    if not held:
        note(empty)
        return
    width = console().width if console().is_terminal else None
    shown, cells = fitting(headers, held, width, whole, spare)
    table = new_table(shown, whole)
    for row in cells:
        table.add_row(*row)
    show(table)
    left_out = [header for header in headers if header not in shown]
    if left_out:
        note(f"no room for {', '.join(left_out)}; -o json tells all")


def fitting(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    width: int | None,
    whole: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> tuple[list[str], list[list[Text]]]:
    """The headers and cells that a screen of `width` columns has room for, None for any; see print_table."""
    shown = list(headers)
    cells = [[_cell(cell, brief=False) for cell in row] for row in rows]
    if width is None or _needed(shown, cells, whole) <= width:
        return shown, cells
    cells = [[_cell(cell, brief=True) for cell in row] for row in rows]
    for header in spare:
        if _needed(shown, cells, whole) <= width:
            break
        place = shown.index(header)
        del shown[place]
        for row in cells:
            del row[place]
    return shown, cells


def _needed(headers: Sequence[str], rows: Sequence[Sequence[Text]], whole: Sequence[str]) -> int:
    """Columns of a screen that a table takes where no column that may be broken is too narrow to be read."""
    total = -_GAP
    for place, header in enumerate(headers):
        widest = max(len(header), *(row[place].cell_len for row in rows))
        kept = header in _WHOLE or header in _CUT or header in whole
        total += _GAP + (widest if kept else min(widest, max(len(header), _FOLDED_WIDTH)))
    return total


def _cell(cell: Cell, *, brief: bool) -> Text:
    if isinstance(cell, Timestamp):
        return Text(_brief(cell) if brief else instant(cell))
    return cell if isinstance(cell, Text) else Text(clean(cell))


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


def zoned(time: Timestamp) -> str:
    """An instant in local time, to the second, with its distance from UTC; empty where it is not set."""
    return f"{datetime.fromtimestamp(time.seconds, UTC).astimezone()}" if time.seconds else ""


def _brief(time: Timestamp) -> str:
    """The time of day of an instant of today, of another the day and the minute; empty where it is not set."""
    if not time.seconds:
        return ""
    moment, today = datetime.fromtimestamp(time.seconds, UTC).astimezone(), datetime.now().astimezone()
    return f"{moment:%H:%M:%S}" if moment.date() == today.date() else f"{moment:%m-%d %H:%M}"


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
