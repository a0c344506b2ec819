"""Outages of a Postgres that a test has for itself."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import grpc.aio

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.acceptance.wire import Baton


def kill(postgres: EmbeddedPostgres) -> None:
    """Ends Postgres as a crash would: every backend is gone, nothing is written in good order."""
    assert postgres.process_id is not None
    os.kill(postgres.process_id, signal.SIGQUIT)
    postgres.stop()


def freeze(postgres: EmbeddedPostgres) -> None:
    """Lets Postgres stand still, with all that it does."""
    _send_to_all(postgres, signal.SIGSTOP)


def thaw(postgres: EmbeddedPostgres) -> None:
    """Lets it go on."""
    _send_to_all(postgres, signal.SIGCONT)


def _send_to_all(postgres: EmbeddedPostgres, number: signal.Signals) -> None:
    first = postgres.process_id
    assert first is not None
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    for process_id in (first, *map(int, children)):
        os.kill(process_id, number)


async def is_served(baton: Baton, run_id: str) -> None:
    """Returns once a run is shown again."""
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await baton.get(run_id)).run_id == run_id
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
