"""The client of DBOS's queue: enqueues a workflow and polls for its end, both as often as the worker looks."""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvloop
from dbos import DBOSClient, EnqueueOptions

from benchmarks.load import One, serve
from benchmarks.works import SHAPES, TEXT

QUEUE, VERSION = "bench", "1"
_THREADS = 24
"""It waits for the database in threads; with more of them these two cores did fewer runs."""


class QueueClient:
    """Submits to the queue and waits."""

    def __init__(self, database: str, poll_seconds: float) -> None:
        self._client = DBOSClient(system_database_url=database, system_database_pool_size=_THREADS)
        self._poll_seconds = poll_seconds

    def one(self, shape: str) -> One:
        """Returns what enqueues one workflow and waits for its result."""
        name = "stages" if max(SHAPES[shape]) > 1 else "chain"
        options: EnqueueOptions = {"workflow_name": name, "queue_name": QUEUE, "app_version": VERSION}

        async def one() -> None:
            handle = await self._client.enqueue_async(options, shape, TEXT)
            await handle.get_result(polling_interval_sec=self._poll_seconds)

        return one


async def _main(arguments: argparse.Namespace) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    await serve(QueueClient(arguments.database, arguments.poll_seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True, help="DSN")
    parser.add_argument("--poll-seconds", type=float, required=True, help="how often to look for a result")
    uvloop.run(_main(parser.parse_args()))
