"""Baton in its ways of dispatch, of client and of tracing. Every process by itself, all settings as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from benchmarks.processes import Program, memory_mb
from benchmarks.systems import Place, System, free_address
from benchmarks.works import CLIENTS, CLOSED, OPEN, W1, W4, Work


class Baton(System):
    """Baton with one kind of worker and of client, and traces of that share of the runs (None: tracing is off); in so
    many processes on one address (0: without a supervisor), and with so many clients, each with a connection."""

    def __init__(
        self,
        place: Place,
        name: str,
        works: Sequence[Work],
        *,
        worker: str,
        sdk_client: bool = False,
        traced: float | None = None,
        processes: int = 0,
        client_count: int = 1,
    ) -> None:
        super().__init__(place)
        self.name, self.works = name, tuple(works)
        self._worker_kind, self._sdk_client, self._traced = worker, sdk_client, traced
        self._server_address, self._worker_address, self._sink_address = (free_address() for _ in range(3))
        self._processes, self._client_count = processes, client_count
        self._registers_itself = worker == "sdk_worker"
        self._spans = 0

    def prepare(self) -> None:
        """Makes the database, registers the worker and applies the workflows."""
        self._dsn = self.place.database.create(self.name, with_schema=True)
        with ExitStack() as stack:
            self._start_programs(stack)
            self._start_server(stack)
            if self._registers_itself:
                self._worker.line()
            self._client.ask(do="prepare", worker="" if self._registers_itself else self._worker_address)
            self._first_run()

    def start(self, stack: ExitStack) -> dict[str, float]:
        """W5: starts the server on the warm database, where worker and client are up, and completes one run."""
        self._start_programs(stack)
        began = time.perf_counter()
        self._start_server(stack)
        ready_seconds = time.perf_counter() - began
        self._first_run()
        first_run_seconds = time.perf_counter() - began
        idle_memory_mb = memory_mb(self._server.pid, "VmRSS")
        if self._registers_itself:
            self._worker.line()  # it has registered anew, which would else fall into the first work
        return {
            "ready_seconds": ready_seconds,
            "first_run_seconds": first_run_seconds,
            "idle_memory_mb": idle_memory_mb,
        }

    def parts(self) -> Mapping[str, int]:
        """Server, worker and client."""
        others = {f"client-{number}": client.pid for number, client in enumerate(self._clients[1:], 2)}
        return {"server": self._server.pid, "worker": self._worker.pid, "client": self._client.pid, **others}

    def clients(self) -> Sequence[Program]:
        """The clients, of which most systems have one."""
        return self._clients

    def ended(self) -> dict[str, float]:
        """Spans that came in, where tracing is on; the last ones come when the server stops."""
        return {} if self._traced is None else {"spans": self._spans}

    def _start_programs(self, stack: ExitStack) -> None:
        environment = {}
        if self._traced is not None:
            self._sink = self.program(stack, "benchmarks.programs.trace_sink", "--listen", self._sink_address)
            stack.callback(self._count_spans)
            environment = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self._sink_address}",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": str(self._traced),
            }
        self._environment = environment
        arguments = ["--listen", self._worker_address]
        if self._registers_itself:
            arguments += ["--baton", self._server_address]
        module = f"benchmarks.programs.{self._worker_kind}"
        self._worker = self.program(stack, module, *arguments, environment=environment)
        self._clients = [self.program(stack, "benchmarks.programs.baton_client") for _ in range(self._client_count)]
        self._client = self._clients[0]
        self._worker.line()
        for client in self._clients:
            client.ask(do="connect", server=self._server_address, sdk=self._sdk_client)
        if self._traced is not None:
            self._sink.line()

    def _count_spans(self) -> None:
        self._spans = int(self._sink.ask(do="spans")["spans"])

    def _start_server(self, stack: ExitStack) -> None:
        arguments = ["serve", "--listen", self._server_address, "--output", "json"]
        if self._processes:
            arguments += ["--processes", str(self._processes)]
        self._server = self.program(
            stack, "baton.cli", *arguments, environment=self._environment | {"BATON_DATABASE_URL": self._dsn}
        )
        json.loads(self._server.line())

    def _first_run(self) -> None:
        self.run(W1, 1)


def unary(place: Place) -> Baton:
    """One call for each step, to a plain gRPC server; one call for each run, by the plain stub."""
    return Baton(place, "baton-unary", (*CLOSED, *CLIENTS, *OPEN), worker="plain_worker")


def stream(place: Place) -> Baton:
    """A worker made with the SDK; one call for each run, by the plain stub."""
    return Baton(place, "baton-stream", (*CLOSED, *CLIENTS, *OPEN), worker="sdk_worker")


def sdk_client(place: Place) -> Baton:
    """Worker and client made with the SDK."""
    return Baton(place, "baton-sdk", (W4, *CLIENTS, *OPEN), worker="sdk_worker", sdk_client=True)


def sampled(place: Place) -> Baton:
    """As `stream`, with traces of one run in a hundred."""
    return Baton(place, "baton-traced-1", (W4,), worker="sdk_worker", traced=0.01)


def traced(place: Place) -> Baton:
    """As `stream`, with traces of every run."""
    return Baton(place, "baton-traced-100", (W4,), worker="sdk_worker", traced=1.0)


def in_processes(number: int) -> Callable[[Place], Baton]:
    """As `stream`, in so many processes that share an address, with eight clients, whose connections they share."""

    def make(place: Place) -> Baton:
        return Baton(place, f"baton-processes-{number}", (W4,), worker="sdk_worker", processes=number, client_count=8)

    return make
