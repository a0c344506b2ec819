"""Figures as records and as a table: medians of the repetitions, and ratios to the baselines of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One figure of one repetition; its unit is the last part of the metric's name."""

    system: str
    work: str
    metric: str
    value: float
    repetition: int
    note: str = ""

    def as_json(self) -> dict[str, str | int | float]:
        """Returns the record as it is written."""
        return asdict(self) | {"value": round(self.value, 6)}


def table(machine: Mapping[str, object], records: Sequence[Record]) -> str:
    """Renders the medians with the spread of the repetitions, as Markdown."""
    baton = _Medians(records)
    commit, echo = baton.of("commit", "p50_ms"), baton.of("echo", "p50_ms")
    calls = baton.of("echo64", "steps_per_second")
    per_step = baton.of("W2", "ms_per_step")
    w3, w4 = baton.of("W3", "steps_per_second"), baton.of("W4", "steps_per_second")
    rows = [
        ("one durable row in a commit", "p50 ms", baton.shown("commit", "p50_ms", 2), ""),
        ("100 rows in a commit", "rows/s", baton.shown("commit100", "steps_per_second", 0), ""),
        ("unary call of the worker, alone", "p50 ms", baton.shown("echo", "p50_ms", 2), ""),
        ("unary calls of the worker, 64 in flight", "calls/s", baton.shown("echo64", "steps_per_second", 0), ""),
        ("the same", "CPU s per 1,000", baton.shown("echo64", "cpu_seconds_per_1000_steps", 3), ""),
        (
            "W1: run of 1 step",
            "p50 ms",
            baton.shown("W1", "p50_ms", 2),
            f"{baton.of('W1', 'p50_ms') / (2 * commit + 2 * echo):.2f} x (2 commits + 2 calls)",
        ),
        ("", "p95 ms", baton.shown("W1", "p95_ms", 2), ""),
        (
            "",
            "p99 ms",
            baton.shown("W1", "p99_ms", 2),
            f"{baton.of('W1', 'p99_ms') / baton.of('W1', 'p50_ms'):.1f} x its p50",
        ),
        (
            "W2: run of 10 sequential steps",
            "ms a step",
            baton.shown("W2", "ms_per_step", 2),
            f"{per_step / (commit + echo):.2f} x (commit + call)",
        ),
        (
            "W3: 100 parallel steps and a join",
            "steps/s",
            baton.shown("W3", "steps_per_second", 0),
            f"{w3 / calls:.2f} x the calls/s",
        ),
        (
            "W4: runs of 3 steps, 64 in flight",
            "steps/s",
            baton.shown("W4", "steps_per_second", 0),
            # A run of three steps needs three calls of workers and one of its client.
            f"{w4 * 4 / 3 / calls:.2f} x the calls/s, by calls",
        ),
        ("", "p50 ms a run", baton.shown("W4", "p50_ms", 1), ""),
        ("", "p99 ms a run", baton.shown("W4", "p99_ms", 1), ""),
        *_costs(baton),
        ("W5: start, database warm", "s to ready", baton.shown("W5", "ready_seconds", 2), ""),
        ("", "s to first run's end", baton.shown("W5", "first_run_seconds", 2), ""),
        ("server, idle", "MB", baton.shown("W5", "idle_memory_mb", 0), ""),
        ("server, peak", "MB", baton.shown("all", "server_peak_memory_mb", 0), ""),
        ("worker, client, peak", "MB", _pair(baton), ""),
        ("Postgres, at the end", "MB", baton.shown("all", "postgres_memory_mb", 0), "what is shared counted once"),
    ]
    head = ["; ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines = ["| what | figure | median | lowest to highest | ratio |", "|---|---|---:|---:|---|"]
    lines += [f"| {what} | {figure} | {shown} | {ratio} |" for what, figure, shown, ratio in rows]
    return "\n".join([*head, *lines, ""])


def _costs(baton: _Medians) -> list[tuple[str, str, str, str]]:
    rows = []
    for work in ("W1", "W2", "W3", "W4"):
        parts = ("server", "postgres", "worker", "client")
        shares = [f"{part} {baton.of(work, f'{part}_cpu_seconds_per_1000_steps'):.2f}" for part in parts]
        shown = baton.shown(work, "cpu_seconds_per_1000_steps", 2)
        rows.append((f"{work}, all processes", "CPU s per 1,000 steps", shown, ", ".join(shares)))
    return rows


def _pair(baton: _Medians) -> str:
    return f"{baton.of('all', 'worker_peak_memory_mb'):.0f}, {baton.of('all', 'client_peak_memory_mb'):.0f} | "


class _Medians:
    def __init__(self, records: Sequence[Record]) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}
        for record in records:
            self._values.setdefault((record.work, record.metric), []).append(record.value)

    def of(self, work: str, metric: str) -> float:
        return statistics.median(self._values[work, metric])

    def shown(self, work: str, metric: str, digits: int) -> str:
        values = self._values[work, metric]
        return f"{self.of(work, metric):,.{digits}f} | {min(values):,.{digits}f} to {max(values):,.{digits}f}"
