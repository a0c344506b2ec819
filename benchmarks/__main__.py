"""Measures W1 to W5 and the physical baselines, alternating, and writes and prints the figures.

`python -m benchmarks --help` tells the options. Exits with 1 only where it could not measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.processes import NotMeasured, Program, cpu_seconds, memory_mb, shared_memory_mb
from benchmarks.report import Record, table
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.errors import EmbeddedPostgresError
from orchestrator.postgres.migrate import migrate

COUNTS = {"W1": 500, "W2": 100, "W3": 30, "W4": 2000, "echo": 1000, "echo64": 6000, "commit": 500, "commit100": 50}
"""How many of each one repetition does at scale 1."""

IN_FLIGHT = 64


class Bench:
    """One series of measurements on one database; every program runs until the end."""

    def __init__(self, dsn: str, postgres_pid: int, directory: Path, scale: float) -> None:
        self._dsn, self._directory, self._scale = dsn, directory, scale
        self._postgres_pid = postgres_pid
        self.records: list[Record] = []

    def measure(self, repetitions: int) -> None:
        """Measures everything so many times, in turns. Errors: NotMeasured."""
        with ExitStack() as stack:
            self._client = stack.enter_context(self._program("client"))
            worker = stack.enter_context(self._program("worker"))
            self._worker_pid, self._worker = worker.pid, worker.line()
            with self._server() as server:
                self._client.ask(do="prepare", server=_address(server), worker=self._worker)
            for repetition in range(1, repetitions + 1):
                self._measure_once(repetition)

    def _measure_once(self, repetition: int) -> None:
        client, pids = self._client.pid, {"client": self._client.pid, "worker": self._worker_pid}
        with self._start(repetition) as server:
            pids |= {"server": server.pid, "postgres": self._postgres_pid}
            baseline = {"client": client, "worker": self._worker_pid}
            for work, in_flight in (("W1", 1), ("W2", 1), ("W3", 1), ("W4", IN_FLIGHT)):
                name = "echo" if in_flight == 1 else "echo64"
                if work in ("W1", "W4"):
                    self._work("grpc", name, repetition, baseline, do="echo", worker=self._worker, in_flight=in_flight)
                if work == "W1":
                    self._work("postgres", "commit", repetition, {}, do="commits", dsn=self._dsn, rows=1)
                if work == "W3":
                    self._work("postgres", "commit100", repetition, {}, do="commits", dsn=self._dsn, rows=100)
                self._client.ask(do="runs", work=work, count=1 + self._count(work) // 10, in_flight=in_flight)
                self._work("baton-unary", work, repetition, pids, do="runs", work=work, in_flight=in_flight)
            for name in ("client", "worker", "server"):
                self._add("baton-unary", "all", f"{name}_peak_memory_mb", memory_mb(pids[name]), repetition)
            self._add("baton-unary", "all", "postgres_memory_mb", shared_memory_mb(self._postgres_pid), repetition)

    def _start(self, repetition: int) -> Program:
        """W5: starts the server on the warm database and completes one run."""
        began = time.perf_counter()
        server = self._server()
        try:
            address = _address(server)
            ready_seconds = time.perf_counter() - began
            self._client.ask(do="connect", server=address)
            self._client.ask(do="runs", work="W1", count=1, in_flight=1)
            first_seconds = time.perf_counter() - began
        except BaseException:
            server.__exit__(None, None, None)
            raise
        self._add("baton-unary", "W5", "ready_seconds", ready_seconds, repetition)
        self._add("baton-unary", "W5", "first_run_seconds", first_seconds, repetition)
        self._add("baton-unary", "W5", "idle_memory_mb", memory_mb(server.pid, "VmRSS"), repetition)
        return server

    def _work(
        self, system: str, name: str, repetition: int, pids: dict[str, int], /, **command: str | int | float
    ) -> None:
        before = {part: cpu_seconds(pid) for part, pid in pids.items()}
        figures = self._client.ask(**command, count=self._count(name))
        spent = {part: cpu_seconds(pid) - before[part] for part, pid in pids.items()}
        thousands = figures.pop("steps") / 1000
        for metric, value in figures.items():
            self._add(system, name, metric, value, repetition)
        for part, seconds in spent.items():
            self._add(system, name, f"{part}_cpu_seconds_per_1000_steps", seconds / thousands, repetition)
        if spent:
            self._add(system, name, "cpu_seconds_per_1000_steps", sum(spent.values()) / thousands, repetition)

    def _count(self, name: str) -> int:
        return max(int(COUNTS[name] * self._scale), 2)

    def _add(self, system: str, work: str, metric: str, value: float, repetition: int) -> None:
        self.records.append(Record(system, work, metric, value, repetition))

    def _program(self, name: str) -> Program:
        return Program(["-m", f"benchmarks.{name}"], self._directory / f"{name}.log")

    def _server(self) -> Program:
        arguments = ["-m", "baton.cli", "serve", "--listen", "127.0.0.1:0", "--output", "json"]
        return Program(arguments, self._directory / "server.log", {"BATON_DATABASE_URL": self._dsn})


def _address(server: Program) -> str:
    address: str = json.loads(server.line())["address"]
    return address


def main() -> int:
    """Measures as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs and calls to make (default: 1)")
    parser.add_argument("--repetitions", type=int, default=3, help="how often to measure everything (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="file to write")
    chosen = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="baton-bench-"))
    try:
        machine = describe()
        with EmbeddedPostgres(directory) as postgres:
            asyncio.run(migrate(postgres.dsn))
            assert postgres.process_id is not None
            bench = Bench(postgres.dsn, postgres.process_id, directory, chosen.scale)
            bench.measure(chosen.repetitions)
    except (NotMeasured, EmbeddedPostgresError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    finally:
        data = directory / "data"
        if data.is_symlink():  # Where root runs this, the data lies outside of the directory.
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)
    document = {"machine": machine, "records": [record.as_json() for record in bench.records]}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(machine, bench.records))
    print(f"every figure: {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
