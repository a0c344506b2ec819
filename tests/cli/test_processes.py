"""`baton serve --processes`: what is refused, what becomes of processes that cannot serve, and of those left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from baton.cli.processes import Place, _send

from .programs import Program, baton

DSN = {"BATON_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}


@pytest.mark.parametrize(
    ("words", "changes", "code", "told"),
    [
        (["--processes", "0"], {}, 2, "--processes: 0 is not from 1 to 64"),
        (["--processes", "65"], {}, 2, "--processes: 65 is not from 1 to 64"),
        (["--processes", "2", "--listen", "unix:/tmp/x"], {}, 1, "a Unix socket is listened on by one process"),
        (["--processes", "2"], {"BATON_REPLICA_ADDRESS": "10.0.0.5"}, 1, "BATON_REPLICA_ADDRESS='10.0.0.5'"),
        (["--processes", "2"], {"BATON_REPLICA_ADDRESS": "a:65535"}, 1, "not HOST:PORT with 2 ports from there on"),
        (["--processes", "2", "--listen", "192.0.2.1:0"], {}, 1, "cannot listen on 192.0.2.1:0"),
    ],
)
async def test_what_cannot_be_is_refused(words: list[str], changes: dict[str, str], code: int, told: str) -> None:
    answer = await baton("serve", *words, changes=DSN | changes)
    assert (answer.code, answer.out) == (code, "")
    assert answer.error.startswith("error: ")
    assert told in answer.error


def test_each_process_has_an_address_of_its_own_for_the_others() -> None:
    alone = Place("0.0.0.0:7330", "")
    assert alone.environment(1) == {
        "BATON_LISTEN_ADDRESS": "0.0.0.0:7330",
        "BATON_REPLICA_LISTEN_ADDRESS": "127.0.0.1:0",
    }
    told = Place("0.0.0.0:7330", "host-a:7340")
    assert told.environment(1) == {
        "BATON_LISTEN_ADDRESS": "0.0.0.0:7330",
        "BATON_REPLICA_LISTEN_ADDRESS": "0.0.0.0:7341",
        "BATON_REPLICA_ADDRESS": "host-a:7341",
    }


async def test_processes_that_cannot_start_are_not_tried_for_ever() -> None:
    answer = await baton("serve", "--processes", "2", "--listen", "127.0.0.1:0", changes=DSN)
    assert (answer.code, answer.out) == (1, "")
    assert "the database cannot be reached" in answer.error


async def test_an_address_that_is_shared_within_is_not_shared_with_others(database: str) -> None:
    changes = {"BATON_DATABASE_URL": database}
    words = ("serve", "--listen", "127.0.0.1:0", "-o", "json", "--processes", "2")
    first = await Program.start("baton.cli", *words, changes=changes)
    try:
        assert json.loads(first.first_line) == {"address": first.address, "processes": 2}
        for more in ((), ("--processes", "2")):
            second = await baton("serve", "--listen", first.address, *more, changes=changes)
            assert second.code == 1
            assert second.error.startswith(f"error: cannot listen on {first.address}")
            assert "--listen HOST:PORT" in second.error
        assert (await baton("health", "--server", first.address)).code == 0
    finally:
        assert await first.stop(signal.SIGTERM) == 0


async def test_a_signal_takes_no_exit_code_from_a_process_that_has_just_ended() -> None:
    """What it ended with decides whether the stop was in good order. Many, for each wins a race or loses it."""
    for _ in range(40):
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 3", stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.read() == b""
        _send(process, signal.SIGTERM)
        assert await process.wait() == 3


async def test_processes_do_not_outlive_their_supervisor(database: str) -> None:
    words = ("serve", "--listen", "127.0.0.1:0", "--processes", "2")
    program = await Program.start("baton.cli", *words, changes={"BATON_DATABASE_URL": database})
    left = children(program.process.pid)
    assert len(left) == 2
    program.process.kill()
    await program.process.wait()
    for pid in left:
        await asyncio.wait_for(_ended(pid), 20)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _ended(pid: int) -> None:
    """Waits for the end of a process that is nobody's child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        over = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, over.set)
        await over.wait()
        asyncio.get_running_loop().remove_reader(handle)
    finally:
        os.close(handle)
