"""What works where only the base dependencies are installed, and what a running server has loaded."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from .programs import COMMAND_SECONDS, ROOT, Answer, Program, environment

BASE_ONLY = Path(__file__).parent / "base_only.py"

SERVER_ONLY = (
    "asyncpg",
    "cel_expr_python",
    "cronsim",
    "opentelemetry",
    "protovalidate",
    "pybreaker",
    "uuid_utils",
    "uvloop",
)

LEFT_OUT = {
    "cel_expr_python.cel",  # until a workflow has an expression
    "opentelemetry",  # until something is exported
    "pydantic",  # of typer, which `baton serve` does without
    "pygments",
    "rich",
    "typer",
    "yaml",
}

SERVE = """
import os, sys
from baton.cli import main
leave = os._exit
os._exit = lambda code: (print(*sys.modules, flush=True), leave(code))
sys.argv = ["baton", "serve", "--listen", "127.0.0.1:0", "-o", "json"]
main()
"""


async def run(*words: str) -> Answer:
    """Runs Python with `words` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        cwd=ROOT,
        env=environment({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples/gen'}"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


async def test_worker_and_client_need_the_base_dependencies_alone(server: Program) -> None:
    answer = await run(str(BASE_ONLY), "tests.cli.sdk_program", server.address)
    assert (answer.code, answer.out) == (0, "Ada\n"), answer.error


async def test_the_command_line_needs_the_base_dependencies_alone(server: Program) -> None:
    told = await run(str(BASE_ONLY), "baton.cli", "--help")
    assert (told.code, "baton dev" in told.out) == (0, True), told.error
    listed = await run(str(BASE_ONLY), "baton.cli", "--server", server.address, "run", "ls", "--limit", "1")
    assert listed.code == 0, listed.error


async def test_the_server_is_told_to_be_missing_where_it_is() -> None:
    for arguments in (("serve",), ("serve", "--listen", "127.0.0.1:0"), ("dev",), ("migrate",)):
        answer = await run(str(BASE_ONLY), "baton.cli", *arguments)
        assert (answer.code, answer.out) == (1, "")
        assert "the server is not installed" in answer.error
        assert "pip install 'baton[server,embedded]'" in answer.error


async def test_what_is_left_out_is_really_left_out() -> None:
    program = "import tests.cli.base_only as base; print(*sorted(base.NotInstalled().packages))"
    missing = set((await run("-c", program)).out.split())
    assert missing >= set(SERVER_ONLY)
    assert not missing & {"baton", "buf", "google", "grpc", "grpc_health", "grpc_reflection", "rich", "typer", "yaml"}


async def test_a_server_loads_nothing_that_it_does_not_need(database: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVE,
        cwd=ROOT,
        env=environment({"BATON_DATABASE_URL": database}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        assert "address" in json.loads(await asyncio.wait_for(process.stdout.readline(), COMMAND_SECONDS))
        process.send_signal(signal.SIGINT)
        loaded = set((await asyncio.wait_for(process.stdout.read(), COMMAND_SECONDS)).decode().split())
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert {"orchestrator.app", "asyncpg", "grpc", "protovalidate", "uvloop"} <= loaded
    assert not LEFT_OUT & loaded
