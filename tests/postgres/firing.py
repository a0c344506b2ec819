"""Schedules of one replica on real stores, with a clock that the test drives and a door that takes their runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from baton.v1 import run_pb2, run_service_pb2, schedule_pb2
from google.protobuf import json_format

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    OwnerUnavailable,
    RequestIdReused,
    RunEnded,
)
from orchestrator.domain.ids import RunKey
from orchestrator.engine.firing import Firing
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import FiringEnded, RecordingObserver
from orchestrator.engine.schedule_ports import ScheduleKey, ScheduleRow
from orchestrator.engine.scheduled_runs import ScheduledRuns
from orchestrator.engine.schedules import Schedules
from orchestrator.postgres.schedules import PostgresScheduleStore
from tests.conformance.journal_store import TAKEN, Stores, ending, run_key, submission

ADA = Caller("shop", "ada", "grpc")
NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z
SECOND = 1_000_000
MINUTE = 60 * SECOND


@dataclass(slots=True)
class DrivenClock:
    """A clock that goes when it is told."""

    time: int = NOON
    error_us: int = 0

    def now(self) -> int:
        return self.time


@dataclass(slots=True)
class Door:
    """The door of runs as far as schedules need it: runs are rows in the database, owned by the replica `me`."""

    stores: Stores
    me: UUID
    fault: Exception | None = None
    cancel_fault: Exception | None = None
    requests: list[run_service_pb2.SubmitRunRequest] = field(default_factory=list)
    cancelled: list[UUID] = field(default_factory=list)

    async def submit(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest
    ) -> run_service_pb2.SubmitRunResponse:
        if self.fault is not None:
            raise self.fault
        if request.validate_only:
            return run_service_pb2.SubmitRunResponse()
        self.requests.append(request)
        key = run_key(caller.namespace)
        body = request.attributes["schedule_time"].encode().ljust(32, b"\0")
        (result,) = await self.stores.journal.write(self.me, [submission(key, request.request_id, body_hash=body)])
        if result.state is TAKEN and not result.same_body:
            raise RequestIdReused("used for another request")
        run_id = result.winner or key.run_id
        return run_service_pb2.SubmitRunResponse(run=run_pb2.Run(run_id=str(run_id)), existing=result.state is TAKEN)

    async def submit_many(
        self, submissions: Sequence[tuple[Caller, run_service_pb2.SubmitRunRequest]]
    ) -> tuple[Sequence[run_service_pb2.SubmitRunResponse | BaseException], str]:
        answers = await asyncio.gather(*(self.submit(*each) for each in submissions), return_exceptions=True)
        return answers, ""

    async def cancel(self, caller: Caller, run_id: UUID, reason: str) -> run_pb2.Run:
        if self.cancel_fault is not None:
            raise self.cancel_fault
        row = await self.stores.runs.get_run(RunKey(caller.namespace, run_id))
        assert row is not None
        if row.end_time is not None:
            raise RunEnded("the run has ended")
        (result,) = await self.stores.journal.write(self.me, [ending(row.key, 2)])
        if result.state is not result.state.WRITTEN:
            raise OwnerUnavailable("another replica drives it")
        self.cancelled.append(run_id)
        return run_pb2.Run()

    async def end(self, run_id: UUID) -> None:
        """Ends a run that this replica drives."""
        await self.stores.journal.write(self.me, [ending(RunKey("shop", run_id), 2)])


class Lab:
    """One replica's schedules on stores that others share."""

    def __init__(self, stores: Stores, store: PostgresScheduleStore, me: UUID, clock: DrivenClock) -> None:
        self.stores, self.store, self.me, self.clock = stores, store, me, clock
        self.observer, self.door = RecordingObserver(), Door(stores, me)
        runs = ScheduledRuns(self.door, None, stores.runs)  # type: ignore[arg-type]
        limits = EngineLimits(max_schedules=3)
        self.firing = Firing(store, runs, self.door.cancel, clock, limits, self.observer, lambda: "")
        self.schedules = Schedules(store, runs, clock, limits, self.firing.wake)

    async def apply(self, **fields: Any) -> schedule_pb2.StoredSchedule:
        """Applies a schedule that fires each minute."""
        given = {"name": "tick", "cron": "* * * * *", "run": {"workflow": "w"}} | fields
        stored, _ = await self.schedules.apply(ADA, json_format.ParseDict(given, schedule_pb2.Schedule()), False)
        return stored

    async def at(self, time: int) -> list[str]:
        """Fires what is due at a time; tells what came of it, each with its minute after noon."""
        self.clock.time = time
        begin = len(self.observer.facts)
        while await self.firing.fire_due(self.me):
            pass
        told = [fact for fact in self.observer.facts[begin:] if isinstance(fact, FiringEnded)]
        return [f"{fact.outcome} {(fact.fire_time - NOON) / MINUTE:g}" for fact in told]

    async def get(self) -> schedule_pb2.StoredSchedule:
        return await self.schedules.get(ADA, "tick", 0)

    async def runs(self) -> list[UUID]:
        """The runs of the schedule, newest first."""
        return [run.run_id for run in await self.store.list_runs(ScheduleKey("shop", "tick"), 100)]

    async def row(self) -> ScheduleRow:
        found = await self.store.get(ScheduleKey("shop", "tick"))
        assert found is not None
        return found


def minute(time: Any) -> float:
    return (time.ToMicroseconds() - NOON) / MINUTE


async def all_runs(lab: Lab) -> list[str]:
    """The request ids of every run there is."""
    times = [request.request_id for request in lab.door.requests]
    rows = await lab.stores.runs.list_runs("shop", [], None, 1000)
    found = [each for each in dict.fromkeys(times) if await lab.stores.runs.find_request("shop", each)]
    assert len(rows) == len(found)
    return found
