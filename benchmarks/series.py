"""A series of measurements: every system in turn, all of it again for each repetition, and what each work cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.environment import Absent
from benchmarks.processes import (
    NotMeasured,
    cpu_seconds,
    forget_peak_memory,
    machine_cpu_seconds,
    memory_mb,
    shared_memory_mb,
    written_bytes,
)
from benchmarks.record import NOT_OFFERED, Record, figures, samples
from benchmarks.systems import Place, System
from benchmarks.works import HOPELESS, Work


class Series:
    """What was measured so far. Errors of its methods: NotMeasured."""

    def __init__(self, place: Place, scale: float, works: Sequence[str] = ()) -> None:
        self._place, self._scale, self._only = place, scale, works
        self.records: list[Record] = []
        self.samples: list[dict[str, object]] = []
        self.absent: dict[str, str] = {}

    def measure(self, systems: Sequence[System], repetitions: int) -> None:
        """Measures all systems so many times, forwards and backwards by turns."""
        for system in systems:
            self._attempt(system, system.prepare)
        for repetition in range(1, repetitions + 1):
            for system in systems if repetition % 2 else reversed(systems):
                began = time.monotonic()
                self._attempt(system, partial(self._measure_system, system, repetition))
                print(f"{repetition}/{repetitions} {system.name} {time.monotonic() - began:.0f} s", file=sys.stderr)

    def _attempt(self, system: System, do: Callable[[], None]) -> None:
        if system.name in self.absent:
            return
        try:
            do()
        except Absent as absent:
            self.absent[system.name] = str(absent)
        except NotMeasured as error:
            if system.required:
                raise
            self.absent[system.name] = str(error).splitlines()[-1]

    def _measure_system(self, system: System, repetition: int) -> None:
        self._place.database.settle()
        with ExitStack() as stack:
            for metric, value in system.start(stack).items():
                self._add(system, "W5", metric, value, repetition)
            self._measure_works(system, repetition)
        for metric, value in system.ended().items():
            self._add(system, "all", metric, value, repetition)

    def _measure_works(self, system: System, repetition: int) -> None:
        parts = dict(system.parts())
        if system.uses_postgres:
            parts["postgres"] = self._place.database.pid
        capacity = 0.0
        for work in system.works:
            if self._only and work.name not in self._only:
                continue
            if work.rate > HOPELESS * capacity > 0:
                self._add(system, work.name, NOT_OFFERED, work.rate, repetition)
                continue
            found = self._measure(system, work, parts, repetition)
            if work.name == "W4":
                capacity = found["steps_per_second"] / work.steps

    def _measure(self, system: System, work: Work, parts: Mapping[str, int], repetition: int) -> Mapping[str, float]:
        count = work.scaled(self._scale)
        if not work.rate:
            system.run(work, 1 + count // 10)
        for part, pid in parts.items():
            if part != "postgres":
                forget_peak_memory(pid)
        position = self._place.database.position()
        written = {part: written_bytes(pid) for part, pid in parts.items() if part == "server"}
        machine, before = machine_cpu_seconds(), {part: cpu_seconds(pid) for part, pid in parts.items()}
        answer = system.run(work, count)
        spent = {part: cpu_seconds(pid) - before[part] for part, pid in parts.items()}
        machine = machine_cpu_seconds() - machine
        found = figures(answer, work.steps)
        steps = max(found["runs"] * work.steps, 1)
        found |= {f"{part}_cpu_seconds_per_1000_steps": seconds / steps * 1000 for part, seconds in spent.items()}
        found["cpu_seconds_per_1000_steps"] = sum(spent.values()) / steps * 1000
        found["other_load_cores"] = max(0.0, machine - sum(spent.values())) / answer["seconds"]
        if system.uses_postgres:
            log = self._place.database.written_since(position)
            found |= {"wal_bytes_per_step": log.wal_bytes / steps, "commits_per_step": log.commits / steps}
            found["postgres_memory_mb"] = shared_memory_mb(parts["postgres"])
        for part, pid in parts.items():
            if part != "postgres":
                found[f"{part}_peak_memory_mb"] = memory_mb(pid)
            if part in written:
                found[f"{part}_written_bytes_per_step"] = (written_bytes(pid) - written[part]) / steps
        for metric, value in found.items():
            self._add(system, work.name, metric, value, repetition)
        self.samples.append(
            {
                "system": system.name,
                "work": work.name,
                "repetition": repetition,
                "latencies_ms": samples(answer["latencies_ms"]),
            }
        )
        return found

    def _add(self, system: System, work: str, metric: str, value: float, repetition: int) -> None:
        self.records.append(Record(system.name, work, metric, value, repetition, system.note))
