"""Loads named SQL from `queries/*.sql`. A query begins with `-- name: the_name` and a sentence on what it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def load(file: str) -> Mapping[str, str]:
    """Loads the queries of `queries/<file>.sql` by name."""
    text = resources.files(__package__).joinpath("queries", f"{file}.sql").read_text("utf-8")
    _, *parts = _NAME.split(text)
    return {name: _without_comments(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _without_comments(body: str) -> str:
    lines = (line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--"))
    return "\n".join(lines)
