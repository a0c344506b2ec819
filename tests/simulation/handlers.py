"""Simulated handlers: workers whose steps delegate others, wait for them, are suspended, and go on.

A handler asks for the same steps in each attempt. What it does then, wait, give up for a while, leave a step to itself,
is drawn. It is told nothing twice: the judge looks at each answer as it comes.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from baton.v1 import run_pb2, step_service_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2

from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    DelegationLimit,
    MethodNotServed,
    NamespaceQueueFull,
    OwnerUnavailable,
    ShuttingDown,
    StepNotRunning,
    StepTokenInvalid,
    TooManyRuns,
)
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.engine.dispatch import SUSPENDED
from orchestrator.engine.worker_ports import Answer, Call
from tests.simulation.network import Unreachable
from tests.simulation.workflows import JOB, LEAD, SAFE, WORK, Done

if TYPE_CHECKING:
    from tests.simulation.world import World

ASK_AGAIN = (Unreachable, DatabaseUnavailable, OwnerUnavailable, ShuttingDown, TooManyRuns, NamespaceQueueFull)
ENDED = (
    run_pb2.STEP_STATE_SUCCEEDED,
    run_pb2.STEP_STATE_FAILED,
    run_pb2.STEP_STATE_CANCELLED,
    run_pb2.STEP_STATE_SKIPPED,
)
MOST_NESTED = 2
"""Handlers in handlers."""


class _Over(Exception):
    """The attempt is over: its handler is to stop."""


class _Suspends(Exception):
    """The handler waits no more in this attempt."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Waiting(Protocol):
    """Who is told when a handler is not at work."""

    def waits(self, key: str) -> None:
        """The handler waits for a step that it has delegated: the call is not at work."""
        ...

    def goes_on(self, key: str) -> None:
        """The handler has heard of the end of that step."""
        ...


class Handler:
    """One call of the method LEAD at a worker."""

    def __init__(self, world: World, call: Call, sending: Waiting) -> None:
        self._world, self._call, self._sending = world, call, sending
        self._draws = world.draws
        self._patience_seconds = self._draws.choice((0.5, 2.0, 20.0))

    async def answer(self) -> Answer | None:
        """Does what the step is for; None where its attempt is over."""
        job = Done.FromString(self._call.payload)
        plan = zlib.crc32(f"{job.text}{self._call.step}".encode())
        keys = [f"part_{number}" for number in range(1 + plan % 3)]
        try:
            await self._beat(job)
            if plan % 5 < 2:
                texts = await self._delegate_all(keys, plan)
            else:
                texts = [await self._delegate(key, plan) for key in keys]
        except _Over:
            return None
        except _Suspends as suspends:
            self._world.tally("attempts suspended")
            return _suspended(suspends.key)
        except BatonError as error:
            return Answer(None, Failure(Code.INVALID_ARGUMENT, error.reason, error.message, Origin.WORKER))
        job.text = f"{'+'.join(texts)[:60]}!"
        return Answer(job.SerializeToString(deterministic=True))

    async def _delegate_all(self, keys: list[str], plan: int) -> list[str]:
        tasks = [asyncio.create_task(self._delegate(key, plan)) for key in keys]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _what(self, key: str, plan: int) -> str:
        nested = self._call.step.count("/")
        choice = (plan >> 8) + zlib.crc32(key.encode())
        return (WORK, SAFE, LEAD)[choice % 3] if nested < MOST_NESTED else (WORK, SAFE)[choice % 2]

    async def _delegate(self, key: str, plan: int) -> str:
        """Delegates one step and waits for it, as long as there is patience."""
        request = step_service_pb2.DelegateRequest(
            step_token=self._call.step_token, key=key, method=self._what(key, plan)
        )
        request.request.CopyFrom(_packed(Done(text=key)))
        request.detached = plan % 7 == 0
        request.retry.max_attempts = 3
        request.retry.initial_backoff.FromMilliseconds(300)
        request.attempt_timeout.FromSeconds(20 if request.method == LEAD else 2)
        if not request.detached:
            request.wait_timeout.FromMilliseconds(self._draws.choice((300, 1_500)))
        loop = self._world.loop
        end_seconds = loop.time() + self._patience_seconds
        self._sending.waits(key)
        while True:
            response = await self._ask(request)
            if response is not None and (request.detached or (not response.held and response.step.state in ENDED)):
                break
            if loop.time() > end_seconds:
                raise _Suspends(key)
        self._sending.goes_on(key)
        self._world.judge.delegated(self._call, key, response.step)
        if request.detached or response.step.state == run_pb2.STEP_STATE_SUCCEEDED:
            return key
        raise MethodNotServed(f"{key} did not succeed")

    async def _ask(self, request: Any) -> Any:
        """Sends one request to any replica; None where it has no answer."""
        try:
            return await self._world.any_process().call(
                lambda engine: engine.steps.delegate(request), request.wait_timeout.seconds + 2.0
            )
        except (StepNotRunning, StepTokenInvalid):
            raise _Over from None
        except DelegationLimit:
            raise
        except ASK_AGAIN:
            await asyncio.sleep(0.05 + self._draws.random() * 0.4)
            return None

    async def _beat(self, job: Any) -> None:
        """Leaves a checkpoint, sometimes, and reads the one before."""
        if self._draws.random() > 0.3:
            return
        request = step_service_pb2.HeartbeatRequest(step_token=self._call.step_token, percent=10.0)
        request.checkpoint.CopyFrom(_packed(job))
        try:
            await self._world.any_process().call(lambda engine: engine.steps.heartbeat(request), 2.0)
        except (StepNotRunning, StepTokenInvalid):
            raise _Over from None
        except ASK_AGAIN:
            return


def _packed(message: Any) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/{JOB}", value=message.SerializeToString(deterministic=True))


def _suspended(key: str) -> Answer:
    """What a handler answers that waits no more in this attempt."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=SUSPENDED, domain="baton", metadata={"awaited": key}))
    details = (info.SerializeToString(deterministic=True),)
    return Answer(None, Failure(Code.ABORTED, SUSPENDED, "suspended", Origin.WORKER, details))
