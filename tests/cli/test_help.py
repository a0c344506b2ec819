"""Help, exit codes, and what is told of a command line that is wrong, or where nobody answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from baton.cli.reports import how_to_reach

from .programs import baton, environment

HEAVY = ("google.protobuf", "grpc", "rich.console", "orchestrator", "asyncpg", "asyncio", "yaml")
NO_RUN = "01a202d1-04cc-74ec-b371-535894f2d877"

CHECK = f"""
import sys
from baton.cli import main
sys.argv = ["baton", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code
print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("run", "--help"), ("run", "submit", "--help"), ("dev", "--help"), ("--version",)],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *arguments], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr.strip() == "0 []"
    assert "baton" in done.stdout


async def test_help_tells_the_exit_codes() -> None:
    answer = await baton("--help")
    for line in ("0  success", "3  the run ended as FAILED", "5  the wait was over", "6  no worker"):
        assert line in answer.out


async def test_what_is_no_command_is_a_usage_error() -> None:
    answer = await baton("run", "sumbit")
    assert (answer.code, answer.out) == (2, "")
    assert "sumbit" in answer.error


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (("run", "show"), "get"),
        (("workflow", "delete"), "rm"),
        (("worker", "delete"), "rm"),
        (("limit", "remove"), "rm"),
        (("run", "list"), "ls"),
        (("run", "sumbit"), "submit"),
    ],
)
async def test_the_word_of_another_tool_is_told_in_ours(words: tuple[str, ...], own: str) -> None:
    answer = await baton(*words)
    assert answer.code == 2
    assert f"No such command '{words[-1]}'. Did you mean '{own}'?" in answer.error


async def test_a_run_needs_a_workflow_by_name_or_file() -> None:
    assert (await baton("run", "submit")).code == 2
    assert (await baton("run", "submit", "a", "--inline", "b.yaml")).code == 2


async def test_a_longest_wait_needs_a_wait() -> None:
    answer = await baton("run", "submit", "a", "--timeout", "5s")
    assert answer.code == 2
    assert "--timeout goes with --wait" in answer.error


@pytest.mark.parametrize(
    "words", [("ls",), ("watch", NO_RUN), ("watch", "--filter", ""), ("wait", NO_RUN)], ids=" ".join
)
async def test_where_nobody_serves_the_cure_is_told_soon(words: tuple[str, ...]) -> None:
    async with asyncio.timeout(30):
        answer = await baton("--server", "127.0.0.1:1", "run", *words)
    assert (answer.code, answer.out) == (1, "")
    assert "127.0.0.1:1" in answer.error
    assert "baton dev" in answer.error


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("http://127.0.0.1:1", "give the address without http://, such as 127.0.0.1:1"),
        ("https://baton.example/", "give the address without https://, such as baton.example"),
        ("localhost", "give the address with a port, such as localhost:7330"),
        ("dns:///localhost:1", "start one with `baton dev`"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(address: str, cure: str) -> None:
    assert how_to_reach(address).startswith(cure)
