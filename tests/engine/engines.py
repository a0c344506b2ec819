"""A whole engine on a real Postgres, with workers and a way to the database that do as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from baton.v1 import run_service_pb2

from benchmarks import hotpath
from benchmarks.contract import DoRequest
from orchestrator.engine.drive import Driver
from orchestrator.engine.engine import Engine
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.ports import JournalStore, RunEntry, WriteResult
from orchestrator.engine.updates import Encoded
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Sending
from orchestrator.security.tokens import TokenSigner

WAIT_SECONDS = 20.0


def submission(work: str, text: str = "x", **timeouts: int) -> run_service_pb2.SubmitRunRequest:
    """A run of a work of the benchmarks."""
    request = run_service_pb2.SubmitRunRequest(workflow=hotpath.WORKFLOWS[work])
    request.input.Pack(DoRequest(text=text))
    for field, seconds in timeouts.items():
        getattr(request, field).FromSeconds(seconds)
    return request


class Mute(hotpath.EchoGateway):
    """Answers no call by itself; `calls` holds all that were made."""

    def __init__(self, signer: TokenSigner) -> None:
        super().__init__(signer)
        self.calls: list[tuple[Call, CallListener]] = []

    def send(self, call: Call, listener: CallListener) -> Sending:
        self.calls.append((call, listener))
        return self

    def cancel(self) -> None:
        """Nothing is to be cancelled."""

    def answer(self, number: int) -> None:
        """Answers one of the calls with its request."""
        call, listener = self.calls[number]
        listener.answered(Answer(payload=call.payload))


class Gate:
    """Lets batches through to the journal's store while it is `open`."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0

    async def write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        return await self._store.write(replica_id, entries)


@dataclass
class Place:
    """An engine that runs, its worker, and its way to the database."""

    engine: Engine
    worker: Mute
    gate: Gate

    @property
    def driver(self) -> Driver:
        return self.engine._driver


def told_by(message: run_service_pb2.WatchRunsResponse | Encoded) -> run_service_pb2.WatchRunsResponse:
    """A message of a watch of many runs as its reader gets it."""
    return run_service_pb2.WatchRunsResponse.FromString(message.data) if isinstance(message, Encoded) else message


async def until(what: Callable[[], object]) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not what():  # noqa: ASYNC110 - nobody tells of what a test looks into the engine for
            await asyncio.sleep(0.005)


@asynccontextmanager
async def engine_on(
    database: str, monkeypatch: pytest.MonkeyPatch, limits: EngineLimits | None = None
) -> AsyncIterator[Place]:
    """Runs an engine whose worker answers when told."""
    made: list[Engine] = []
    workers: list[Mute] = []

    def make(*arguments: Any) -> Engine:
        made.append(Engine(*(limits or one if isinstance(one, EngineLimits) else one for one in arguments)))
        return made[0]

    def worker(signer: TokenSigner) -> Mute:
        workers.append(Mute(signer))
        return workers[0]

    monkeypatch.setattr(hotpath, "EchoGateway", worker)
    monkeypatch.setattr(hotpath, "Engine", make)
    async with hotpath.Server(database):
        journal = made[0]._driver.journal
        gate: Any = Gate(journal._store)
        journal._store = gate
        yield Place(made[0], workers[0], gate)
