"""Firing on real stores with a clock that the test drives: what is started, skipped, made up for and cancelled."""

from __future__ import annotations

import asyncpg
import pytest
from baton.v1 import schedule_pb2

from orchestrator.domain.errors import (
    InvalidRequest,
    TooManyRuns,
    WorkflowNotFound,
)
from orchestrator.engine.firing import MISSED_A_LOOK
from orchestrator.engine.schedule_ports import ScheduleKey, ScheduleRow
from orchestrator.engine.schedule_rules import FIRINGS_A_LOOK
from orchestrator.postgres.schedules import PostgresScheduleStore
from tests.postgres.firing import MINUTE, NOON, SECOND, Lab, minute


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
