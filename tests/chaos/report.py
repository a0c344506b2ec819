"""The figures of campaigns, put together and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.chaos.checker import CATEGORIES

SUMMED = (
    "injections",
    "acknowledged",
    "events",
    *CATEGORIES,
    "other",
    "lost_with_primary",
    "effects",
    "needed",
    "late_calls",
    "given_up",
    "recoveries",
)
WORST = ("recovery_p50_s", "recovery_p99_s", "peak_memory_mb", "backends_peak", "descriptors_peak", "dead_rows")
SHOWN = ("name", "injections", "acknowledged", *CATEGORIES, "other", "lost_with_primary", "effects", "needed")


def over(effects: int, needed: int) -> float | None:
    """How many effects there were for each that was needed; None where none was."""
    return round(effects / needed, 3) if needed else None


def total(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over campaigns; recoveries and what was used are the worst of any."""
    kinds: Counter[str] = sum((Counter(each["injections_by_kind"]) for each in records), Counter())
    summed = {key: sum(each[key] for each in records) for key in SUMMED}
    worst = {key: max((each[key] for each in records if each[key] is not None), default=None) for key in WORST}
    again = {"effects_over_needed": over(summed["effects"], summed["needed"])}
    return {"name": "total", **summed, **again, **worst, "injections_by_kind": dict(kinds)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Rows of the main figures, and what did not hold."""
    rows = [list(SHOWN), *([str(each[key]) for key in SHOWN] for each in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(SHOWN))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for each in records:
        lines += [f"  {each['name']}: {fault}" for fault in each.get("faults", ())]
        lines += [f"  {each['name']}: {text}" for text in each.get("unexpected_exits", ())]
    return "\n".join(lines)
