"""Firing on real stores with a clock that the test drives: what is started, skipped, made up for and cancelled; and a
firing has one run, whatever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from baton.v1 import run_pb2, run_service_pb2, schedule_pb2
from google.protobuf import json_format

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    InvalidRequest,
    InvalidSchedule,
    OwnerUnavailable,
    RequestIdReused,
    RunEnded,
    RunUnreadable,
    ScheduleNotFound,
    ShuttingDown,
    TooManyReads,
    TooManyRuns,
    TooManySchedules,
    WorkflowNotFound,
)
from orchestrator.domain.ids import RunKey
from orchestrator.engine.firing import MISSED_A_LOOK, Firing
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import FiringEnded, RecordingObserver
from orchestrator.engine.schedule_ports import Progress, ScheduleKey, ScheduleRow
from orchestrator.engine.schedule_rules import FIRINGS_A_LOOK
from orchestrator.engine.scheduled_runs import ScheduledRuns
from orchestrator.engine.schedules import Schedules
from orchestrator.postgres.schedules import PostgresScheduleStore
from tests.conformance.journal_store import TAKEN, Stores, ending, replica, run_key, submission

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


@pytest.fixture
async def lab(stores: Stores, schedules: PostgresScheduleStore) -> Lab:
    return Lab(stores, schedules, await replica(stores), DrivenClock())


@pytest.fixture
async def heir(stores: Stores, schedules: PostgresScheduleStore, lab: Lab) -> Lab:
    """A second replica by the same clock."""
    return Lab(stores, schedules, await replica(stores), lab.clock)


def minute(time: Any) -> float:
    return (time.ToMicroseconds() - NOON) / MINUTE


async def all_runs(lab: Lab) -> list[str]:
    """The request ids of every run there is."""
    times = [request.request_id for request in lab.door.requests]
    rows = await lab.stores.runs.list_runs("shop", [], None, 1000)
    found = [each for each in dict.fromkeys(times) if await lab.stores.runs.find_request("shop", each)]
    assert len(rows) == len(found)
    return found


async def test_a_schedule_fires_at_its_times_and_not_before(lab: Lab) -> None:
    await lab.apply()
    lab.clock.error_us = 5_000
    assert await lab.at(NOON + MINUTE) == []
    assert await lab.at(NOON + MINUTE + 5_000) == ["started 1"]
    assert await lab.at(NOON + MINUTE + 9_000) == []
    (request,) = lab.door.requests
    assert request.request_id == "schedule/tick/2026-01-01T12:01:00Z"
    assert dict(request.attributes) == {"schedule": "tick", "schedule_time": "2026-01-01T12:01:00Z"}
    stored = await lab.get()
    assert (stored.fired_count, [minute(time) for time in stored.next_times]) == (1, [2, 3, 4, 5, 6])
    assert [(run.run_id, minute(run.fire_time)) for run in stored.runs] == [(str((await lab.runs())[0]), 1)]


async def test_skip_starts_nothing_beside_a_run(lab: Lab) -> None:
    await lab.apply()
    assert await lab.at(NOON + MINUTE) == ["started 1"]
    assert await lab.at(NOON + 3 * MINUTE) == ["skipped 2", "skipped 3"]
    await lab.door.end((await lab.runs())[0])
    assert await lab.at(NOON + 4 * MINUTE) == ["started 4"]
    assert (await lab.get()).skipped_count == 2


async def test_allow_makes_up_for_all_in_their_order(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_ALLOW")
    assert await lab.at(NOON + 3 * MINUTE) == ["started 1", "started 2", "started 3"]
    assert await lab.at(NOON + 10 * MINUTE) == [f"started {number}" for number in range(4, 11)]


async def test_buffer_one_lets_one_wait(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_BUFFER_ONE")
    await lab.at(NOON + MINUTE)
    assert await lab.at(NOON + 3 * MINUTE) == ["waiting 2", "skipped 3"]
    assert minute((await lab.get()).waiting_time) == 2
    assert await lab.at(NOON + 3 * MINUTE + 6 * SECOND) == []
    await lab.door.end((await lab.runs())[0])
    # It is looked at after a tenth of what it has waited.
    assert await lab.at(NOON + 3 * MINUTE + 7 * SECOND) == []
    assert await lab.at(NOON + 3 * MINUTE + 13 * SECOND) == ["started 2"]
    stored = await lab.get()
    assert (stored.fired_count, stored.skipped_count, stored.HasField("waiting_time")) == (2, 1, False)


async def test_cancel_other_cancels_and_then_starts(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    assert await lab.at(NOON + MINUTE) == ["started 1"]
    first = (await lab.runs())[0]
    # Of two that are due at once only the later one is started.
    assert await lab.at(NOON + 3 * MINUTE) == ["skipped 2", "started 3"]
    assert lab.door.cancelled == [first]
    assert len(await lab.runs()) == 2


async def test_a_run_that_another_replica_drives_is_cancelled_by_that_one(lab: Lab, heir: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    await lab.at(NOON + MINUTE)
    assert await heir.at(NOON + 2 * MINUTE) == []
    assert minute((await heir.get()).waiting_time) == 2
    await lab.firing.cancel_asked(lab.me)
    assert lab.door.cancelled == await heir.runs()
    assert await heir.at(NOON + 2 * MINUTE + SECOND) == ["started 2"]
    assert heir.door.cancelled == []


async def test_a_run_that_is_mended_after_it_was_cancelled_goes_on(
    lab: Lab, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    await lab.apply()
    await lab.at(NOON + MINUTE)
    runs = await lab.runs()
    await lab.store.ask_cancel(ScheduleKey("shop", "tick"), runs)
    assert [key.run_id for key, _ in await lab.store.list_to_cancel(lab.me, 10)] == runs
    await lab.door.end(runs[0])
    await administrator.execute(
        "UPDATE runs SET round = 2, state = 2, end_time = NULL, owner_replica = $1 WHERE run_id = $2", lab.me, runs[0]
    )
    assert await lab.store.list_to_cancel(lab.me, 10) == []
    assert await lab.at(NOON + 2 * MINUTE) == ["skipped 2"]


async def test_what_is_later_than_the_window_is_counted_and_dropped(lab: Lab) -> None:
    await lab.apply(catch_up_window="150s", overlap_policy="OVERLAP_POLICY_ALLOW")
    assert await lab.at(NOON + 10 * MINUTE) == ["missed 1", "started 8", "started 9", "started 10"]
    stored = await lab.get()
    assert (stored.missed_count, stored.fired_count) == (7, 3)


async def test_long_outages_are_counted_in_turns(lab: Lab) -> None:
    await lab.apply(cron="* * * * * *", catch_up_window="10s", overlap_policy="OVERLAP_POLICY_ALLOW")
    lab.clock.time = NOON + (2 * MISSED_A_LOOK + 500) * SECOND
    assert await lab.firing.fire_due(lab.me)
    assert (await lab.get()).missed_count == MISSED_A_LOOK
    assert (await lab.at(lab.clock.time))[-1].startswith("started")
    stored = await lab.get()
    assert stored.missed_count + stored.fired_count == 2 * MISSED_A_LOOK + 500


async def test_many_that_are_due_are_started_in_turns(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_ALLOW", catch_up_window="86400s")
    lab.clock.time = NOON + 70 * MINUTE
    assert await lab.firing.fire_due(lab.me)
    assert (await lab.get()).fired_count == FIRINGS_A_LOOK
    assert len(await lab.at(lab.clock.time)) == 20


async def test_jitter_delays_a_firing_by_its_own_part(lab: Lab, heir: Lab) -> None:
    await lab.apply(cron="0 * * * *", jitter="600s")
    due_time = (await lab.row()).due_time
    assert due_time is not None
    assert NOON + 60 * MINUTE < due_time <= NOON + 70 * MINUTE
    assert await lab.at(due_time - 1) == []
    assert await heir.at(due_time) == ["started 60"]
    following = (await lab.row()).due_time
    assert following is not None
    assert following - due_time != 60 * MINUTE


async def test_a_schedule_ends_with_its_last_firing(lab: Lab) -> None:
    await lab.apply(max_firings=2, overlap_policy="OVERLAP_POLICY_ALLOW")
    assert len((await lab.get()).next_times) == 2
    assert await lab.at(NOON + 5 * MINUTE) == ["started 1", "started 2"]
    stored = await lab.get()
    assert (stored.state, list(stored.next_times)) == (schedule_pb2.SCHEDULE_STATE_ENDED, [])
    # One that may fire more often goes on from now.
    await lab.apply(max_firings=3, overlap_policy="OVERLAP_POLICY_ALLOW")
    assert await lab.at(NOON + 7 * MINUTE) == ["started 6"]


async def test_a_firing_that_waits_is_the_last_too(lab: Lab) -> None:
    await lab.apply(max_firings=2, overlap_policy="OVERLAP_POLICY_BUFFER_ONE")
    assert await lab.at(NOON + 4 * MINUTE) == ["started 1", "waiting 2"]
    await lab.door.end((await lab.runs())[0])
    assert await lab.at(NOON + 5 * MINUTE) == ["started 2"]
    assert (await lab.get()).state == schedule_pb2.SCHEDULE_STATE_ENDED


async def test_a_schedule_ends_with_its_time(lab: Lab) -> None:
    await lab.apply(
        start_time="2026-01-01T12:02:00Z", end_time="2026-01-01T12:04:00Z", overlap_policy="OVERLAP_POLICY_ALLOW"
    )
    assert await lab.at(NOON + 9 * MINUTE) == ["started 2", "started 3"]
    assert (await lab.get()).state == schedule_pb2.SCHEDULE_STATE_ENDED


async def test_a_refusal_is_told_and_the_schedule_goes_on(lab: Lab) -> None:
    await lab.apply()
    lab.door.fault = WorkflowNotFound("no workflow is named w; apply it with ApplyWorkflow")
    assert await lab.at(NOON + MINUTE) == ["refused 1"]
    stored = await lab.get()
    assert (stored.refused_count, stored.last_refusal.reason) == (1, "WORKFLOW_NOT_FOUND")
    assert minute(stored.last_refusal.fire_time) == 1
    lab.door.fault = None
    assert await lab.at(NOON + 2 * MINUTE) == ["started 2"]


async def test_where_there_is_no_room_the_firing_is_tried_again(lab: Lab) -> None:
    await lab.apply()
    lab.door.fault = TooManyRuns("full")
    assert await lab.at(NOON + MINUTE) == ["delayed 1"]
    assert await lab.at(NOON + MINUTE + 100) == []
    lab.door.fault = None
    assert await lab.at(NOON + MINUTE + SECOND) == ["started 1"]


async def test_a_fault_of_one_schedule_leaves_the_others_alone(lab: Lab) -> None:
    await lab.apply()
    await lab.apply(name="other")
    row = await lab.row()
    broken = ScheduleRow(
        row.key, b"\xff", b"", "ada", row.create_time, row.update_time, row.version, row.progress, row.due_time
    )
    assert await lab.store.update(broken)
    assert sorted(await lab.at(NOON + MINUTE)) == ["failed 1", "started 1"]
    assert await lab.at(NOON + MINUTE + SECOND) == []
    assert sorted(await lab.at(NOON + 2 * MINUTE)) == ["failed 1", "skipped 2"]


async def test_what_cannot_be_written_is_put_off_and_not_forgotten(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    update, broken = PostgresScheduleStore.update, [True]

    async def refuse(store: PostgresScheduleStore, row: ScheduleRow, *, release: bool = False) -> bool:
        if release and broken.pop():
            raise InvalidRequest("a check of the table")
        return await update(store, row, release=release)

    monkeypatch.setattr(PostgresScheduleStore, "update", refuse)
    assert await lab.at(NOON + MINUTE) == ["started 1", "failed 1"]
    monkeypatch.undo()
    assert await lab.at(NOON + 2 * MINUTE) == ["existing 1", "started 2"]
    assert len(lab.door.cancelled) == 1


@pytest.mark.parametrize(
    "policy",
    ["OVERLAP_POLICY_SKIP", "OVERLAP_POLICY_ALLOW", "OVERLAP_POLICY_BUFFER_ONE", "OVERLAP_POLICY_CANCEL_OTHER"],
)
@pytest.mark.parametrize("place", ["add_run", "update"])
async def test_who_takes_over_after_a_submission_finds_its_run(
    lab: Lab, heir: Lab, policy: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.apply(overlap_policy=policy)

    async def die(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone")

    lab.clock.time = NOON + MINUTE
    with monkeypatch.context() as patch:
        patch.setattr(PostgresScheduleStore, place, die)
        with pytest.raises(DatabaseUnavailable):
            await lab.firing.fire_due(lab.me)
    assert len(lab.door.requests) == 1
    assert await heir.at(NOON + MINUTE) == []
    await lab.stores.replicas.release(lab.me)
    assert await heir.at(NOON + MINUTE) == ["existing 1"]
    stored = await heir.get()
    assert (stored.fired_count, stored.skipped_count, len(stored.runs)) == (1, 0, 1)
    assert heir.door.cancelled == []
    assert await all_runs(lab) == ["schedule/tick/2026-01-01T12:01:00Z"]
    assert heir.door.requests == []


@pytest.mark.parametrize("change", ["pause", "times", "missed"])
async def test_a_run_that_nobody_noted_is_found_though_its_time_is_passed_over(
    lab: Lab, heir: Lab, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.apply(catchUpWindow="60s")

    async def die(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone")

    lab.clock.time = NOON + MINUTE
    with monkeypatch.context() as patch:
        patch.setattr(PostgresScheduleStore, "add_run", die)
        with pytest.raises(DatabaseUnavailable):
            await lab.firing.fire_due(lab.me)
    await lab.stores.replicas.release(lab.me)
    heir.clock.time = NOON + 9 * MINUTE + SECOND
    if change == "pause":
        await heir.schedules.pause(ADA, "tick", "")
        await heir.schedules.resume(ADA, "tick")
    elif change == "times":
        await heir.apply(cron="*/2 * * * *", catchUpWindow="60s")
    assert (await heir.at(NOON + 10 * MINUTE))[-1] == "skipped 10"
    assert await all_runs(lab) == ["schedule/tick/2026-01-01T12:01:00Z"]


async def test_a_firing_in_whose_place_a_later_one_was_started_is_not_started_after_that(
    lab: Lab, heir: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    await lab.at(NOON + MINUTE)
    lab.door.cancel_fault = OwnerUnavailable("another drives it")
    assert await lab.at(NOON + 2 * MINUTE) == []
    lab.door.cancel_fault = None

    async def die(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone")

    lab.clock.time = NOON + 3 * MINUTE
    with monkeypatch.context() as patch:
        patch.setattr(PostgresScheduleStore, "add_run", die)
        with pytest.raises(DatabaseUnavailable):
            await lab.firing.fire_due(lab.me)
    started = await lab.stores.runs.find_request("shop", "schedule/tick/2026-01-01T12:03:00Z")
    assert started is not None
    await lab.door.end(started[0])
    await lab.stores.replicas.release(lab.me)
    assert await heir.at(NOON + 3 * MINUTE) == ["skipped 2", "existing 3"]


@pytest.mark.parametrize("fault", [ShuttingDown("it drains"), TooManyReads("others read"), RunUnreadable("damaged")])
async def test_what_cannot_be_cancelled_at_the_moment_ends_no_loop(lab: Lab, fault: BatonError) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    assert await lab.at(NOON + MINUTE) == ["started 1"]
    lab.door.cancel_fault = fault
    assert await lab.at(NOON + 2 * MINUTE) == []
    await lab.firing.cancel_asked(lab.me)
    lab.door.cancel_fault = None
    await lab.firing.cancel_asked(lab.me)
    assert await lab.at(NOON + 2 * MINUTE + SECOND) == ["started 2"]


async def test_two_that_fire_the_same_at_once_make_one_run(lab: Lab, heir: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_ALLOW")
    (claimed,) = await lab.store.claim(lab.me, NOON + MINUTE, 10, 0.0)
    (same,) = await heir.store.claim(heir.me, NOON + MINUTE, 10, 0.0)
    assert claimed.row == same.row
    await asyncio.gather(lab.firing._look(claimed, NOON + MINUTE), heir.firing._look(same, NOON + MINUTE))
    assert await all_runs(lab) == ["schedule/tick/2026-01-01T12:01:00Z"]
    assert (await lab.get()).fired_count == 1


async def test_a_schedule_that_is_changed_while_it_fires_keeps_both(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    (claimed,) = await lab.store.claim(lab.me, NOON + MINUTE, 10, 30.0)
    lab.clock.time = NOON + MINUTE
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER", description="changed meanwhile")
    assert not await lab.firing._look(claimed, NOON + MINUTE)
    assert await lab.at(NOON + MINUTE) == []
    stored = await lab.get()
    assert (stored.fired_count, stored.schedule.description, lab.door.cancelled) == (1, "changed meanwhile", [])
    assert await lab.at(NOON + 2 * MINUTE) == ["started 2"]


async def test_a_firing_that_is_under_way_at_a_pause_is_counted(lab: Lab, heir: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    await lab.at(NOON + MINUTE)
    for replica_of_look, expected in ((lab, (2, False)), (heir, (2, False))):
        (claimed,) = await lab.store.claim(replica_of_look.me, NOON + 2 * MINUTE, 10, 30.0)
        await lab.schedules.pause(ADA, "tick", "")
        await replica_of_look.firing._look(claimed, NOON + 2 * MINUTE)
        stored = await lab.get()
        assert (stored.fired_count, stored.HasField("waiting_time")) == expected
        assert stored.state == schedule_pb2.SCHEDULE_STATE_PAUSED
        lab.clock.time = NOON + MINUTE
        await lab.schedules.resume(ADA, "tick")


async def test_new_times_are_kept_where_a_firing_of_the_old_ones_is_under_way(lab: Lab) -> None:
    await lab.apply()
    (claimed,) = await lab.store.claim(lab.me, NOON + MINUTE, 10, 30.0)
    lab.clock.time = NOON + MINUTE
    await lab.apply(cron="*/5 * * * *")
    assert not await lab.firing._look(claimed, NOON + MINUTE)
    stored = await lab.get()
    assert (stored.fired_count, minute(stored.next_times[0])) == (1, 5)
    await lab.schedules.delete(ADA, "tick")
    assert not await lab.firing._look(claimed, NOON + MINUTE)
    assert await lab.store.get(ScheduleKey("shop", "tick")) is None


async def test_a_pause_drops_what_waits_and_a_resume_makes_up_for_nothing(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_BUFFER_ONE")
    assert await lab.at(NOON + 2 * MINUTE) == ["started 1", "waiting 2"]
    paused = await lab.schedules.pause(ADA, "tick", "stocktaking")
    assert (paused.state, paused.pause_note, paused.pause_principal) == (
        schedule_pb2.SCHEDULE_STATE_PAUSED,
        "stocktaking",
        "ada",
    )
    assert list(paused.next_times) == []
    await lab.door.end((await lab.runs())[0])
    assert await lab.at(NOON + 9 * MINUTE) == []
    await lab.apply(overlap_policy="OVERLAP_POLICY_ALLOW")
    assert await lab.at(NOON + 10 * MINUTE) == []
    resumed = await lab.schedules.resume(ADA, "tick")
    assert [minute(time) for time in resumed.next_times][:2] == [11, 12]
    assert await lab.at(NOON + 11 * MINUTE) == ["started 11"]


async def test_a_change_of_other_things_leaves_what_is_due(lab: Lab) -> None:
    await lab.apply()
    lab.clock.time = NOON + MINUTE + 5
    again, existing = await lab.schedules.apply(ADA, (await lab.get()).schedule, False)
    assert existing
    assert minute(again.next_times[0]) == 1
    await lab.apply(description="told")
    assert await lab.at(NOON + MINUTE + 5) == ["started 1"]
    lab.clock.time = NOON + 2 * MINUTE + 5
    await lab.apply(cron="*/5 * * * *")
    assert await lab.at(NOON + 2 * MINUTE + 5) == []
    assert minute((await lab.get()).next_times[0]) == 5


async def test_a_trigger_runs_now_and_counts_as_a_run_of_the_schedule(lab: Lab) -> None:
    await lab.apply()
    await lab.schedules.pause(ADA, "tick", "")
    run_id, existing = await lab.schedules.trigger(ADA, "tick", "mine")
    lab.clock.time += SECOND
    assert (await lab.schedules.trigger(ADA, "tick", "mine")) == (run_id, True)
    other, _ = await lab.schedules.trigger(ADA, "tick", "")
    assert (existing, other != run_id) == (False, True)
    await lab.schedules.resume(ADA, "tick")
    assert await lab.at(NOON + MINUTE) == ["skipped 1"]
    stored = await lab.get()
    assert [(run.triggered, run.run_id) for run in stored.runs] == [(True, str(other)), (True, str(run_id))]
    assert stored.fired_count == 0


async def test_a_backfill_runs_the_times_that_have_no_run(lab: Lab) -> None:
    await lab.apply(overlap_policy="OVERLAP_POLICY_ALLOW")
    assert await lab.at(NOON + 2 * MINUTE) == ["started 1", "started 2"]
    lab.clock.time = NOON + 4 * MINUTE - 1
    times = await lab.schedules.backfill(ADA, "tick", NOON - MINUTE, NOON + 3 * MINUTE, True)
    assert [(each.fire_time - NOON) // MINUTE for each in times] == [-1, 0, 1, 2]
    filled = await lab.schedules.backfill(ADA, "tick", NOON - MINUTE, NOON + 3 * MINUTE, False)
    assert [each.existing for each in filled] == [False, False, True, True]
    assert [each.run_id for each in filled][:1:-1] == await lab.runs()
    again = await lab.schedules.backfill(ADA, "tick", NOON - MINUTE, NOON + 3 * MINUTE, False)
    assert [(each.run_id, each.existing) for each in again] == [(each.run_id, True) for each in filled]
    # Runs of a backfill are no hindrance.
    await lab.apply()
    for run_id in await lab.runs():
        await lab.door.end(run_id)
    assert await lab.at(NOON + 3 * MINUTE) == ["started 3"]


async def test_a_firing_that_was_of_another_definition_keeps_its_run(lab: Lab) -> None:
    await lab.apply()
    run_id, _ = await lab.schedules._runs.submit(
        ADA,
        ScheduleKey("shop", "tick"),
        schedule_pb2.ScheduledRun(workflow="w"),
        5,
        "schedule/tick/2026-01-01T12:01:00Z",
    )
    assert await lab.at(NOON + MINUTE) == ["existing 1"]
    assert await lab.runs() == [run_id]


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"cron": "* * *"}, "schedule.cron", "3 fields"),
        ({"time_zone": "Mars/Phobos"}, "schedule.time_zone", "is no time zone"),
        ({"cron": "0 0 */20 * 1L"}, "schedule.cron", "never fires"),
        ({"end_time": "2026-01-01T12:01:00Z"}, "schedule.end_time", "no time of '* * * * *' lies between"),
        (
            {"start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-02T00:00:00Z"},
            "schedule.end_time",
            "must be after start_time",
        ),
    ],
)
async def test_what_cannot_fire_is_refused_with_its_field(
    lab: Lab, fields: dict[str, str], path: str, said: str
) -> None:
    with pytest.raises(InvalidSchedule) as refused:
        await lab.apply(**fields)
    assert [(fault.path, fault.reason) for fault in refused.value.faults] == [(path, "INVALID_SCHEDULE")]
    assert said in refused.value.message
    assert await lab.store.get(ScheduleKey("shop", "tick")) is None


async def test_times_that_are_none_are_refused(lab: Lab) -> None:
    schedule = schedule_pb2.Schedule(name="tick", cron="@daily", run=schedule_pb2.ScheduledRun(workflow="w"))
    schedule.start_time.seconds, schedule.start_time.nanos = 10**15, -7
    with pytest.raises(InvalidSchedule):
        await lab.schedules.apply(ADA, schedule, False)
    schedule.end_time.seconds = 10**16
    with pytest.raises(InvalidSchedule):
        await lab.schedules.apply(ADA, schedule, False)


async def test_schedules_are_limited(lab: Lab) -> None:
    for name in ("a", "b", "c"):
        await lab.apply(name=name)
    with pytest.raises(TooManySchedules):
        await lab.apply(name="d")
    await lab.apply(name="c", description="changed")
    await lab.schedules.delete(ADA, "a")
    await lab.apply(name="d")
    assert [each.schedule.name for each in await lab.schedules.list(ADA, "", 10)] == ["b", "c", "d"]


async def test_what_is_not_there_is_told(lab: Lab) -> None:
    for call in (
        lab.schedules.get(ADA, "none", 0),
        lab.schedules.delete(ADA, "none"),
        lab.schedules.pause(ADA, "none", ""),
        lab.schedules.resume(ADA, "none"),
        lab.schedules.trigger(ADA, "none", ""),
        lab.schedules.backfill(ADA, "none", NOON, NOON, False),
    ):
        with pytest.raises(ScheduleNotFound):
            await call
    await lab.apply()
    with pytest.raises(ScheduleNotFound):
        await lab.schedules.get(Caller("bank", "eve", "grpc"), "tick", 0)


async def test_a_backfill_of_too_much_tells_where_to_divide_it(lab: Lab) -> None:
    await lab.apply()
    with pytest.raises(InvalidRequest, match="end it at 2026-01-01T10:40:00Z"):
        await lab.schedules.backfill(ADA, "tick", NOON - 1080 * MINUTE, NOON, False)
    first = await lab.schedules.backfill(ADA, "tick", NOON - 1080 * MINUTE, NOON - 80 * MINUTE, True)
    assert len(first) == 1000
    with pytest.raises(InvalidRequest, match="lies in the future"):
        await lab.schedules.backfill(ADA, "tick", NOON, NOON + 1, True)


async def test_a_flood_of_one_namespace_leaves_others_their_turn(lab: Lab) -> None:
    flood = range(2 * EngineLimits().schedule_batch)
    for number in flood:
        key = ScheduleKey("bank", f"flood-{number:03}")
        schedule = schedule_pb2.Schedule(name=key.schedule, cron="* * * * * *")
        definition = schedule.SerializeToString()
        row = ScheduleRow(key, definition, b"", "eve", NOON, NOON, 1, Progress(NOON + SECOND), NOON + SECOND)
        assert await lab.store.insert(row)
    await lab.apply()
    lab.clock.time = NOON + MINUTE
    begin = len(lab.observer.facts)
    assert await lab.firing.fire_due(lab.me)
    assert await lab.firing.fire_due(lab.me)
    told = [fact for fact in lab.observer.facts[begin:] if isinstance(fact, FiringEnded) and fact.namespace == "shop"]
    assert [fact.outcome for fact in told] == ["started"]
    assert await lab.firing.fire_due(lab.me)


async def test_draining_claims_nothing(lab: Lab, heir: Lab) -> None:
    await lab.apply()
    lab.firing.paused = True
    assert await lab.at(NOON + MINUTE) == []
    assert await heir.at(NOON + MINUTE) == ["started 1"]


async def test_the_loop_wakes_for_a_new_schedule_and_ends_with_its_task(lab: Lab) -> None:
    loop = asyncio.create_task(lab.firing.run(lab.me))
    try:
        lab.clock.time = NOON + MINUTE - 1
        await lab.apply()
        lab.clock.time = NOON + MINUTE
        lab.firing.wake()
        fact = await lab.observer.wait_for(lambda fact: isinstance(fact, FiringEnded))
        assert isinstance(fact, FiringEnded)
        assert fact.outcome == "started"
        assert datetime.fromtimestamp(fact.fire_time / 1e6, UTC).minute == 1
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
