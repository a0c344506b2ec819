"""Where standard output takes nothing more: one line that says so, and no traceback."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from .programs import ROOT, Answer, Program, environment

needs_full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


async def _in_shell(line: str, *arguments: str, changes: dict[str, str] | None = None) -> Answer:
    """Runs `baton ARGUMENTS...` with the redirections of a shell's line; what it wrote to standard error is told."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'"$@" {line}', "sh", sys.executable, "-m", "baton.cli", *arguments),
        cwd=ROOT,
        env=environment(changes),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


@needs_full_device
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "--version", "worker ls -o json", "health"])
async def test_a_full_standard_output_is_told_in_one_line(server: Program, command: str, unbuffered: str) -> None:
    arguments = command.split() if command.startswith("--") else ["--server", server.address, *command.split()]
    answer = await _in_shell("> /dev/full", *arguments, changes={"PYTHONUNBUFFERED": unbuffered})
    assert answer.code == 1
    assert "cannot write to standard output: No space left on device" in answer.error
    assert "Traceback" not in answer.error
    assert len(answer.error.splitlines()) <= 2


async def test_a_closed_standard_output_is_told_before_anything_is_done(server: Program) -> None:
    answer = await _in_shell(">&-", "--server", server.address, "worker", "rm", "nobody")
    assert answer.code == 1
    assert "standard output is closed" in answer.error
    assert "Traceback" not in answer.error


async def test_a_closed_standard_error_changes_no_exit_code(server: Program) -> None:
    answer = await _in_shell("2>&-", "--server", server.address, "worker", "get", "nobody")
    assert (answer.code, answer.out, answer.error) == (6, "", "")


async def test_a_reader_that_has_seen_enough_is_no_error(server: Program) -> None:
    answer = await _in_shell("| :", "--server", server.address, "workflow", "ls", "-o", "json")
    assert answer.error == ""


async def test_migrate_works_without_a_standard_output(empty_database: str) -> None:
    answer = await _in_shell(">&-", "migrate", changes={"BATON_DATABASE_URL": empty_database})
    assert (answer.code, answer.error) == (0, "")
