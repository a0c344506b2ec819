"""What must not outlive the test that made it, a plugin: tasks, channels, servers and processes.

Each of these would go on calling, or answering, whatever the next tests begin. What wider fixtures make is there before
a test begins, and so is no leftover of it.
"""

from __future__ import annotations

import asyncio
import subprocess
import weakref
from collections.abc import AsyncIterator
from itertools import takewhile
from typing import Any

import pytest
from grpc.aio import _channel, _server

WAIT_SECONDS = 5.0
"""What is on its way out when a test ends has so much time."""

_LOOK_SECONDS = 0.005

_FIXTURE = "nothing_is_left"

_channels: weakref.WeakSet[Any] = weakref.WeakSet()
_servers: weakref.WeakSet[Any] = weakref.WeakSet()
_processes: weakref.WeakSet[Any] = weakref.WeakSet()


def alive() -> set[object]:
    """What is at work in this process now, but for the task that asks."""
    found: set[object] = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    found |= {channel for channel in _channels if not channel._channel.closed()}
    found |= {server for server in _servers if server._server.is_running()}
    return found | {process for process in _processes if process.returncode is None}


async def left_since(before: set[object], wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """What is at work and was not before, once it had time to end."""
    loop = asyncio.get_running_loop()
    end_seconds = loop.time() + wait_seconds
    while (left := alive() - before) and loop.time() < end_seconds:  # noqa: ASYNC110 - not all of these tell
        await asyncio.sleep(_LOOK_SECONDS)
    return sorted(_name(each) for each in left)


@pytest.fixture
async def nothing_is_left() -> AsyncIterator[None]:
    """Fails a test that something outlives."""
    before = alive()
    yield
    left = await left_since(before)
    assert not left, f"the test has ended, and these have not: {left}"


def pytest_configure() -> None:
    """Takes note of every channel, server and process that is made from here on."""
    _note(_channel.Channel, _channels)
    _note(_server.Server, _servers)
    _note(subprocess.Popen, _processes)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets each test that runs in the loop be looked at, around its fixtures and inside of wider ones."""
    for item in items:
        if item.get_closest_marker("asyncio") is not None and isinstance(item, pytest.Function):
            wider = takewhile(lambda name, item=item: _is_wider(item, name), item.fixturenames)  # type: ignore[misc]
            item.fixturenames.insert(len(list(wider)), _FIXTURE)


def _is_wider(item: pytest.Function, name: str) -> bool:
    """Tells whether a fixture outlives the tests that use it."""
    found = item._fixtureinfo.name2fixturedefs.get(name)
    return found is not None and found[-1].scope != "function"


def _note(kind: Any, made: weakref.WeakSet[Any]) -> None:
    make = kind.__init__

    def make_and_note(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        made.add(self)

    kind.__init__ = make_and_note


def _name(left: object) -> str:
    if isinstance(left, asyncio.Task):
        return f"task {left.get_coro()}"
    if isinstance(left, subprocess.Popen):
        return f"process {left.pid}: {left.args!r}"
    channel: Any = getattr(left, "_channel", None)
    return f"channel to {channel.target.decode()}" if channel is not None else "server"
