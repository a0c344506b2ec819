"""The demo, interrupted: nothing that it started is left."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from .programs import ROOT, environment


def _processes_below(folder: Path) -> list[str]:
    """Command lines of processes that were started by the demo in `folder`; none where the system does not tell."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            told = (each / "environ").read_bytes()
            if str(folder).encode() in told:
                found.append((each / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


async def test_an_interrupted_demo_stops_all_that_it_started(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "examples.demo",
        str(folder),
        cwd=ROOT,
        env=environment({"STARTED_BY_DEMO_IN": str(folder)}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if b"50/300 ended" in line:
                break
        else:
            raise AssertionError("the demo ended before it was interrupted")
        process.send_signal(signal.SIGINT)
        await process.stdout.read()
        assert await process.wait() == 130
    assert _processes_below(folder) == []
