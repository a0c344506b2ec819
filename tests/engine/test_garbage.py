"""A run that is over is gone at once: nothing of it waits for the garbage collector, with all its payloads."""

from __future__ import annotations

import gc

from benchmarks.hotpath import Server, load, prove


async def test_runs_leave_no_cycles_behind(database: str) -> None:
    async with Server(database) as server:
        await prove(server.submit, "W3")
        gc.collect()
        gc.disable()
        try:
            await load(server.submit, "W4", 50, 10)
            found = gc.collect()
        finally:
            gc.enable()

    assert found < 50, "not even one object a run"
