"""How long the product's statements take in Postgres, by the log of Postgres itself: without the network and the
commit.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.postgres.sql import load
from tests.chaos.checker import percentile
from tests.chaos.database import Database

CLAIMS = ("marked", "emptied", "adopt", "oldest_parked", "wake", "park", "poke", "renew")
"""What replicas ask of ownership; `oldest_parked` and the two before `adopt` were not there from the beginning."""

JOURNAL = ("write_batch", "continue_batch")

_EXECUTED = re.compile(
    r"^\S+ \S+ \S+ \[\d+\] LOG:  duration: (?P<ms>[\d.]+) ms  execute [^:\n]+: (?P<text>.*(?:\n\t.*|\n(?!\S))*)",
    re.MULTILINE,
)


@dataclass(slots=True)
class Durations:
    """Of each statement the times that it took, in seconds."""

    by_statement: dict[str, list[float]] = field(default_factory=dict)

    def of(self, statements: Iterable[str]) -> tuple[float, ...]:
        """All times of some statements."""
        return tuple(seconds for name in statements for seconds in self.by_statement.get(name, ()))

    def figures(self, statements: Iterable[str]) -> dict[str, Any]:
        """How many there were of all these statements, and the times of most, in milliseconds."""
        seconds = self.of(statements)
        shares = {name: percentile(seconds, share) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
        return {"count": len(seconds)} | {
            name: None if value is None else round(1000 * value, 3) for name, value in shares.items()
        }


@asynccontextmanager
async def measured(database: Database) -> AsyncIterator[Durations]:
    """Has Postgres log each statement meanwhile; the times are there at the end."""
    durations = Durations()
    begin = database.log.stat().st_size
    await database.set(log_min_duration_statement="0", log_parameter_max_length="0")
    try:
        yield durations
    finally:
        await database.set(log_min_duration_statement=None, log_parameter_max_length=None)
        durations.by_statement = _read(database.log, begin)


def _names() -> Mapping[str, str]:
    texts = [(name, text) for file in ("replicas", "journal") for name, text in load(file).items()]
    return {" ".join(text.split()): name for name, text in texts if name in (*CLAIMS, *JOURNAL)}


def _read(log: Path, begin: int) -> dict[str, list[float]]:
    names = _names()
    found: dict[str, list[float]] = {}
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    for match in _EXECUTED.finditer(text):
        name = names.get(" ".join(match["text"].split()))
        if name is not None:
            found.setdefault(name, []).append(float(match["ms"]) / 1000)
    return found
