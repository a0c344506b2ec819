"""Real processes of the tests: servers of Baton and labs, which can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import Note
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 40.0

QUICK = {
    "BATON_LEASE_SECONDS": "1",
    "BATON_ADOPTION_INTERVAL_SECONDS": "0.2",
    "BATON_FOREIGN_POLL_SECONDS": "0.05",
    "BATON_SCRUB_INTERVAL_SECONDS": "0.3",
    "BATON_WATCH_PROGRESS_SECONDS": "0.5",
    "BATON_CIRCUIT_FAIL_MAX": "3",
    "BATON_CIRCUIT_RESET_SECONDS": "1",
}
"""Settings that make a server wait less than one in earnest."""

STEADY = {"BATON_LEASE_SECONDS": "5", "BATON_PARK_SECONDS": "600"}
"""Beside those, for servers that nobody kills: however busy the machine is, no run changes hands or is parked."""


class Program:
    """A Python program that says in its first line that it is ready."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._arguments, self._environment, self._log = arguments, environment, log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Starts the program; returns its first line."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "OTEL_", "PG"))}
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                cwd=ROOT,
                env=kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python'}"} | dict(self._environment),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = await self.process.stdout.readline()
        assert line, f"it did not start: {self.log()[-3000:]}"
        return line.decode().strip()

    async def kill(self) -> None:
        """Ends it with SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGKILL)
            await self.process.wait()

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; False where it has ended."""
        if self.process is None or self.process.returncode is not None:
            return False
        try:
            # By the id: the process object would first look whether it lives, and take its exit code from asyncio.
            os.kill(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def wait(self, timeout_seconds: float = 30.0) -> int:
        """Waits for the end; returns the exit code."""
        assert self.process is not None
        async with asyncio.timeout(timeout_seconds):
            return await self.process.wait()

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(errors="replace")


class ServerProcess(Program):
    """`baton serve` on a port that stays the same over starts, in so many processes (0: without a supervisor).

    `module` is the command line, or one that stands in for another version of it; `build` the wheel of another version,
    which is given no settings but those of the test, as it refuses what it does not know.
    """

    def __init__(
        self,
        dsn: str,
        log: Path,
        settings: Mapping[str, str] | None = None,
        processes: int = 0,
        module: str = "baton.cli",
        build: Path | None = None,
        address: str = "",
    ) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        self.dsn = dsn
        self.sound = True
        """Whether its scrubber is to find nothing, which is looked at in the end."""
        environment = QUICK | dict(settings or {}) | {"BATON_DATABASE_URL": dsn}
        if build is not None:
            environment = dict(settings or {}) | {"BATON_DATABASE_URL": dsn, "PYTHONPATH": str(build)}
        arguments = ["-P", "-m", module, "serve", "--listen", self.address, "--output", "json"]
        arguments += ["--processes", str(processes)] if processes else []
        super().__init__(arguments, environment, log)


class LabProcess(Program):
    """A lab in a process of its own, whose notes are in a file."""

    def __init__(self, contract: Contract, directory: Path, port: int = 0, transport: str = "unary") -> None:
        self.address = ""
        self._notes = directory / f"{contract.package}.notes"
        file = directory / f"{contract.package}.binpb"
        file.write_bytes(contract.files.SerializeToString())
        self._port = port or free_port()
        arguments = ["-m", "tests.acceptance.lab_worker", str(file), contract.package, str(self._port)]
        super().__init__([*arguments, str(self._notes), transport], {}, directory / "lab.log")

    async def start(self) -> str:
        """Serves, at the same port each time; returns the address."""
        self.address = await super().start()
        return self.address

    def notes(self) -> list[Note]:
        """Everything noted so far, by every start of it."""
        if not self._notes.exists():
            return []
        return [Note(**json.loads(line)) for line in self._notes.read_text().splitlines()]
