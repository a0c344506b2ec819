"""Text and JSON from files and from standard input, and what is wrong with them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from baton.cli.outcomes import CommandFailed


def read_text(name: str, limit_bytes: int | None = None) -> str:
    """Reads a file, or standard input where the name is `-`, without a byte order mark. Raises CommandFailed."""
    with _faults_told(name), _opened(name) as file:
        held = file.read() if limit_bytes is None else file.read(limit_bytes + 1)
        if limit_bytes is not None and len(held) > limit_bytes:
            raise CommandFailed(f"{_shown(name)}: larger than {limit_bytes >> 20} MiB")
        return held.decode("utf-8-sig")


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """Reads line after line, with their numbers; empty lines are passed over. Raises CommandFailed."""
    with _faults_told(name), _opened(name) as file:
        # Not splitlines: JSON may hold other characters that Python takes for ends of lines.
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig")
            if text.strip():
                yield number, text


def read_json(name: str) -> Any:
    """Reads one JSON document from a file, or from standard input where the name is `-`. Raises CommandFailed."""
    if "=" in name and not os.path.exists(name):
        cure = f"did you mean -i {shlex.quote(name)}?"
        raise CommandFailed(f"cannot read {name}: --input names a file, and there is none", cure)
    return parse_json(read_text(name), _shown(name))


def parse_json(text: str, place: str = "") -> Any:
    """Reads one JSON document that stands at a place. Raises CommandFailed."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}: " if place else ""
        raise CommandFailed(f"{where}not one JSON document: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise CommandFailed(f"{place}: {why}" if place else why) from None


def _shown(name: str) -> str:
    return "standard input" if name == "-" else name


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    """As bytes: Python lets what is not UTF-8 pass on standard input."""
    if name != "-":
        return Path(name).open("rb")
    if sys.stdin is None:
        raise CommandFailed("standard input is closed")
    return nullcontext(sys.stdin.buffer)


@contextmanager
def _faults_told(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"cannot read {_shown(name)}: {error.strerror or 'it cannot be read'}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"cannot read {_shown(name)}: it is not UTF-8") from None
