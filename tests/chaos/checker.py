"""Judges the evidence of a campaign: runs every query of `invariants.sql`, and computes the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

CATEGORIES = ("lost", "duplicated", "double_transitions", "stale_writes_accepted", "watch_gaps")
"""Categories that have a figure of their own in the report; faults of all others are counted together."""

SHOWN = 5
"""Rows of a fault that are shown."""


def load_invariants() -> Mapping[str, str]:
    """Reads the queries by name."""
    text = Path(__file__).with_name("invariants.sql").read_text("utf-8")
    _, *parts = re.split(r"^-- name: (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that did not hold: which query found it, in how many rows, and the first of them."""

    name: str
    count: int
    rows: tuple[str, ...]

    @property
    def category(self) -> str:
        """What kind of promise was broken."""
        return self.name.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.name}: {self.count}, such as {'; '.join(self.rows)}"


_AGAIN = """
WITH answered AS (
    SELECT *, row_number() OVER (PARTITION BY run, step ORDER BY attempt DESC, delivery DESC, time DESC) AS rank
    FROM chaos.call WHERE what = 'answered'
)
SELECT cause, count(*) AS times FROM (
    SELECT CASE
        WHEN a.step = 'b' AND a.attempt = 1 AND k.conduct IN ('late', 'hang') THEN 'ASKED_FOR'
        WHEN EXISTS (
            SELECT FROM chaos.event AS d
            WHERE d.run = a.run AND d.step = a.step AND d.kind = 12
                AND d.attempt = a.attempt AND d.delivery > a.delivery
        ) THEN 'DELIVERED_AGAIN'
        ELSE coalesce((
            SELECT f.reason FROM chaos.event AS f
            WHERE f.run = a.run AND f.step = a.step AND f.kind = 13 AND f.attempt = a.attempt LIMIT 1
        ), 'OTHER') END AS cause
    FROM answered AS a LEFT JOIN (SELECT DISTINCT run, conduct FROM chaos.acknowledged) AS k ON k.run = a.run
    WHERE a.rank > 1
) AS causes GROUP BY cause ORDER BY times DESC
"""
"""Why answers were not the last of their step: a worker that is late as it was told to be, a call that the next owner
made again, or the reason for which the attempt failed."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a campaign measured. Recovery: from a replica's death to the first event of a run taken over from it."""

    acknowledged: int
    lost_with_primary: Mapping[str, int]
    """What was told of commits that a standby lacked when it took over, by what it was: see lost_with_primary.sql. An
    acknowledged submission among them is not counted as lost."""
    effects: int
    needed: int
    again: Mapping[str, int]
    """Effects beyond those needed, by their cause: see `_AGAIN`."""
    events: int
    late_calls: int
    """Calls that reached a worker after one of a later owner: what the epoch in each call is for."""
    given_up: int
    """Runs that ended with DELIVERY_LIMIT: a call was under way at three deaths of their owners."""
    recovery_seconds: tuple[float, ...]


async def find_faults(connection: asyncpg.Connection[asyncpg.Record]) -> list[Fault]:
    """Runs every query."""
    faults = []
    for name, query in load_invariants().items():
        rows = await connection.fetch(query)
        if rows:
            faults.append(Fault(name, len(rows), tuple(str(dict(row)) for row in rows[:SHOWN])))
    return faults


def counted(faults: list[Fault]) -> dict[str, int]:
    """Faults by category; `other` are those without a figure of their own."""
    counts = Counter(dict.fromkeys((*CATEGORIES, "other"), 0))
    for fault in faults:
        counts[fault.category if fault.category in CATEGORIES else "other"] += fault.count
    return dict(counts)


async def measure(connection: asyncpg.Connection[asyncpg.Record]) -> Figures:
    """Computes the figures."""
    answered = "SELECT count(*), count(DISTINCT (run, step)) FROM chaos.call WHERE what = 'answered'"
    effects, needed = await connection.fetchrow(answered) or (0, 0)
    late = (
        "SELECT count(*) FROM (SELECT epoch, max(epoch) OVER (PARTITION BY run ORDER BY time, epoch DESC) AS before"
        " FROM chaos.call WHERE what = 'arrived') AS c WHERE epoch < before"
    )
    recoveries = await connection.fetch(
        "SELECT (min(e.time) - d.time) / 1000000.0 AS seconds FROM chaos.death AS d"
        " JOIN chaos.claim AS c ON c.previous_owner = d.replica"
        " JOIN chaos.event AS e ON e.run = c.run AND e.epoch = c.epoch GROUP BY d.replica, d.time ORDER BY 1"
    )
    gone = await connection.fetch("SELECT what, count(*) AS times FROM chaos.lost_with_primary GROUP BY what")
    acknowledged = (
        "SELECT count(DISTINCT request) FROM (SELECT request FROM chaos.acknowledged UNION ALL"
        " SELECT request FROM chaos.lost_with_primary WHERE what = 'submission') AS a"
    )
    return Figures(
        await connection.fetchval(acknowledged),
        {row["what"]: row["times"] for row in gone},
        effects,
        needed,
        {row["cause"]: row["times"] for row in await connection.fetch(_AGAIN)},
        await connection.fetchval("SELECT count(*) FROM chaos.event"),
        await connection.fetchval(late),
        await connection.fetchval("SELECT count(*) FROM chaos.event WHERE kind = 20 AND reason = 'DELIVERY_LIMIT'"),
        tuple(float(row["seconds"]) for row in recoveries),
    )


def percentile(values: tuple[float, ...], share: float) -> float | None:
    """The value that `share` of all are not above; None without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
