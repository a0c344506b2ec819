"""Times and lengths of time as people type them."""

from __future__ import annotations

import re
from datetime import datetime

from baton.cli.outcomes import CommandFailed, ExitCode

_LENGTH = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h)?")
_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0}


def seconds_of(text: str) -> float:
    """Reads `30`, `30s`, `500ms`, `5m` or `1h` as seconds. Raises CommandFailed."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise CommandFailed(f"{text} is not a length of time", "give one such as 30s, 500ms or 5m", ExitCode.USAGE)
    return float(match["number"]) * _SECONDS[match["unit"]]


def time_of(text: str) -> datetime:
    """Reads `2026-03-01`, `2026-03-01T02:00` (both in local time) or `2026-03-01T02:00Z`. Raises CommandFailed."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        cure = "give one such as 2026-03-01, 2026-03-01T02:00 or 2026-03-01T02:00Z"
        raise CommandFailed(f"{text} is not a time", cure, ExitCode.USAGE) from None
    return time if time.tzinfo is not None else time.astimezone()
