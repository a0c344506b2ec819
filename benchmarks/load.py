"""Makes the load of one work and times it, and speaks to the one who measures. Standard library only: peers import it.

A client program gives `serve` an object whose methods are its commands, and whose `one` gives what does one run.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

One = Callable[[], Awaitable[object]]

GRACE_SECONDS = 5.0
"""How long after the last arrival of an open loop its runs may still end; then they are missed."""

DRAIN_SECONDS = 30.0
_SEED = 7


class Driver(Protocol):
    """What a client program does. Other methods are commands too, and answer with what is written as JSON."""

    def one(self, shape: str) -> One:
        """Returns what submits one run of a shape and waits for its end; it raises where the run does not succeed."""
        ...


async def closed(one: One, count: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """Does `one` so many times, `in_flight` at once, each followed by the next; begins none after so many seconds."""
    latencies: list[float] = []
    numbers = iter(range(count))
    began = time.perf_counter()
    last = began + seconds

    async def lane() -> None:
        for _ in numbers:
            start = time.perf_counter()
            if start > last:
                return
            await one()
            latencies.append((time.perf_counter() - start) * 1e3)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(in_flight):
            lanes.create_task(lane())
    return {"seconds": time.perf_counter() - began, "latencies_ms": latencies, "missed": 0}


async def open_loop(one: One, count: int, rate: float) -> dict[str, Any]:
    """Begins `one` at instants of a Poisson process, so many a second, whatever came of those before.

    A latency counts from the instant at which the run was due. A run that fails or has not ended in time is missed; its
    latency is at least the time that it was given.
    """
    chance = random.Random(_SEED)
    latencies: list[float] = []
    under_way: dict[int, float] = {}
    missed = 0
    began = time.perf_counter()

    async def arrival(number: int, due: float) -> None:
        nonlocal missed
        under_way[number] = due
        try:
            await one()
        except Exception:  # refused, or failed: what matters is that the one who asked got nothing
            missed += 1
            latencies.append(max(GRACE_SECONDS, time.perf_counter() - due) * 1e3)
        else:
            latencies.append((time.perf_counter() - due) * 1e3)
        finally:
            del under_way[number]

    due = began
    arrivals = []
    for number in range(count):
        due += chance.expovariate(rate)
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        arrivals.append(asyncio.create_task(arrival(number, due)))
    await asyncio.wait(arrivals, timeout=GRACE_SECONDS)
    now = time.perf_counter()
    in_time = list(latencies)
    in_time += [(now - due) * 1e3 for due in under_way.values()]
    answer = {"seconds": now - began, "latencies_ms": in_time, "missed": missed + len(under_way)}
    # What is late is let end, so that it burdens nothing that is measured later.
    _, hanging = await asyncio.wait(arrivals, timeout=DRAIN_SECONDS)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    return answer


async def serve(driver: Driver) -> None:
    """Does what each line of standard input says, `{"do": name, ...}`, and answers each with one line of JSON."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        name = command.pop("do")
        answer = await (_load(driver, **command) if name == "runs" else getattr(driver, name)(**command))
        print(json.dumps(answer), flush=True)


async def _load(driver: Driver, shape: str, count: int, in_flight: int, rate: float, seconds: float) -> dict[str, Any]:
    one = driver.one(shape)
    return await (open_loop(one, count, rate) if rate else closed(one, count, in_flight, seconds))
