"""The points of the curves as records and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.record import Record


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of one curve at one size; the unit of each figure is the last part of its name."""

    curve: str
    size: int
    figures: Mapping[str, float]

    def records(self) -> Iterator[Record]:
        """Yields each figure as it is written."""
        for metric, value in self.figures.items():
            yield Record("baton-unary", self.curve, metric, value, 1, f"size={self.size}")


def table(machine: Mapping[str, object], points: Sequence[Point]) -> str:
    """Renders every curve as a row for each figure and a column for each size, as Markdown."""
    lines = ["; ".join(f"{name} {value}" for name, value in machine.items())]
    for curve, group in groupby(points, key=lambda point: point.curve):
        its_points = list(group)
        lines += ["", f"| {curve} | " + " | ".join(f"{point.size:,}" for point in its_points) + " | last / first |"]
        lines.append("|---|" + "---:|" * (len(its_points) + 1))
        for metric in dict.fromkeys(metric for point in its_points for metric in point.figures):
            values = [point.figures.get(metric) for point in its_points]
            shown = " | ".join("" if value is None else f"{value:,.3g}" for value in values)
            lines.append(f"| {metric} | {shown} | {_ratio(values)} |")
    return "\n".join([*lines, ""])


def _ratio(values: Sequence[float | None]) -> str:
    first, last = values[0], values[-1]
    return f"{last / first:.2f}" if first and last is not None else ""
