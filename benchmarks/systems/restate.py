"""Restate: its server (Rust) with its own log on disk, and a service by its Python SDK. Not on Postgres.

Its settings are the defaults: one node, 24 partitions, and its log is synced to disk before anything follows from it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.processes import Program, memory_mb
from benchmarks.systems import Place, System, free_address
from benchmarks.works import CLIENTS, CLOSED, OPEN


class Restate(System):
    """Server, service (as `worker`) and client, where it can be had in a network without a way out."""

    name = "restate"
    works = (*CLOSED, *CLIENTS, *OPEN)
    uses_postgres = False
    required = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._data = place.directory / "restate"
        self._ingress, self._admin, self._node, self._service = (free_address() for _ in range(4))

    def prepare(self) -> None:
        """Starts it once on empty data, registers the service and completes a run."""
        self._python = self.place.environment.python()
        self._binary = self.place.environment.npm_program("restate-server")
        with ExitStack() as stack:
            self._start_programs(stack)
            self._client.ask(do="register", admin=self._admin, service=self._service)
            self._client.ask(do="connect", ingress=self._ingress)

    def start(self, stack: ExitStack) -> dict[str, float]:
        """W5: starts server and service on the warm data, and completes one run."""
        began = time.perf_counter()
        self._start_programs(stack)
        self._client.ask(do="connect", ingress=self._ingress)
        first_run_seconds = time.perf_counter() - began
        return {"first_run_seconds": first_run_seconds, "idle_memory_mb": memory_mb(self._server.pid, "VmRSS")}

    def parts(self) -> Mapping[str, int]:
        """Server, service and client."""
        return {"server": self._server.pid, "worker": self._worker.pid, "client": self._client.pid}

    def clients(self) -> Sequence[Program]:
        """The client."""
        return [self._client]

    def _start_programs(self, stack: ExitStack) -> None:
        log = self.place.directory / "restate.log"
        inside = _closed_network(stack, log)
        self.note = "" if inside else "not in a network of its own"
        environment = {
            "DO_NOT_TRACK": "1",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_INGRESS__BIND_ADDRESS": self._ingress,
            "RESTATE_ADMIN__BIND_ADDRESS": self._admin,
            "RESTATE_BIND_ADDRESS": self._node,
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_LOG_FILTER": "warn",
        }
        command = [self._binary, "--no-logo", "--bind-ip", "127.0.0.1", "--base-dir", str(self._data)]
        self._server = stack.enter_context(Program(command, log, environment, python="", before=inside))
        hypercorn = ["-m", "hypercorn", "--bind", self._service, "benchmarks.peers.restate_service:app"]
        self._worker = stack.enter_context(Program(hypercorn, log, python=self._python, before=inside))
        client = ["-m", "benchmarks.peers.restate_client"]
        self._client = stack.enter_context(Program(client, log, python=self._python, before=inside))


def _closed_network(stack: ExitStack, log: Path) -> list[str]:
    """Returns what puts a command into a network that has nothing but loopback, nothing where there can be none.

    The server asks the outside for newer versions also where its telemetry is off; a benchmark should not.
    """
    for user in ([], ["--map-root-user"]):
        command = ["unshare", *user, "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"]
        done = shutil.which("unshare") and shutil.which("nsenter") and _works(command)
        if done:
            holder = stack.enter_context(Program(command, log, python=""))
            holder.line()
            enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
            return enter + ([f"--user=/proc/{holder.pid}/ns/user", "--preserve-credentials"] if user else []) + ["--"]
    return []


def _works(command: list[str]) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0
