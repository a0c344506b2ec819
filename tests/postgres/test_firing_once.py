"""A firing has one run, whatever dies, is paused or is changed in between."""

from __future__ import annotations

import asyncio

import pytest
from baton.v1 import schedule_pb2

from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    OwnerUnavailable,
    RunUnreadable,
    ShuttingDown,
    TooManyReads,
)
from orchestrator.engine.schedule_ports import ScheduleKey
from orchestrator.postgres.schedules import PostgresScheduleStore
from tests.postgres.firing import ADA, MINUTE, NOON, SECOND, Lab, all_runs, minute


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
