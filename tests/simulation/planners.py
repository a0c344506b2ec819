"""Simulated people who keep schedules: they apply, pause, resume, trigger and fill up at random replicas."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from baton.v1 import schedule_pb2
from google.protobuf import any_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError, InvalidSchedule
from orchestrator.engine.messages import set_timestamp
from orchestrator.engine.schedule_ports import ScheduleKey
from tests.simulation.clients import TRY_AGAIN
from tests.simulation.firings import Plan
from tests.simulation.workflows import JOB, NAMESPACES, Done

if TYPE_CHECKING:
    from tests.simulation.world import World

POLICIES = (
    schedule_pb2.OVERLAP_POLICY_ALLOW,
    schedule_pb2.OVERLAP_POLICY_ALLOW,
    schedule_pb2.OVERLAP_POLICY_SKIP,
    schedule_pb2.OVERLAP_POLICY_BUFFER_ONE,
    schedule_pb2.OVERLAP_POLICY_CANCEL_OTHER,
)
SHORT_WINDOW_SECONDS = 10
TIMES_HELD = 5
"""Pauses of a schedule where worlds are stressed by these."""


class Planner:
    """Somebody with one schedule."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._draws, self._number = world, world.draws, number
        draws = Random(f"plan {world.seed} {number}")
        now, every_seconds = world.database.now(), draws.choice((1, 2, 3))
        end_time = now + round((world.busy_seconds + draws.random() * 3) * 1_000_000)
        key = ScheduleKey(NAMESPACES[number % 2], f"plan-{number}")
        policy, most = draws.choice(POLICIES), draws.choice((0, 0, 0, 3))
        self._plan = Plan(key, every_seconds, end_time, policy, most, may_miss=draws.random() < 0.2)
        self._caller = Caller(key.namespace, "planner", "grpc")
        self.schedule = schedule_pb2.Schedule(
            name=key.schedule,
            cron=f"*/{every_seconds} * * * * *",
            overlap_policy=policy,
            max_firings=most,
        )
        set_timestamp(self.schedule.end_time, end_time)
        if self._plan.may_miss:
            self.schedule.catch_up_window.seconds = SHORT_WINDOW_SECONDS
        if draws.random() < 0.3:
            self.schedule.jitter.FromMilliseconds(700)
        job = Done(text="planned", number=1)
        self.schedule.run.workflow = draws.choice(world.orders).workflow.name
        self.schedule.run.input.CopyFrom(
            any_pb2.Any(type_url=f"type.googleapis.com/{JOB}", value=job.SerializeToString(deterministic=True))
        )

    async def live(self) -> None:
        """Keeps the schedule to its end."""
        draws, judge = self._draws, self._world.judge
        judge.firings.add(self._plan)
        await asyncio.sleep(draws.random() * 2)
        if await self._ask(lambda engine: engine.schedules.apply(self._caller, self.schedule, False)) is None:
            return
        judge.firings.applied(self._plan)
        doing = draws.random()
        if "held" in self._world.stress:
            for _ in range(TIMES_HELD):
                await self._hold(1.0)
        elif doing < 0.3:
            await self._hold()
        elif doing < 0.45:
            await self._trigger()
        elif doing < 0.55:
            await self._fill_up()
        while not judge.firings.has_ended(self._plan):  # noqa: ASYNC110  # it is told by nobody
            await asyncio.sleep(0.2)

    async def _ask(self, verb: Any) -> Any:
        """Asks any replica, again until it is told."""
        while True:
            try:
                return await self._world.any_process().call(verb, 4.0)
            except TRY_AGAIN:
                await asyncio.sleep(0.05 + self._draws.random())
            except InvalidSchedule:  # It came so late that no time is left.
                return None
            except BatonError as error:
                self._world.fault("a schedule was refused", error)
                return None

    async def _hold(self, seconds: float = 3.0) -> None:
        self._plan.was_held = True
        name = self._plan.key.schedule
        await asyncio.sleep(self._draws.random() * seconds)
        await self._ask(lambda engine: engine.schedules.pause(self._caller, name, "a look"))
        await asyncio.sleep(self._draws.random() * seconds)
        self._world.judge.firings.held(self._plan)
        while True:  # A pause may be carried out after whoever wished it was told that it is not known.
            await self._ask(lambda engine: engine.schedules.resume(self._caller, name))
            await asyncio.sleep(seconds)
            if self._world.schedules.rows[self._plan.key].row.pause is None:
                return

    async def _trigger(self) -> None:
        await asyncio.sleep(self._draws.random() * 4)
        name, request_id = self._plan.key.schedule, "now"

        async def trigger() -> Any:
            return await self._ask(lambda engine: engine.schedules.trigger(self._caller, name, request_id))

        told = await asyncio.gather(trigger(), trigger())
        if len({run_id for run_id, _ in filter(None, told)}) > 1:
            self._world.judge.breach("one run a request", f"the trigger of {name} has two")

    async def _fill_up(self) -> None:
        self._plan.was_filled = True
        await asyncio.sleep(3.0 + self._draws.random() * 4)
        database, name = self._world.database, self._plan.key.schedule
        end_time = database.now() - 1_000_000
        start_time = end_time - 4_000_000
        await self._ask(lambda engine: engine.schedules.backfill(self._caller, name, start_time, end_time, False))
