"""What the demo shows: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160
_BAR = 40
_COLOURS = {
    "SHIPPED": "green",
    "PAYMENT_DECLINED": "yellow",
    "OUT_OF_STOCK": "magenta",
    "AWAITING_SHIPMENT": "cyan",
}


class Screen:
    """Writes to standard output."""

    def __init__(self) -> None:
        probe = Console()
        self._console = probe if probe.is_terminal else Console(width=PLAIN_WIDTH)
        self._live: Live | None = None
        self._told = 0

    @property
    def width(self) -> int:
        """Columns of the screen."""
        return self._console.width

    def title(self, text: str) -> None:
        """Begins a part."""
        self._console.print(Text.assemble("\n", ("━━ ", "blue"), (text, "bold")))

    def say(self, text: str, style: str = "") -> None:
        """Writes a line; above the live picture where there is one."""
        self._console.print(Text(text, style), soft_wrap=True)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None = None) -> None:
        """Writes a table of at most `limit` rows, and how many more there are."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for header in headers:
            if header.startswith("#"):
                table.add_column(header, no_wrap=True, justify="right")
            else:
                table.add_column(header, overflow="fold")
        for name, *others in rows[:limit]:
            # Where there is no room for all, the name is cut: it is not broken, and numbers stay whole.
            table.add_row(Text(name, no_wrap=True, overflow="ellipsis"), *map(Text, others))
        self._console.print(Padding(table, (0, 0, 0, 3), expand=False))
        if limit is not None and len(rows) > limit:
            self.say(f"   … and {len(rows) - limit} more", "dim")

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Shows what `update` tells, until the end of the block."""
        self._told = 0
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=12, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def update(self, outcomes: Mapping[str, int], under_way: int, total: int, note: str) -> None:
        """Shows how many have ended with which outcome."""
        ended = sum(outcomes.values())
        if self._live is not None:
            self._live.update(_picture(outcomes, under_way, total, note))
        elif ended // 50 > self._told or ended == total != self._told * 50:
            self._told = ended // 50
            counts = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
            self.say(f"   {ended}/{total} ended, {under_way} under way: {counts}")


def _picture(outcomes: Mapping[str, int], under_way: int, total: int, note: str) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name in (*_COLOURS, *sorted(set(outcomes) - set(_COLOURS))):
        count = outcomes.get(name, 0)
        if count or name in ("SHIPPED", "PAYMENT_DECLINED", "OUT_OF_STOCK"):
            filled = round(count * _BAR / total)
            bar = Text("█" * filled, _COLOURS.get(name, "red")).append("░" * (_BAR - filled), "dim")
            grid.add_row(f"   {name}", bar, f"{count:>3}")
    ended = sum(outcomes.values())
    grid.add_row(Text("   under way", "cyan"), Text("▪" * min(under_way, _BAR), "cyan"), f"{under_way:>3}")
    grid.add_row(Text("   ended", "bold"), Text(note, "dim"), f"{ended}/{total}")
    return grid
