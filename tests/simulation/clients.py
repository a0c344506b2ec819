"""Simulated clients: they submit with a request id until they are told, more than once, watch, signal and cancel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from baton.v1 import run_service_pb2, workflow_pb2
from google.protobuf import any_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    InvalidCursor,
    NamespaceQueueFull,
    OwnerUnavailable,
    RunEnded,
    ShuttingDown,
    TooManyRuns,
)
from tests.simulation.network import Unreachable
from tests.simulation.workflows import JOB, Done, signals_of

if TYPE_CHECKING:
    from tests.simulation.processes import Verb
    from tests.simulation.world import World

TRY_AGAIN = (Unreachable, DatabaseUnavailable, OwnerUnavailable, ShuttingDown, TooManyRuns, NamespaceQueueFull)


@dataclass(slots=True)
class Order:
    """What one client wants, and what it was told."""

    number: int
    caller: Caller
    workflow: workflow_pb2.Workflow
    copies: int
    request_id: str
    runs: list[UUID] = field(default_factory=list)
    """The run that each submission was told of."""
    submit_time: int = 0
    """When the first submission was sent, or where one is told that it made the run, that one; in microseconds."""
    signals: list[str] = field(default_factory=list)
    """Request ids of signals that were acknowledged."""


@dataclass(slots=True)
class Watched:
    """What a watcher has seen of a run."""

    caller: Caller
    run_id: UUID
    last_sequence: int = 0
    events: list[Any] = field(default_factory=list)
    ended: bool = False


class Client:
    """One client with one order."""

    def __init__(self, world: World, order: Order) -> None:
        self._world, self.order = world, order
        self._draws = world.draws

    async def live(self) -> None:
        """Submits, and does with the run what clients do."""
        power = 0.5 if "absent" in self._world.stress else 2
        await asyncio.sleep(self._draws.random() ** power * self._world.busy_seconds)
        submissions = [self._submit(copy) for copy in range(self.order.copies)]
        told = await asyncio.gather(*submissions)
        run_id = told[0]
        doings = [self._watch(run_id, self._draws.random() < 0.5) for _ in range(self._draws.choice((0, 1, 1, 2)))]
        doings += [
            self._signal(run_id, number, name)
            for number, name in enumerate(signals_of(self.order.workflow))
            if self._draws.random() < 0.8
        ]
        if self._draws.random() < 0.2:
            doings.append(self._cancel(run_id))
        doings.append(self._get(run_id))
        await asyncio.gather(*doings)

    async def _somewhere(self, verb: Any, seconds: float) -> Any:
        """Asks any replica, again until it is told. Errors: those that are no use to try again."""
        return await self._again(lambda: self._world.any_process().call(verb, seconds))

    async def _again(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        pause = 0.05
        while True:
            try:
                return await ask()
            except TRY_AGAIN:
                await asyncio.sleep(pause * (0.5 + self._draws.random()))
                pause = min(pause * 2, 1.5)

    async def _submit(self, copy: int) -> UUID:
        order = self.order
        if copy:
            await asyncio.sleep(self._draws.choice((0.0, 0.0, 0.5, 5.0)))
        job = Done(text=f"order {order.number}", number=order.number % 2)
        for item in range(order.number % 4):
            job.items.add(text=f"item {item}")
        request = run_service_pb2.SubmitRunRequest(
            workflow=order.workflow.name,
            request_id=order.request_id,
            input=any_pb2.Any(type_url=f"type.googleapis.com/{JOB}", value=job.SerializeToString(deterministic=True)),
        )
        request.wait_timeout.seconds = self._draws.choice((0, 0, 2))
        order.submit_time = order.submit_time or self._world.database.now()

        response = await self._again(lambda: self._world.any_process().call(self._submission(request), 6.0))
        run_id = UUID(response.run.run_id)
        order.runs.append(run_id)
        self._world.trace(f"client {order.number}", f"is told of {str(run_id)[-6:]}")
        return run_id

    def _submission(self, request: run_service_pb2.SubmitRunRequest) -> Verb:
        """Submits once, from now on."""
        order, judge, send_time = self.order, self._world.judge, self._world.database.now()

        async def verb(engine: Any) -> Any:
            response = await engine.runs.submit(order.caller, request)
            if not response.existing:
                order.submit_time = send_time
            judge.acknowledged(order, UUID(response.run.run_id))
            return response

        return verb

    async def _signal(self, run_id: UUID, number: int, name: str) -> None:
        await asyncio.sleep(self._draws.random() * 6)
        order = self.order
        request = run_service_pb2.SignalRunRequest(
            run_id=str(run_id), signal=name, request_id=f"{order.request_id}/{number}"
        )
        request.payload.type_url = f"type.googleapis.com/{JOB}"
        try:
            await self._somewhere(lambda engine: engine.runs.signal(order.caller, request), 5.0)
        except RunEnded:
            return
        order.signals.append(request.request_id)

    async def _cancel(self, run_id: UUID) -> None:
        await asyncio.sleep(self._draws.random() * 6)
        caller = self.order.caller
        with contextlib.suppress(RunEnded):
            await self._somewhere(lambda engine: engine.runs.cancel(caller, run_id, "changed its mind"), 10.0)

    async def _get(self, run_id: UUID) -> None:
        await asyncio.sleep(self._draws.random() * 8)
        caller = self.order.caller
        run, _ = await self._somewhere(lambda engine: engine.runs.get(caller, run_id, 2), 5.0)
        self._world.judge.shown(caller.namespace, run)

    async def _watch(self, run_id: UUID, batch: bool) -> None:
        """Watches to the end, at one replica after another, each time from where it was."""
        watched = Watched(self.order.caller, run_id)
        self._world.judge.watchers.append(watched)
        cursor = ""
        while not watched.ended:
            stream = self._world.any_process().watch(watched.caller, run_id, cursor, batch)
            try:
                while True:
                    # Now and then it goes elsewhere though nothing is wrong.
                    message = await stream.next(self._draws.choice((0.3, 7.0, 7.0)))
                    if message is None:
                        watched.ended = True
                        break
                    if isinstance(message, TRY_AGAIN):
                        break
                    if isinstance(message, BatonError):
                        if isinstance(message, InvalidCursor) or not isinstance(message, TRY_AGAIN):
                            self._world.fault(f"a watch of {run_id} failed: {message}")
                        return
                    for part in (message, *message.more):
                        cursor = part.cursor
                        self._world.judge.seen(watched, part)
            except Unreachable:
                pass
            await asyncio.sleep(0.02 + self._draws.random() * 0.3)
