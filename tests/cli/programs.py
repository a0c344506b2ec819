"""The command line and the example workers as processes: what a person would start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS = 40.0
COMMAND_SECONDS = 40.0


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what Baton, Postgres and terminals would read from it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "PG", "OTEL_"))}
    kept.pop("NO_COLOR", None)
    kept.pop("FORCE_COLOR", None)
    return {**kept, "PYTHONUNBUFFERED": "1", **(changes or {})}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command ended with."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        """The JSON documents on standard output, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


async def baton(*arguments: str, stdin: str = "", changes: Mapping[str, str] | None = None) -> Answer:
    """Runs `baton ARGUMENTS...` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "baton.cli",
        *arguments,
        cwd=ROOT,
        env=environment(changes),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(stdin.encode()), COMMAND_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


class Program:
    """A process that goes on: a server or a worker. `first_line` is what it said once it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, first_line: str) -> None:
        self.process = process
        self.first_line = first_line

    @classmethod
    async def start(cls, *command: str, changes: Mapping[str, str] | None = None) -> Program:
        """Starts `python -m COMMAND...` and waits for its first line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            cwd=ROOT,
            env=environment(changes),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        assert line, f"{' '.join(command)} ended with {await process.wait()}"
        return cls(process, line.decode().strip())

    @property
    def address(self) -> str:
        """Where it listens."""
        if self.first_line.startswith("{"):
            return str(json.loads(self.first_line)["address"])
        return self.first_line.rpartition(" ")[2]

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Asks it to end and returns its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            return await asyncio.wait_for(self.process.wait(), START_SECONDS)
        except TimeoutError:
            self.process.kill()
            raise
