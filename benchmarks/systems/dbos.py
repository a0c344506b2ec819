"""DBOS, a library whose workflows live in the application's processes, on the same Postgres."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.processes import Program, memory_mb
from benchmarks.systems import System
from benchmarks.works import CLIENTS, CLOSED, OPEN

PROCESSES = 2
"""DBOS's way of using more cores. A work with one in flight is done by one of them."""

POLL_SECONDS = 0.01
"""Its default is one second, for both the worker's and the client's looking; 10 ms is what suits short workflows."""


class _Dbos(System):
    required = False

    def prepare(self) -> None:
        """Makes the database; DBOS lays out its tables itself, at the first start."""
        self.python = self.place.environment.python()
        self.dsn = self.place.database.create(self.name, with_schema=False)
        with ExitStack() as stack:
            self.peer(stack, "dbos_app", "--database", self.dsn, "--executor", "0").line()

    def peer(self, stack: ExitStack, module: str, *arguments: str) -> Program:
        """Starts a program in the environment of the peers."""
        log = self.place.directory / f"{self.name}.log"
        return stack.enter_context(Program(["-m", f"benchmarks.peers.{module}", *arguments], log, python=self.python))


class InProcess(_Dbos):
    """Workflows are called where they run, as DBOS is mostly used: nothing goes over a wire but to Postgres."""

    name = "dbos"
    note = f"no client of its own; {PROCESSES} processes, of which works with one in flight use one"
    works = (*CLOSED, *CLIENTS, *OPEN)

    def start(self, stack: ExitStack) -> dict[str, float]:
        """W5: starts one process and completes one run; then the other one."""
        began = time.perf_counter()
        self._programs = [self._start(stack, 0)]
        ready_seconds = time.perf_counter() - began
        self._programs[0].ask(do="runs", shape="chain-1", count=1, in_flight=1, rate=0, seconds=1)
        figures = {
            "ready_seconds": ready_seconds,
            "first_run_seconds": time.perf_counter() - began,
            "idle_memory_mb": memory_mb(self._programs[0].pid, "VmRSS"),
        }
        self._programs += [self._start(stack, number) for number in range(1, PROCESSES)]
        return figures

    def parts(self) -> Mapping[str, int]:
        """The processes, of which the first is called the server."""
        return {
            "server" if not number else f"server{number + 1}": each.pid for number, each in enumerate(self._programs)
        }

    def clients(self) -> Sequence[Program]:
        """The same processes: each makes its share of the load."""
        return self._programs

    def _start(self, stack: ExitStack, number: int) -> Program:
        program = self.peer(stack, "dbos_app", "--database", self.dsn, "--executor", str(number))
        program.line()
        return program


class Queue(_Dbos):
    """A client enqueues, a worker takes: the processes that the others have."""

    name = "dbos-queue"
    note = f"worker and client look every {POLL_SECONDS * 1000:.0f} ms; the default is 1,000"
    works = CLOSED

    def start(self, stack: ExitStack) -> dict[str, float]:
        """Starts worker and client."""
        poll = ["--poll-seconds", str(POLL_SECONDS)]
        self._worker = self.peer(stack, "dbos_app", "--database", self.dsn, "--executor", "0", *poll)
        self._client = self.peer(stack, "dbos_client", "--database", self.dsn, *poll)
        self._worker.line()
        return {}

    def parts(self) -> Mapping[str, int]:
        """Worker and client; there is no server."""
        return {"worker": self._worker.pid, "client": self._client.pid}

    def clients(self) -> Sequence[Program]:
        """The client."""
        return [self._client]
