"""The processes of a benchmark: starting and stopping them, and what each costs in CPU time and memory (Linux)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
LINE_SECONDS = 120.0
STOP_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


class NotMeasured(Exception):
    """Nothing could be measured; the message says why."""


class Program:
    """A Python program that is spoken to in lines. As a context it is stopped at the end."""

    def __init__(self, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "OTEL_", "PG"))}
        self._log, self._name = log, " ".join(arguments[:3])
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python'}"} | dict(environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        self.pid = self._process.pid

    def line(self) -> str:
        """Returns the next line that it prints. Errors: NotMeasured where it ends or says nothing for too long."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LINE_SECONDS)
        line = self._process.stdout.readline().decode().strip() if ready else ""
        if not line:
            raise NotMeasured(f"{self._name} {'ended' if ready else 'hangs'}:\n{self._log.read_text()[-3000:]}")
        return line

    def ask(self, **command: Any) -> dict[str, float]:
        """Sends a command and returns the figures that it answers with. Errors: NotMeasured."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            pass  # the line that does not come tells why
        figures: dict[str, float] = json.loads(self.line())
        return figures

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def family(pid: int) -> list[int]:
    """Returns a process and all below it."""
    found = [pid]
    for parent in found:
        try:
            found += [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        except OSError:
            pass  # it has ended
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all below it, and all that were below it and have ended."""
    ticks = 0
    for each in family(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def memory_mb(pid: int, field: str = "VmHWM") -> float:
    """Memory of one process in MB: VmHWM is its peak so far, VmRSS what it has now."""
    return _kilobytes(Path(f"/proc/{pid}/status"), field) / 1024


def shared_memory_mb(pid: int) -> float:
    """Memory that a process and all below it have now in MB, what they share counted once."""
    return sum(_kilobytes(Path(f"/proc/{each}/smaps_rollup"), "Pss") for each in family(pid)) / 1024


def _kilobytes(file: Path, field: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
