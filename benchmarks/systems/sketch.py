"""The sketch: the least that a durable engine of Baton's design does. See benchmarks/programs/sketch_engine.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.processes import Program
from benchmarks.systems import Place, System, free_address
from benchmarks.works import CLIENTS, CLOSED, OPEN, W4, Work


class Sketch(System):
    """The sketch with one call a step or one stream, and a client with one call a run or one stream."""

    note = "no types, policies, retries, timers, leases, recovery, views, tracing"

    def __init__(self, place: Place, name: str, works: Sequence[Work], *, unary: bool, batch: bool = False) -> None:
        super().__init__(place)
        self.name, self.works, self._unary, self._batch = name, tuple(works), unary, batch

    def prepare(self) -> None:
        """Makes the database."""
        self._dsn = self.place.database.create(self.name, with_schema=False)

    def start(self, stack: ExitStack) -> dict[str, float]:
        """Starts worker, engine and client."""
        address, worker = free_address(), free_address()
        self._worker = self.program(stack, "benchmarks.programs.sketch_worker", "--listen", worker)
        self._client = self.program(stack, "benchmarks.programs.sketch_client")
        arguments = ["--listen", address, "--worker", worker, "--database", self._dsn]
        arguments += ["--unary"] if self._unary else []
        self._worker.line()  # the engine connects at once, and tries only once
        self._engine = self.program(stack, "benchmarks.programs.sketch_engine", *arguments)
        self._engine.line()
        self._client.ask(do="connect", server=address, batch=self._batch)
        return {}

    def parts(self) -> Mapping[str, int]:
        """Engine (as `server`), worker and client."""
        return {"server": self._engine.pid, "worker": self._worker.pid, "client": self._client.pid}

    def clients(self) -> Sequence[Program]:
        """The one client."""
        return [self._client]


def stream(place: Place) -> Sketch:
    """Steps in batches on one stream; one call a run."""
    return Sketch(place, "sketch-stream", (*CLOSED, *CLIENTS, *OPEN), unary=False)


def batch(place: Place) -> Sketch:
    """Steps in batches on one stream, and runs and their ends too."""
    return Sketch(place, "sketch-batch", (W4, *CLIENTS, *OPEN), unary=False, batch=True)


def unary(place: Place) -> Sketch:
    """One call a step, one call a run."""
    return Sketch(place, "sketch-unary", (*CLOSED, *CLIENTS, *OPEN), unary=True)
