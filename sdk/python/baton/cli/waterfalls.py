"""The waterfall of a run, written to standard output with its colours."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from rich.text import Text

from baton.cli.output import console, show
from baton.v1 import run_pb2
from baton.waterfall import GLYPHS, Segment, waterfall

_STYLES = {
    Segment.ATTEMPT: "green",
    Segment.FAILED_ATTEMPT: "red",
    Segment.BACKOFF: "yellow",
    Segment.QUEUE: "dim",
    Segment.PERMIT: "yellow",
    Segment.SLEEP: "blue",
    Segment.SIGNAL: "cyan",
    Segment.APPROVAL: "magenta",
    Segment.CHILDREN: "dim",
}
_STYLE_OF = {glyph: _STYLES[segment] for segment, glyph in GLYPHS.items()}


def print_waterfall(run: run_pb2.Run) -> None:
    """Draws where the time of a run went, as wide as the terminal is."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    now = time.time_ns() // 1_000  # What the server tells of may be a little ahead of this clock.
    for line in waterfall(run, min(console().width, 140), now=now, ascii_only=plain):
        text = Text(line)
        for place in _signs(line):
            if line[place] in _STYLE_OF:
                text.stylize(_STYLE_OF[line[place]], place, place + 1)
        if line.startswith("*"):
            text.stylize("bold", 0, 1)
        show(text)


def _signs(line: str) -> Iterable[int]:
    """Places of the signs of a bar, or of a legend: the same letters occur in names and labels."""
    first, last = line.find("|"), line.rfind("|")
    if first >= 0:
        return range(first + 1, last)
    return (place for place in range(2, len(line)) if line[place - 2 : place] == "  ")
