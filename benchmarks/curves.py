"""Measures how cost grows: with steps in a run, events, watchers, idle workers, namespaces and queues.

`python -m benchmarks.curves --help` tells the options. Each curve is measured at a few sizes against a server, a worker
and a Postgres that are processes of their own; CPU time is of the server and of Postgres. Exits with 1 only where it
could not measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.contract import SERVICE
from benchmarks.curves_rows import add_events, add_namespaces
from benchmarks.curves_shapes import MANY_SERVICE, step_count
from benchmarks.curves_table import Point, table
from benchmarks.environment import Environment
from benchmarks.machine import describe
from benchmarks.processes import NotMeasured, Program, cpu_seconds, memory_mb
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.errors import EmbeddedPostgresError
from orchestrator.postgres.migrate import migrate

ADDRESSES = 500
ANSWER_SECONDS = 1200.0
"""How long one load may take: a chain of 10,000 steps takes as long as 10,000 commits and calls, which is minutes where
the machine is shared."""

IN_FLIGHT = 64

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "full": {
        "width": (10, 100, 1_000, 10_000),
        "length": (10, 100, 1_000, 10_000),
        "events": (0, 1_000_000, 10_000_000),
        "watchers": (10, 100, 1_000),
        "workers": (1, 50, 500),
        "endpoints": (1, 50, 500),
        "namespaces": (1, 100, 10_000),
        "queues": (1, 10, 100, 1_000),
    },
    "quick": {
        "width": (10, 1_000),
        "length": (10, 1_000),
        "events": (0, 100_000),
        "watchers": (10, 100),
        "workers": (1, 50),
        "endpoints": (1, 50),
        "namespaces": (1, 1_000),
        "queues": (1, 100),
    },
    "tiny": {
        "width": (2, 10),
        "length": (2, 10),
        "events": (0, 1_000),
        "watchers": (1, 5),
        "workers": (1, 5),
        "endpoints": (1, 5),
        "namespaces": (1, 20),
        "queues": (1, 10),
    },
}
"""At which sizes each curve is measured."""

STEPS = {"full": 10_000, "quick": 3_000, "tiny": 20}
"""About how many steps one point is measured by."""

IDLE_SECONDS = {"full": 5.0, "quick": 5.0, "tiny": 0.2}
"""How long an idle server is looked at."""


class Curves:
    """One series of curves on one database. Every curve begins with a server of its own."""

    def __init__(self, dsn: str, postgres_pid: int, directory: Path, steps: int, idle_seconds: float) -> None:
        """Takes the database, about how many steps one point is measured by, and how long idleness is."""
        self._dsn, self._postgres_pid, self._directory, self._steps = dsn, postgres_pid, directory, steps
        self._idle_seconds = idle_seconds
        self._server: Program
        self.points: list[Point] = []

    def measure(self, curve: str, sizes: tuple[int, ...]) -> None:
        """Measures one curve at its sizes. Errors: NotMeasured."""
        with ExitStack() as stack:
            self._client = stack.enter_context(self._program("curves_client"))
            worker = stack.enter_context(self._program("curves_worker", str(ADDRESSES)))
            self._port = int(worker.line())
            getattr(self, f"_{curve}")(curve, sizes)

    # --- the curves

    def _width(self, curve: str, sizes: tuple[int, ...]) -> None:
        self._shape(curve, "wide", sizes)

    def _length(self, curve: str, sizes: tuple[int, ...]) -> None:
        self._shape(curve, "chain", sizes)

    def _shape(self, curve: str, shape: str, sizes: tuple[int, ...]) -> None:
        for size in sizes:
            # A lease of a second, so that the recovery is not a wait for its end.
            with self._serving(BATON_LEASE_SECONDS="1"):
                self._register()
                with self._point(curve, size) as point:
                    point |= self._client.ask(do="apply", shape=shape, size=size)
                    self._load(point, shape, size, 1)
                    point |= self._client.ask(do="reads", count=10)
                    point["server_peak_memory_mb"] = memory_mb(self._server.pid)
                    point |= self._recovered(shape, size)

    def _recovered(self, shape: str, size: int) -> dict[str, float]:
        """Ends the server in the middle of a run, and tells how long the next one takes to drive it on."""
        self._client.ask(do="start", shape=shape, size=size)
        self._server.kill()
        with self._serving(BATON_LEASE_SECONDS="1"):
            seconds = self._client.ask(do="go_on")["seconds"]
            self._client.ask(do="end")
            cpu = cpu_seconds(self._server.pid)
        return {"recovery_seconds": seconds, "recovery_cpu_seconds": cpu}

    def _events(self, curve: str, sizes: tuple[int, ...]) -> None:
        with self._serving():
            self._register()
            self._client.ask(do="apply", shape="chain", size=3)
            self._client.ask(do="runs", shape="chain", size=3, count=1, in_flight=1)
            self._client.tell(do="last_run")
            template = json.loads(self._client.line())["run_id"]
        present = 0
        for size in sizes:
            oldest = ""
            if size:
                oldest = asyncio.run(add_events(self._dsn, template, present, size))
                present = size
            began = time.perf_counter()
            with self._serving(), self._point(curve, size) as point:
                point["ready_seconds"] = time.perf_counter() - began
                self._load(point, "chain", 3, IN_FLIGHT)
                point |= self._client.ask(do="reads", count=50, run_id=oldest)
                self._idle(point)

    def _watchers(self, curve: str, sizes: tuple[int, ...]) -> None:
        most = sizes[-1]
        with self._serving():
            self._register()
            length = max(self._steps // 100, 2)
            unwatched = self._watched(curve, length, 1, 0, None)
            for name, batch in ((curve, True), ("watchers, an event a message", False)):
                for size in sizes:
                    self._watched(name, length, 1, size, unwatched, batch)
            unwatched = self._watched("watchers of as many runs", 10, most, 0, None)
            self._watched("watchers of as many runs", 10, most, 1, unwatched)

    def _watched(
        self,
        curve: str,
        length: int,
        runs: int,
        watchers: int,
        unwatched: Mapping[str, float] | None,
        batch: bool = True,
    ) -> Mapping[str, float]:
        """Measures runs with so many watchers each, beside the same runs without."""
        self._client.ask(do="apply", shape="chain", size=length)
        self._client.ask(do="watch", size=length, runs=runs, watchers=watchers, batch=batch)
        before = self._spent()["server"]
        figures = self._client.ask(do="go", port=self._port)
        with self._point(curve, runs * watchers) as point:
            point["run_ms_per_step"] = figures["run_seconds"] * 1e3 / (length * runs)
            point["server_cpu_seconds"] = self._spent()["server"] - before
            point["events_delivered"] = figures["delivered"]
            if unwatched is not None:
                more = point["server_cpu_seconds"] - unwatched["server_cpu_seconds"]
                point["cpu_us_per_event_delivered"] = more / figures["delivered"] * 1e6
        return point

    def _workers(self, curve: str, sizes: tuple[int, ...]) -> None:
        with self._serving():
            self._register()
        self._registrations(curve, sizes, "idle", MANY_SERVICE)

    def _endpoints(self, curve: str, sizes: tuple[int, ...]) -> None:
        self._registrations(curve, sizes, "noop", SERVICE)

    def _registrations(self, curve: str, sizes: tuple[int, ...], worker: str, service: str) -> None:
        """Measures with more and more addresses of a worker, whose health is followed."""
        known = 0
        for size in sizes:
            figures: dict[str, float] = {}
            with self._serving():
                before = self._spent()["server"]
                registered = self._registered(known, size - known, worker, service)
                figures["longest_registration_ms"] = registered["longest_ms"]
                spent = self._spent()["server"] - before
                figures["registration_cpu_ms"] = spent / (size - known) * 1e3
                self._client.ask(do="apply", shape="chain", size=3)
            known = size
            began = time.perf_counter()
            with self._serving(), self._point(curve, size) as point:
                point |= figures | {"ready_seconds": time.perf_counter() - began}
                self._load(point, "chain", 3, IN_FLIGHT)
                self._idle(point)

    def _namespaces(self, curve: str, sizes: tuple[int, ...]) -> None:
        present = 1
        with self._serving():
            self._register()
            self._client.ask(do="apply", shape="chain", size=3)
        for size in sizes:
            asyncio.run(add_namespaces(self._dsn, present, size))
            present = max(present, size)
            began = time.perf_counter()
            with self._serving(), self._point(curve, size) as point:
                point["ready_seconds"] = time.perf_counter() - began
                self._load(point, "chain", 3, IN_FLIGHT)
                self._idle(point)

    def _queues(self, curve: str, sizes: tuple[int, ...]) -> None:
        with self._serving():
            self._client.ask(
                do="register", port=self._port, worker="many", first=0, count=1, in_flight=10, service=MANY_SERVICE
            )
            for size in sizes:
                self._client.ask(do="apply", shape="spread", size=size)
                with self._point(curve, size) as point:
                    self._load(point, "spread", size, 1)

    # --- what they are made of

    def _load(self, point: dict[str, float], shape: str, size: int, in_flight: int) -> None:
        steps = step_count(shape, size)
        count = max(self._steps // steps, 1)
        command = {"do": "runs", "shape": shape, "size": size, "in_flight": in_flight}
        self._client.ask(**command, count=1 + count // 10)
        before = self._spent()
        figures = self._client.ask(**command, count=count)
        thousands = figures["steps"] / 1000
        for part, value in self._spent().items():
            point[f"{part}_cpu_seconds_per_1000_steps"] = (value - before[part]) / thousands
        point["ms_per_step"] = 1000 / figures["steps_per_second"]

    def _idle(self, point: dict[str, float]) -> None:
        before = self._spent()
        time.sleep(self._idle_seconds)
        for part, value in self._spent().items():
            point[f"{part}_idle_cpu_percent"] = (value - before[part]) / self._idle_seconds * 100
        point["server_memory_mb"] = memory_mb(self._server.pid, "VmRSS")

    def _spent(self) -> dict[str, float]:
        return {"server": cpu_seconds(self._server.pid), "postgres": cpu_seconds(self._postgres_pid)}

    def _register(self) -> None:
        self._registered(0, 1)

    def _registered(self, first: int, count: int, worker: str = "noop", service: str = SERVICE) -> dict[str, float]:
        return self._client.ask(
            do="register", port=self._port, worker=worker, first=first, count=count, in_flight=1000, service=service
        )

    @contextmanager
    def _point(self, curve: str, size: int) -> Iterator[dict[str, float]]:
        figures: dict[str, float] = {}
        yield figures
        self.points.append(Point(curve, size, figures))
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"{curve} {size}: {shown}", file=sys.stderr, flush=True)

    @contextmanager
    def _serving(self, **settings: str) -> Iterator[None]:
        arguments = ["-m", "baton.cli", "serve", "--listen", "127.0.0.1:0", "--output", "json"]
        environment = {"BATON_DATABASE_URL": self._dsn, "BATON_LEASE_SECONDS": "5"} | settings
        with Program(arguments, self._directory / "server.log", environment) as self._server:
            self._client.ask(do="connect", server=json.loads(self._server.line())["address"])
            yield

    def _program(self, name: str, *arguments: str) -> Program:
        log = self._directory / f"{name}.log"
        return Program(["-m", f"benchmarks.programs.{name}", *arguments], log, patience=ANSWER_SECONDS)


def main() -> int:
    """Measures as the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--sizes", choices=list(SIZES), default="full", help="how far the curves go (default: full)")
    parser.add_argument("--only", nargs="+", choices=list(SIZES["full"]), help="curves to measure (default: all)")
    parser.add_argument("--events", type=int, help="most events in the database (default: 10,000,000 where full)")
    parser.add_argument("--output", type=Path, default=Path("build/curves.json"), help="file to write")
    parser.add_argument("--directory", type=Path, default=Path("build"), help="where the database lies meanwhile")
    parser.add_argument("--environment", type=Path, default=Path("build/bench"), help="where what draws is installed")
    parser.add_argument("--offline", action="store_true", help="install nothing; draw only with what is there")
    chosen = parser.parse_args()
    sizes = {name: SIZES[chosen.sizes][name] for name in chosen.only or SIZES["full"]}
    if chosen.events and "events" in sizes:
        sizes["events"] = (*(size for size in sizes["events"] if size < chosen.events), chosen.events)
    machine = describe()
    try:
        points = _measured(sizes, STEPS[chosen.sizes], IDLE_SECONDS[chosen.sizes], chosen.directory)
    except (NotMeasured, EmbeddedPostgresError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    document = {"machine": machine, "records": [record.as_json() for point in points for record in point.records()]}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(machine, points))
    print(f"every figure: {chosen.output}")
    environment = Environment(chosen.environment)
    if not chosen.offline:
        environment.install(["python"])
    print(environment.draw("--curves", str(chosen.output.resolve())))
    return 0


def _measured(sizes: Mapping[str, tuple[int, ...]], steps: int, idle_seconds: float, below: Path) -> Sequence[Point]:
    """Measures each curve on a database of its own. Errors: NotMeasured, EmbeddedPostgresError."""
    below.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="curves-", dir=below))
    points: list[Point] = []
    try:
        for curve, its_sizes in sizes.items():
            with EmbeddedPostgres(directory / curve) as postgres:
                asyncio.run(migrate(postgres.dsn))
                assert postgres.process_id is not None
                curves = Curves(postgres.dsn, postgres.process_id, directory, steps, idle_seconds)
                curves.measure(curve, its_sizes)
                points += curves.points
            _remove(directory / curve)
    finally:
        for each in sizes:
            _remove(directory / each)
        shutil.rmtree(directory, ignore_errors=True)
    return points


def _remove(directory: Path) -> None:
    data = directory / "data"
    if data.is_symlink():  # Where root runs this, the data lies outside of the directory.
        shutil.rmtree(data.resolve().parent, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
