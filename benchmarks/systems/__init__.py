"""What can be measured: each system is one class behind `System`, in a module of its own; `all.py` lists them.

A system is prepared once, then started and stopped for each repetition, and does works in between. What it costs is
measured from outside, by the processes that it names.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.database import Database
from benchmarks.environment import Environment
from benchmarks.processes import Program
from benchmarks.works import LIMIT_SECONDS, Work


@dataclass(frozen=True, slots=True)
class Place:
    """Where systems run: the database, a directory for their files, and what was installed for peers."""

    database: Database
    directory: Path
    environment: Environment


class System(ABC):
    """One system under measurement."""

    name: str
    works: tuple[Work, ...]
    uses_postgres = True
    required = True
    """Whether a benchmark without it is none; else it is told that it is absent, and the others go on."""

    note = ""
    """What a reader must know of how it was set up."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def prepare(self) -> None:  # noqa: B027 - some have nothing to prepare
        """Does once what is not measured: databases, contracts, workflows. Errors: Absent, NotMeasured."""

    @abstractmethod
    def start(self, stack: ExitStack) -> dict[str, float]:
        """Starts its programs, which the stack stops in reverse, and returns the figures of the start."""

    @abstractmethod
    def parts(self) -> Mapping[str, int]:
        """Its processes by what they are, none below another; Postgres is added where it is used. Only after start."""

    @abstractmethod
    def clients(self) -> Sequence[Program]:
        """The programs that make its load, each a share of it."""

    def ended(self) -> dict[str, float]:
        """Further figures of a repetition, asked for when its programs have stopped."""
        return {}

    def run(self, work: Work, count: int) -> dict[str, Any]:
        """Does a work and returns `seconds`, `latencies_ms` and `missed` of all clients together."""
        clients = self.clients()[: max(1, min(work.in_flight, count)) if not work.rate else None]
        for position, client in enumerate(clients):
            client.tell(
                do="runs",
                shape=work.shape,
                count=share(count, len(clients), position),
                in_flight=share(work.in_flight, len(clients), position),
                rate=work.rate / len(clients),
                seconds=LIMIT_SECONDS,
            )
        answers = [client.answer() for client in clients]
        return {
            "seconds": max(answer["seconds"] for answer in answers),
            "latencies_ms": [latency for answer in answers for latency in answer["latencies_ms"]],
            "missed": sum(answer["missed"] for answer in answers),
        }

    def program(
        self, stack: ExitStack, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Program:
        """Starts a module of the benchmark as a program of this system."""
        log = self.place.directory / f"{self.name}.log"
        return stack.enter_context(Program(["-m", module, *arguments], log, environment))


def share(whole: int, parts: int, position: int) -> int:
    """Returns the share of one of several parts of a whole; the first ones take what is left over."""
    return whole // parts + (position < whole % parts)


_given: set[int] = set()


def free_address() -> str:
    """Returns `127.0.0.1:port` with a port that is free now and was never returned before."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return f"127.0.0.1:{port}"
