"""What callers do with schedules: pause, change, trigger, backfill; what is refused; and the loop that fires them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from baton.v1 import schedule_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    InvalidRequest,
    InvalidSchedule,
    ScheduleNotFound,
    TooManySchedules,
)
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import FiringEnded
from orchestrator.engine.schedule_ports import Progress, ScheduleKey, ScheduleRow
from tests.postgres.firing import ADA, MINUTE, NOON, SECOND, Lab, minute


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
