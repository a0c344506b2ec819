"""DBOS: the workflows, and the program that runs them, in its own process or as the worker of a queue.

Async, which its documentation advises where many workflows wait at once. Traces and logs below warnings are off.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop
from dbos import DBOS, DBOSConfig

from benchmarks.load import One, serve
from benchmarks.works import SHAPES, TEXT

QUEUE = "bench"
VERSION = "1"
POOL = 32
"""Connections of each process; half of the workflows in flight, which is what two processes can use here."""


@DBOS.step()
async def step(text: str) -> str:
    """Answers with the text that it is given."""
    return text


@DBOS.workflow()
async def run(shape: str, text: str) -> str:
    """Does the stages of a shape one after the other, the steps of each side by side."""
    for width in SHAPES[shape]:
        text = (await asyncio.gather(*(step(text) for _ in range(width))))[-1]
    return text


class App:
    """Runs workflows in this process, as DBOS is mostly used."""

    def one(self, shape: str) -> One:
        """Returns what runs one workflow."""
        return lambda: run(shape, TEXT)


def _launch(database: str, executor: str, poll_seconds: float) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": database,
        "sys_db_pool_size": POOL,
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
