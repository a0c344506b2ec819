"""Simulated people who mend runs: they retry, skip, fork, pause and resume at random replicas, several at once.

Each wish is sent again, to another replica, until it is answered. It has a principal of its own, by which the judge
knows what became of it (rounds.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

from baton.v1 import run_service_pb2
from google.protobuf import any_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    ChildRun,
    InvalidRequest,
    OutputNeeded,
    RequestIdReused,
    RunActive,
    RunEnded,
    RunSucceeded,
    StepNotFound,
    StepNotMendable,
    StepsInTheWay,
    SubstituteInvalid,
)
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import ENDED_RUN
from tests.simulation.clients import TRY_AGAIN, Order
from tests.simulation.workflows import DONE, Done

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMES_SKIPPED = 6
"""Steps that somebody skips at first where worlds are stressed by that."""
REFUSED = (
    InvalidRequest,  # By a replica that has lost the run and not learnt of that: its round is an old one.
    RunActive,
    RunSucceeded,
    RunEnded,
    ChildRun,
    StepNotFound,
    StepNotMendable,
    StepsInTheWay,
    SubstituteInvalid,
    OutputNeeded,
)
"""What somebody who mends may be told; the state of the run is to blame."""

PAUSE_SECONDS = 6.0
"""How long a run stays paused at most that nobody remembers to have paused."""


class Mender:
    """Somebody who mends the run of an order."""

    def __init__(self, world: World, order: Order) -> None:
        self._world, self._order, self._draws = world, order, world.draws
        self._wishes = 0

    async def live(self) -> None:
        """Mends the run a few times, in its life and after its end."""
        while not self._order.runs:  # noqa: ASYNC110  # as people do, who are told by nobody
            await asyncio.sleep(0.2)
        key = RunKey(self._order.caller.namespace, self._order.runs[0])
        if "skipped" in self._world.stress:
            for _ in range(TIMES_SKIPPED):
                await asyncio.sleep(self._draws.random())
                await self._skip(key)
        await asyncio.gather(*(self._mend(key) for _ in range(self._draws.choice((1, 2, 4)))))

    async def _mend(self, key: RunKey) -> None:
        draws, world = self._draws, self._world
        await asyncio.sleep(draws.random() * 5)
        if draws.random() < 0.6:  # After its end, and then at once or a while later.
            while world.database.runs[key].state not in ENDED_RUN:  # noqa: ASYNC110
                await asyncio.sleep(0.1 + draws.random() * 0.2)
            if draws.random() < 0.4:  # Several see it at the same time.
                await asyncio.gather(self._retry(key), self._retry(key), self._retry_step(key))
                return
        await draws.choice((self._retry, self._retry, self._retry_step, self._skip, self._fork, self._hold))(key)

    def _wish(self) -> Caller:
        """Whoever has one wish."""
        self._wishes += 1
        return Caller(self._order.caller.namespace, f"mender-{self._order.number}-{self._wishes}", "grpc")

    def _some_step(self) -> str:
        step: str = self._draws.choice(self._order.workflow.steps).id
        return f"{step}/undo" if self._draws.random() < 0.1 else step

    async def _ask(self, verb: Any) -> Any:
        """Sends a wish until it is answered; None where it is refused."""
        while True:
            try:
                return await self._world.any_process().call(verb, 5.0)
            except TRY_AGAIN:
                await asyncio.sleep(0.05 + self._draws.random())
            except REFUSED:
                return None
            except BatonError as error:
                self._world.fault("a wish to mend was refused", error)
                return None

    def _name_round(self, request: Any, key: RunKey, caller: Caller) -> None:
        if self._draws.random() < 0.5:
            request.round = self._world.database.runs[key].round
            self._world.judge.rounds.named_round.add(caller.principal)

    async def _retry(self, key: RunKey) -> None:
        caller = self._wish()
        request = run_service_pb2.RetryRunRequest(run_id=str(key.run_id), reason="run")
        self._name_round(request, key, caller)
        request.validate_only = self._draws.random() < 0.1
        await self._send(key, caller, request, lambda engine: engine.runs.retry(caller, request))

    async def _retry_step(self, key: RunKey) -> None:
        caller, step = self._wish(), self._some_step()
        request = run_service_pb2.RetryStepRequest(run_id=str(key.run_id), step=step, reason=f"step {step}")
        self._name_round(request, key, caller)
        request.validate_only = self._draws.random() < 0.1
        await self._send(key, caller, request, lambda engine: engine.runs.retry_step(caller, request))

    async def _skip(self, key: RunKey) -> None:
        caller, step = self._wish(), self._some_step()
        request = run_service_pb2.SkipStepRequest(run_id=str(key.run_id), step=step, reason=f"step {step}")
        if self._draws.random() < 0.6:
            output = Done(text="instead").SerializeToString(deterministic=True)
            request.output.CopyFrom(any_pb2.Any(type_url=f"type.googleapis.com/{DONE}", value=output))
        told = await self._send(key, caller, request, lambda engine: engine.runs.skip(caller, request))
        if told is not None:
            self._world.judge.rounds.skipped(key, caller.principal, step)

    async def _send(self, key: RunKey, caller: Caller, request: Any, verb: Any) -> Any:
        if request.validate_only:
            self._world.judge.rounds.checked_only.add(caller.principal)
        told = await self._ask(verb)
        if told is not None:
            self._world.trace(caller.principal, f"has mended {str(key.run_id)[-6:]}: {', '.join(told.reset)}")
            self._world.judge.rounds.mended(
                key, caller.principal, told.run, list(told.reset), checked_only=request.validate_only
            )
        return told

    async def _fork(self, key: RunKey) -> None:
        caller = self._wish()
        request = run_service_pb2.ForkRunRequest(
            run_id=str(key.run_id), step=self._order.workflow.steps[-1].id, request_id=f"fork {caller.principal}"
        )
        request.step = self._draws.choice(self._order.workflow.steps).id

        async def fork() -> UUID | None:
            with contextlib.suppress(RequestIdReused):
                told = await self._ask(lambda engine: engine.runs.fork(caller, request))
                if told is not None:
                    self._world.judge.rounds.forked(key, UUID(told.run.run_id), list(told.kept))
                    return UUID(told.run.run_id)
            return None

        found = {run_id for run_id in await asyncio.gather(fork(), fork()) if run_id is not None}
        if len(found) > 1:
            self._world.judge.breach("one run a request", f"{request.request_id} has {len(found)}")

    async def _hold(self, key: RunKey) -> None:
        """Pauses a run, and lets it go on."""
        caller, run_id = self._wish(), str(key.run_id)
        pause = run_service_pb2.PauseRunRequest(run_id=run_id, reason="a look")
        resume = run_service_pb2.ResumeRunRequest(run_id=run_id)
        if await self._ask(lambda engine: engine.runs.pause(caller, pause)) is not None:
            self._world.judge.rounds.held(key, paused=True)
        await asyncio.sleep(self._draws.random() * 4)
        if await self._ask(lambda engine: engine.runs.resume(caller, resume)) is not None:
            self._world.judge.rounds.held(key, paused=False)


class Caretaker:
    """Lets runs go on that stay paused: a pause may be carried out long after whoever wished it has given up."""

    def __init__(self, world: World) -> None:
        self._world, self._draws = world, world.draws
        self._since: dict[RunKey, float] = {}

    async def live(self) -> None:
        """Looks now and then, as long as the simulation goes on."""
        while True:
            await asyncio.sleep(0.5 + self._draws.random())
            now, paused = self._world.loop.time(), self._world.judge.paused_runs()
            self._since = {key: self._since.get(key, now) for key in paused}
            late = [key for key, since in self._since.items() if now - since > PAUSE_SECONDS]
            await asyncio.gather(*(self._resume(key) for key in late))

    async def _resume(self, key: RunKey) -> None:
        caller = Caller(key.namespace, "caretaker", "grpc")
        request = run_service_pb2.ResumeRunRequest(run_id=str(key.run_id))
        with contextlib.suppress(*TRY_AGAIN, RunEnded):
            await self._world.any_process().call(lambda engine: engine.runs.resume(caller, request), 3.0)
