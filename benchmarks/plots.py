"""Draws build/bench.json and build/curves.json: run by the Python of the benchmark's own environment.

`python -m benchmarks.plots build/bench.json --curves build/curves.json` writes SVG beside each: how latencies are
distributed, throughput and cost against the number of clients; cost against size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.record import Medians, Record
from benchmarks.works import CLIENTS

STYLES: Mapping[str, tuple[str, str]] = {
    "baton-stream": ("#1f5fbf", "-"),
    "baton-sdk": ("#14a0a0", "-"),
    "baton-unary": ("#6f5bd0", "-"),
    "sketch-stream": ("#7d8791", "--"),
    "sketch-batch": ("#7d8791", ":"),
    "sketch-unary": ("#b4bbc2", "--"),
    "restate": ("#d9772b", "-"),
    "dbos": ("#3f9142", "-"),
    "dbos-queue": ("#8cc084", "-"),
}
"""Colour and line of each system, the same in every picture; systems that are not here are not drawn."""

_WORKS = {
    "W1": "One run of 1 step at a time",
    "W4": "64 clients, 3 steps a run",
    "open/300": "300 runs/s by chance, 3 steps",
    "open/1000": "1,000 runs/s by chance, 3 steps",
}


def distribution(samples: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws which share of the runs took how long: all repetitions together, one panel a work."""
    figure, panels = pyplot.subplots(1, len(_WORKS), figsize=(14, 4.2), sharey=True, layout="constrained")
    for panel, (work, title) in zip(panels, _WORKS.items(), strict=True):
        for system, (colour, line) in STYLES.items():
            taken = sorted(
                latency
                for sample in samples
                if (sample["system"], sample["work"]) == (system, work)
                for latency in sample["latencies_ms"]
            )
            if taken:
                shares = [100 * (number + 0.5) / len(taken) for number in range(len(taken))]
                panel.plot(taken, shares, color=colour, linestyle=line, label=system)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("ms")
        _logarithmic(panel.xaxis, panel.set_xscale)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("% of the runs took at most that")
    _finish(figure, file)


SIZED = {
    "steps": ("cpu_seconds_per_1000_steps", "ms of CPU a step"),
    "watched": ("cpu_us_per_event_delivered", "us of the server's CPU an event delivered"),
    "run": ("run_ms_per_step", "ms a step of the watched run"),
}
"""Pictures of the curves: which metrics, and their unit."""


def against_clients(medians: Medians, file: Path) -> None:
    """Draws steps a second, and CPU seconds of all processes for 1,000 steps, against the number of clients."""
    panels_of = {
        "steps_per_second": "steps/s",
        "cpu_seconds_per_1000_steps": "CPU s for 1,000 steps, all processes",
        "p99_ms": "p99 of a run, ms",
    }
    figure, panels = pyplot.subplots(1, len(panels_of), figsize=(14, 4.6), layout="constrained")
    for panel, (metric, title) in zip(panels, panels_of.items(), strict=True):
        for system, (colour, line) in STYLES.items():
            points = [
                (int(work.partition("/")[2]), value)
                for work in medians.works("clients/")
                if (value := medians.of(system, work, metric)) is not None
            ]
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker="o", ms=3, label=system)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("clients, each with one run of 3 steps at a time")
        _logarithmic(panel.xaxis, panel.set_xscale, [work.in_flight for work in CLIENTS])
        _logarithmic(panel.yaxis, panel.set_yscale)
        panel.grid(alpha=0.25)
    _finish(figure, file)


def against_size(
    points: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], file: Path, *, unit: str = "ms of CPU a step"
) -> None:
    """Draws cost against size, one panel a curve: `points[curve][line]` are pairs of size and cost.

    A size of 0 is drawn as 1, so that sizes can be shown by their order of magnitude.
    """
    columns = min(4, len(points))
    rows = -(-len(points) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    panels = [panel for row in grid for panel in row]
    for panel in panels[len(points) :]:
        panel.set_visible(False)
    for panel, (curve, lines) in zip(panels, points.items(), strict=False):
        for line, pairs in lines.items():
            panel.plot([max(size, 1) for size, _ in pairs], [cost for _, cost in pairs], marker="o", ms=3, label=line)
        panel.set_title(curve, fontsize=10)
        panel.set_ylabel(unit, fontsize=8)
        _logarithmic(
            panel.xaxis, panel.set_xscale, sorted({max(size, 1) for pairs in lines.values() for size, _ in pairs})
        )
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
    _finish(figure, file)


def sizes_of(records: Sequence[Mapping[str, Any]], suffix: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Reads one kind of curves out of records whose note is `size=NUMBER`: metrics that end in `suffix`, what stands
    before it is the line."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        note, metric = str(record["note"]), str(record["metric"])
        if note.startswith("size=") and metric.endswith(suffix):
            name = metric.removesuffix(suffix).strip("_") or "server"
            line = found.setdefault(str(record["work"]), {}).setdefault(name, [])
            line.append((float(note.removeprefix("size=")), float(record["value"])))
    return found


def _logarithmic(axis: Any, set_scale: Any, ticks: Sequence[float] = ()) -> None:
    set_scale("log")
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(labelsize=8)


def _finish(figure: Any, file: Path) -> None:
    lines = {
        label: line for panel in figure.axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = sorted(lines, key=list(STYLES).index) if set(lines) <= set(STYLES) else list(lines)
    handles = [lines[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=110)
    pyplot.close(figure)
    print(file)


def main() -> None:
    """Draws what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("figures", type=Path, nargs="?", help="file that `python -m benchmarks` wrote")
    parser.add_argument("--curves", type=Path, help="file that `python -m benchmarks.curves` wrote")
    parser.add_argument("--directory", type=Path, help="where to draw to (default: beside what is drawn)")
    parser.add_argument("--format", choices=["svg", "png"], default="svg", help="kind of picture (default: svg)")
    chosen = parser.parse_args()
    pyplot.rcParams["svg.hashsalt"] = "bench"
    if chosen.figures:
        document = json.loads(chosen.figures.read_text())
        medians = Medians(Record(**record) for record in document["records"])
        directory = chosen.directory or chosen.figures.parent
        if document["samples"]:
            distribution(document["samples"], directory / f"bench-latency.{chosen.format}")
        if medians.works("clients/"):
            against_clients(medians, directory / f"bench-clients.{chosen.format}")
    if chosen.curves and chosen.curves.is_file():
        records = json.loads(chosen.curves.read_text())["records"]
        directory = chosen.directory or chosen.curves.parent
        for name, (suffix, unit) in SIZED.items():
            points = sizes_of(records, suffix)
            if points:
                against_size(points, directory / f"curves-{name}.{chosen.format}", unit=unit)


if __name__ == "__main__":
    main()
