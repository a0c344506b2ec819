"""Lengths of time as people type them."""

from __future__ import annotations

import re

from baton.cli.outcomes import CommandFailed, ExitCode

_LENGTH = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h)?")
_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0}


def seconds_of(text: str) -> float:
    """Reads `30`, `30s`, `500ms`, `5m` or `1h` as seconds. Raises CommandFailed."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise CommandFailed(f"{text} is not a length of time", "give one such as 30s, 500ms or 5m", ExitCode.USAGE)
    return float(match["number"]) * _SECONDS[match["unit"]]
