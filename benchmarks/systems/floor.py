"""What the disk and the wire cost by themselves: durable commits of Postgres, calls and streams of gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks.processes import Program
from benchmarks.systems import System, free_address
from benchmarks.works import COMMIT, COMMIT_100, ECHO, ECHO_64, STREAM, STREAM_50


class Postgres(System):
    """Commits through asyncpg, one at a time."""

    name = "postgres"
    works = (COMMIT, COMMIT_100)

    def prepare(self) -> None:
        """Makes the database."""
        self._dsn = self.place.database.create(self.name, with_schema=False)

    def start(self, stack: ExitStack) -> dict[str, float]:
        """Starts the client."""
        self._client = self.program(stack, "benchmarks.programs.commit_client")
        self._client.ask(do="connect", database=self._dsn)
        return {}

    def parts(self) -> Mapping[str, int]:
        """The client."""
        return {"client": self._client.pid}

    def clients(self) -> Sequence[Program]:
        """The client."""
        return [self._client]


class Grpc(System):
    """Calls of a worker without an engine: unary, and on a stream with one or fifty steps in a message."""

    name = "grpc"
    works = (ECHO, STREAM, STREAM_50, ECHO_64)
    uses_postgres = False

    def start(self, stack: ExitStack) -> dict[str, float]:
        """Starts worker and client."""
        address = free_address()
        self._worker = self.program(stack, "benchmarks.programs.sketch_worker", "--listen", address)
        self._client = self.program(stack, "benchmarks.programs.wire_client")
        self._worker.line()
        self._client.ask(do="connect", worker=address)
        return {}

    def parts(self) -> Mapping[str, int]:
        """Worker and client."""
        return {"worker": self._worker.pid, "client": self._client.pid}

    def clients(self) -> Sequence[Program]:
        """The client."""
        return [self._client]
