"""The processes of a benchmark: starting and stopping them, and what each costs in CPU time and memory (Linux)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
LINE_SECONDS = 120.0
STOP_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
_FOREIGN = ("BATON_", "OTEL_", "PG", "DBOS_", "RESTATE_")


class NotMeasured(Exception):
    """Nothing could be measured; the message says why."""


class Program:
    """A program that is spoken to in lines. As a context it is stopped at the end.

    `arguments` are those of `python`, or where that is empty the whole command; `before` is put in front of it all.
    `patience` is how many seconds it may take to answer.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        python: str = sys.executable,
        before: Sequence[str] = (),
        patience: float = LINE_SECONDS,
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self._log, self._name = log, " ".join(arguments[:3])
        self._received, self._patience = b"", patience
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*before, *([python] if python else []), *arguments],
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
        end = time.monotonic() + self._patience
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not more:
                raise NotMeasured(f"{self._name} {'ended' if ready else 'hangs'}:\n{self._log.read_text()[-3000:]}")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line.decode().strip()

    def tell(self, **command: Any) -> None:
        """Sends a command, whose answer is the next line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError:
            pass  # the line that does not come tells why

    def answer(self) -> dict[str, Any]:
        """Returns the answer of the command before. Errors: NotMeasured."""
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and returns what it answers. Errors: NotMeasured."""
        self.tell(**command)
        return self.answer()

    def kill(self) -> None:
        """Ends the program at once, with no chance to put anything in order."""
        self._process.kill()
        self._process.wait()

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


def machine_cpu_seconds() -> float:
    """CPU time that everything on this machine has spent, waiting for disks and what its host took left out."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _, _, interrupts, soft_interrupts = (int(field) for field in fields[:7])
    return (user + nice + system + interrupts + soft_interrupts) / _TICKS


def written_bytes(pid: int) -> int:
    """Bytes that a process has caused to be written to disks; 0 where that is not told."""
    return _number(Path(f"/proc/{pid}/io"), "write_bytes")


def forget_peak_memory(pid: int) -> None:
    """Lets the peak of the memory of a process and all below it begin anew, where the kernel knows how."""
    for each in family(pid):
        try:
            Path(f"/proc/{each}/clear_refs").write_text("5")
        except OSError:
            pass  # then the peak is that since its start


def memory_mb(pid: int, field: str = "VmHWM") -> float:
    """Memory of a process and all below it in MB: VmHWM are the peaks so far, VmRSS what they have now."""
    return sum(_number(Path(f"/proc/{each}/status"), field) for each in family(pid)) / 1024


def shared_memory_mb(pid: int) -> float:
    """Memory that a process and all below it have now in MB, what they share counted once."""
    return sum(_number(Path(f"/proc/{each}/smaps_rollup"), "Pss") for each in family(pid)) / 1024


def _number(file: Path, field: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
