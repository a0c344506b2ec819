"""DBOS: the workflows, and the program that runs them, in its own process or as the worker of a queue.

Steps one after the other are plain functions in threads, steps side by side are coroutines: each the faster of the two
ways here. Traces and logs below warnings are off. There are as many connections as threads, so that none waits for one.
"""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvloop
from dbos import DBOS, DBOSConfig

from benchmarks.load import One, serve
from benchmarks.works import SHAPES, TEXT

QUEUE = "bench"
VERSION = "1"
THREADS = 32
"""Of each process; two have together one for each workflow in flight."""


@DBOS.step()
def step(text: str) -> str:
    """Answers with the text that it is given."""
    return text


@DBOS.workflow()
def chain(shape: str, text: str) -> str:
    """Does the steps of a shape one after the other."""
    for _ in SHAPES[shape]:
        text = step(text)
    return text


@DBOS.step()
async def parallel_step(text: str) -> str:
    """Answers with the text that it is given."""
    return text


@DBOS.workflow()
async def stages(shape: str, text: str) -> str:
    """Does the stages of a shape one after the other, the steps of each side by side."""
    for width in SHAPES[shape]:
        text = (await asyncio.gather(*(parallel_step(text) for _ in range(width))))[-1]
    return text


class App:
    """Runs workflows in this process, as DBOS is mostly used."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS)

    def one(self, shape: str) -> One:
        """Returns what runs one workflow."""
        if max(SHAPES[shape]) > 1:
            return lambda: stages(shape, TEXT)
        return lambda: asyncio.get_running_loop().run_in_executor(self._threads, chain, shape, TEXT)


def _launch(database: str, executor: str, poll_seconds: float) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": database,
        "sys_db_pool_size": THREADS,
        "log_level": "WARNING",
        "application_version": VERSION,
        "executor_id": executor,
        "enable_otlp": False,
    }
    DBOS(config=config)
    DBOS.launch()
    if poll_seconds:
        DBOS.register_queue(QUEUE, polling_interval_sec=poll_seconds, on_conflict="always_update")
    print("ready", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True, help="DSN")
    parser.add_argument("--executor", required=True, help="name of this process")
    parser.add_argument("--poll-seconds", type=float, default=0.0, help="serve a queue, looked at so often")
    chosen = parser.parse_args()
    _launch(chosen.database, chosen.executor, chosen.poll_seconds)
    uvloop.run(serve(App()))
