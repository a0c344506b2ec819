"""Serves an agent that uses the SDK: it registers itself, tells where it listens, and ends at SIGTERM."""

from __future__ import annotations

import asyncio
import signal

from baton import Worker


def serve(worker: Worker) -> None:
    """Serves until SIGTERM or SIGINT. One line goes to standard output once Baton has taken the worker."""
    asyncio.run(_serve(worker))


async def _serve(worker: Worker) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    address = await worker.start()
    await worker.registered()
    print(f"listening on {address}", flush=True)
    await stop.wait()
    await worker.stop()
