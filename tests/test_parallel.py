"""A test that is to be alone is, though others come all the time."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path

from tests.parallel import Doors


async def shut(door: Path) -> None:
    """Waits until somebody holds a door."""
    async with asyncio.timeout(20):
        while True:
            with door.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
            await asyncio.sleep(0.001)


async def test_who_is_to_be_alone_waits_for_those_inside_and_not_for_those_who_come(tmp_path: Path) -> None:
    log: list[str] = []

    def enter(name: str, alone: bool) -> None:
        with Doors(tmp_path).entered(alone=alone):
            log.append(f"{name} begins")
            log.append(f"{name} ends")

    with Doors(tmp_path).entered(alone=False), Doors(tmp_path).entered(alone=False):
        alone = asyncio.create_task(asyncio.to_thread(enter, "alone", True))
        await shut(tmp_path / "outer")
        others = [asyncio.create_task(asyncio.to_thread(enter, "other", False)) for _ in range(3)]
        assert log == []
    async with asyncio.timeout(20):
        await asyncio.gather(alone, *others)
    assert log[:2] == ["alone begins", "alone ends"]
    assert len(log) == 8
