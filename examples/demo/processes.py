"""The processes of the demo: each starts, says where it listens, and is stopped or killed. All die with the demo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 15.0

# Runs a module as `python -m` does, after asking the kernel to stop this process when the demo dies, however it dies.
_LAUNCH = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def _inherited() -> dict[str, str]:
    """The demo's environment without settings of another Baton or Postgres."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "PG"))}


class StartFailed(Exception):
    """A process did not say where it listens; the text tells where its log is."""


class Processes:
    """Processes by name."""

    def __init__(self, root: Path, logs: Path) -> None:
        self._root = root
        self._logs = logs
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Starts `python -m COMMAND...` and returns the address that its first line tells. Raises StartFailed."""
        log_path = self._logs / f"{name}.log"
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _LAUNCH,
                *command,
                cwd=self._root,
                env={**_inherited(), **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which stops the others in order
            )
        self._running[name] = process
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except TimeoutError:
            line = b""
        text = line.decode().strip()
        if not text:
            raise StartFailed(f"{name} did not start; see {log_path}")
        return str(json.loads(text)["address"]) if text.startswith("{") else text.rpartition(" ")[2]

    async def kill(self, name: str) -> None:
        """Ends a process as a crash would: it gets no chance to say goodbye."""
        process = self._running.pop(name)
        process.kill()
        await process.wait()

    async def stop(self, name: str) -> int:
        """Asks a process to end, kills it where it does not, and returns its exit code."""
        process = self._running.pop(name)
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        return process.returncode if process.returncode is not None else -1

    async def stop_all(self, first: str) -> dict[str, int]:
        """Stops everything, `first` before the others; returns the exit codes."""
        codes = {}
        if first in self._running:
            codes[first] = await self.stop(first)
        names = list(self._running)
        codes |= dict(zip(names, await asyncio.gather(*map(self.stop, names)), strict=True))
        return codes
