"""Lines and JSON documents on standard output, as they are. What is laid out for people is in output.py."""

from __future__ import annotations

import json
import sys
from typing import Any


def write(text: str = "") -> None:
    """Writes a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Writes one JSON document to standard output: indented for a terminal, else on one line."""
    write(_json_text(value, indent=2 if sys.stdout.isatty() else None))


def print_json_line(value: Any) -> None:
    """Writes one line of a stream of JSON documents."""
    write(_json_text(value, indent=None))


def _json_text(value: Any, indent: int | None) -> str:
    every_letter = sys.stdout.encoding.lower() in ("utf-8", "utf8")
    return json.dumps(value, ensure_ascii=not every_letter, indent=indent)
