"""The waterfall of a run, written to standard output with its colours."""

from __future__ import annotations

import sys

from rich.text import Text

from baton.cli.output import console, show
from baton.v1 import run_pb2
from baton.waterfall import GLYPHS, Segment, waterfall

_STYLES = {
    Segment.QUEUE: "dim",
    Segment.ATTEMPT: "green",
    Segment.FAILED_ATTEMPT: "red",
    Segment.BACKOFF: "yellow",
    Segment.WAIT: "blue",
}


def print_waterfall(run: run_pb2.Run) -> None:
    """Draws where the time of a run went, as wide as the terminal is."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    for line in waterfall(run, min(console().width, 140), ascii_only=plain):
        text = Text(line)
        for segment, glyph in GLYPHS.items():
            text.highlight_regex(f"[{glyph}]+", _STYLES[segment])
        if line.startswith("*"):
            text.stylize("bold", 0, 1)
        show(text)
