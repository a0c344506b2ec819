"""Figures: one of one repetition as it is written to build/bench.json, and the medians that readers make of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOT_OFFERED = "not_offered_runs_per_second"
"""Metric of arrivals that a system was spared, because it did not do half as many runs in W4."""

_SAMPLES_LIMIT = 200


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


class Medians:
    """What the repetitions of each figure say together."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}
        for record in records:
            self._values.setdefault((record.system, record.work, record.metric), []).append(record.value)

    def of(self, system: str, work: str, metric: str) -> float | None:
        """The median, None where nothing was measured."""
        values = self._values.get((system, work, metric))
        return statistics.median(values) if values else None

    def spread(self, system: str, work: str, metric: str) -> tuple[float, float] | None:
        """The lowest and the highest, None where nothing was measured."""
        values = self._values.get((system, work, metric))
        return (min(values), max(values)) if values else None

    def systems(self) -> list[str]:
        """Systems of which something was measured, in the order of their first figures."""
        return list(dict.fromkeys(system for system, _, _ in self._values))

    def works(self, prefix: str = "") -> list[str]:
        """Works of that prefix, in the order of their first figures."""
        return list(dict.fromkeys(work for _, work, _ in self._values if work.startswith(prefix)))


def figures(answer: dict[str, Any], steps: int) -> dict[str, float]:
    """Computes the figures of one work from what its client answers; each run of it does that many steps."""
    latencies = sorted(answer["latencies_ms"])
    runs = len(latencies) - answer["missed"]
    found = {f"p{part}_ms": latencies[min(len(latencies) - 1, len(latencies) * part // 100)] for part in (50, 95, 99)}
    found["worst_ms"] = latencies[-1]
    found["runs"] = runs
    found["steps_per_second"] = runs * steps / answer["seconds"]
    # Of the median, so that one stall of the machine does not stand for every step.
    found["ms_per_step"] = found["p50_ms"] / steps
    found["missed"] = answer["missed"]
    return found


def samples(latencies: Sequence[float]) -> list[float]:
    """Thins latencies to their quantiles, the worst included, for a picture of how they are distributed."""
    ordered = sorted(latencies)
    if len(ordered) <= _SAMPLES_LIMIT:
        return [round(each, 3) for each in ordered]
    last = len(ordered) - 1
    return [round(ordered[last * number // (_SAMPLES_LIMIT - 1)], 3) for number in range(_SAMPLES_LIMIT)]
