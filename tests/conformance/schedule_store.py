"""What every ScheduleStore must do: keep schedules under their versions, give each that is due to one replica, and know
which runs of a schedule have not ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

from uuid_utils.compat import uuid7

from orchestrator.domain.ids import RunKey
from orchestrator.engine.schedule_ports import (
    Pause,
    Progress,
    Refusal,
    ScheduleKey,
    ScheduleRow,
    ScheduleStore,
)
from tests.conformance.journal_store import PENDING, SUCCEEDED, Stores, ending, replica, run_key, states, submission

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
KEY = ScheduleKey("shop", "nightly")


def row(name: str = "nightly", *, namespace: str = "shop", due_time: int | None = NOW) -> ScheduleRow:
    """Makes the row of a new schedule."""
    key = ScheduleKey(namespace, name)
    return ScheduleRow(key, b"definition", b"input", "ada", NOW - 5, NOW - 5, 1, Progress(due_time), due_time)


async def claimed(store: ScheduleStore, me: UUID, now: int = NOW, limit: int = 10) -> dict[str, bool]:
    """Names of the schedules that a claim gives, and whether each is doubtful."""
    return {each.row.key.schedule: each.doubtful for each in await store.claim(me, now, limit, 30.0)}


class ScheduleStoreConformance:
    """Keeping, claiming, runs."""

    async def test_what_is_stored_is_read(self, schedules: ScheduleStore) -> None:
        assert await schedules.get(KEY) is None
        assert await schedules.insert(row())
        assert not await schedules.insert(replace(row(), definition=b"other"))
        assert await schedules.get(KEY) == row()
        changed = replace(
            row(),
            definition=b"changed",
            input=b"other",
            principal="grace",
            update_time=NOW + 1,
            progress=Progress(NOW + 9, NOW + 7, 1, 2, 3, 4, Refusal(NOW + 2, "INPUT_INVALID", "no input")),
            due_time=NOW + 10,
        )
        assert await schedules.update(changed)
        assert await schedules.get(KEY) == replace(changed, version=2)
        paused = replace(changed, version=2, due_time=None, pause=Pause(NOW + 3, "why", "ada"))
        assert await schedules.update(paused)
        assert await schedules.get(KEY) == replace(paused, version=3)
        assert await schedules.delete(KEY) == replace(paused, version=3)
        assert await schedules.delete(KEY) is None

    async def test_a_change_of_another_version_or_of_a_schedule_that_was_made_anew_is_refused(
        self, schedules: ScheduleStore
    ) -> None:
        await schedules.insert(row())
        assert await schedules.update(replace(row(), definition=b"first"))
        assert not await schedules.update(replace(row(), definition=b"late"))
        await schedules.delete(KEY)
        await schedules.insert(replace(row(), create_time=NOW))
        assert not await schedules.update(replace(row(), definition=b"late"))
        stored = await schedules.get(KEY)
        assert stored is not None
        assert stored.definition == b"definition"

    async def test_schedules_are_listed_by_name_within_their_namespace(self, schedules: ScheduleStore) -> None:
        for name in ("c", "a", "b"):
            await schedules.insert(row(name))
        await schedules.insert(row("d", namespace="bank"))
        assert [each.key.schedule for each in await schedules.list_schedules("shop", "", 2)] == ["a", "b"]
        (last,) = await schedules.list_schedules("shop", "b", 2)
        assert (last.key.schedule, last.definition, last.input) == ("c", b"definition", b"")
        assert (await schedules.count("shop", 10), await schedules.count("shop", 2)) == (3, 2)
        assert await schedules.get(ScheduleKey("bank", "a")) is None

    async def test_what_is_due_is_claimed_by_one(self, schedules: ScheduleStore, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        await schedules.insert(row("due"))
        await schedules.insert(row("elsewhere", namespace="bank", due_time=NOW - 1))
        await schedules.insert(row("later", due_time=NOW + SECOND))
        await schedules.insert(row("never", due_time=None))
        assert await claimed(schedules, me) == {"due": False, "elsewhere": False}
        assert await claimed(schedules, other) == {}
        assert await claimed(schedules, other, NOW + SECOND) == {"later": False}

    async def test_many_replicas_share_what_is_due(self, schedules: ScheduleStore, stores: Stores) -> None:
        names = {f"s{number}" for number in range(30)}
        for name in names:
            await schedules.insert(row(name))
        replicas = [await replica(stores) for _ in range(6)]
        await asyncio.gather(*(claimed(schedules, each, limit=4) for each in replicas))
        shares = await asyncio.gather(*(claimed(schedules, each, limit=30) for each in replicas))
        assert sorted(name for share in shares for name in share) == sorted(names)

    async def test_the_longest_due_come_first(self, schedules: ScheduleStore, stores: Stores) -> None:
        me = await replica(stores)
        for number in (3, 1, 2):
            await schedules.insert(row(f"s{number}", due_time=NOW + number))
        assert set(await claimed(schedules, me, NOW + 9, limit=2)) == {"s1", "s2"}

    async def test_some_namespaces_can_be_left_out(self, schedules: ScheduleStore, stores: Stores) -> None:
        me = await replica(stores)
        for namespace in ("bank", "post", "shop"):
            await schedules.insert(row(f"of-{namespace}", namespace=namespace))
        claims = await schedules.claim(me, NOW, 10, 30.0, {"bank", "shop"})
        assert [each.row.key.schedule for each in claims] == ["of-post"]

    async def test_a_claim_that_was_not_given_up_is_doubtful(self, schedules: ScheduleStore, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        await schedules.insert(row())
        assert await claimed(schedules, me) == {"nightly": False}
        assert await claimed(schedules, me) == {"nightly": True}
        await stores.replicas.release(me)
        (claim,) = await schedules.claim(other, NOW, 10, 30.0)
        assert claim.doubtful
        assert await schedules.update(claim.row, release=claim.claim)
        assert await claimed(schedules, await replica(stores)) == {"nightly": False}

    async def test_a_change_by_somebody_else_leaves_the_claim(self, schedules: ScheduleStore, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        await schedules.insert(row())
        (claim,) = await schedules.claim(me, NOW, 10, 30.0)
        assert await schedules.update(replace(claim.row, definition=b"changed"))
        assert not await schedules.update(claim.row, release=claim.claim)
        assert await claimed(schedules, other) == {}
        assert await claimed(schedules, me) == {"nightly": True}

    async def test_who_has_lost_a_claim_writes_nothing_and_frees_nothing(
        self, schedules: ScheduleStore, stores: Stores
    ) -> None:
        me, other = await replica(stores), await replica(stores)
        await schedules.insert(row())
        (late,) = await schedules.claim(me, NOW, 10, 30.0)
        (again,) = await schedules.claim(me, NOW, 10, 0.0)
        assert not await schedules.update(late.row, release=late.claim)
        (claim,) = await schedules.claim(other, NOW, 10, 30.0)
        for stale in (late, again):
            assert not await schedules.update(stale.row, release=stale.claim)
        assert await claimed(schedules, me) == {}
        assert await schedules.update(claim.row, release=claim.claim)

    async def test_a_claim_ends_with_its_time(self, schedules: ScheduleStore, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        await schedules.insert(row())
        assert len(await schedules.claim(me, NOW, 10, 0.0)) == 1
        assert await claimed(schedules, other) == {"nightly": True}

    async def test_the_next_due_time_is_told(self, schedules: ScheduleStore) -> None:
        assert await schedules.next_due_time(NOW) is None
        for name, due_time in (("a", NOW), ("b", NOW + 7), ("c", NOW + 9), ("d", None)):
            await schedules.insert(row(name, due_time=due_time))
        assert await schedules.next_due_time(NOW) == NOW + 7
        assert await schedules.next_due_time(NOW + 9) is None

    async def test_runs_are_listed_newest_first_and_old_ones_are_forgotten(
        self, schedules: ScheduleStore, stores: Stores
    ) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(14)]
        await schedules.insert(row())
        await states(stores, me, *(submission(key) for key in keys))
        open_key = keys[0]
        await states(stores, me, *(ending(key, 2) for key in keys[1:]))
        for number, key in enumerate(keys):
            await schedules.add_run(KEY, key.run_id, NOW + number, triggered=number % 2 == 1)
            await schedules.add_run(KEY, key.run_id, NOW + number, triggered=number % 2 == 1)
        found = await schedules.list_runs(KEY, 100)
        assert [each.run_id for each in found] == [key.run_id for key in [*keys[:3:-1], open_key]]
        assert [each.state for each in found] == [SUCCEEDED] * 10 + [PENDING]
        assert (found[0].fire_time, found[0].triggered, found[1].triggered) == (NOW + 13, True, False)
        assert len(await schedules.list_runs(KEY, 3)) == 3
        assert await schedules.list_unfinished(KEY, 10) == [open_key.run_id]
        await schedules.delete(KEY)
        await schedules.insert(row())
        assert await schedules.list_runs(KEY, 100) == []

    async def test_no_run_is_noted_of_a_schedule_that_is_gone(self, schedules: ScheduleStore) -> None:
        await schedules.add_run(KEY, uuid7(), NOW, triggered=False)
        await schedules.insert(row())
        assert await schedules.list_runs(KEY, 100) == []

    async def test_who_drives_a_run_finds_that_it_is_to_be_cancelled(
        self, schedules: ScheduleStore, stores: Stores
    ) -> None:
        me, other = await replica(stores), await replica(stores)
        mine, theirs, ended = run_key(), run_key(), run_key()
        await schedules.insert(row())
        await states(stores, me, submission(mine), submission(ended))
        await states(stores, other, submission(theirs))
        for key in (mine, theirs, ended):
            await schedules.add_run(KEY, key.run_id, NOW, triggered=False)
        assert await schedules.list_to_cancel(me, 10) == []
        await schedules.ask_cancel(KEY, [mine.run_id, theirs.run_id, ended.run_id])
        await states(stores, me, ending(ended, 2))
        assert await schedules.list_to_cancel(me, 10) == [(mine, "nightly")]
        assert await schedules.list_to_cancel(other, 10) == [(theirs, "nightly")]
        await states(stores, me, ending(mine, 2))
        assert await schedules.list_to_cancel(me, 10) == []
        await schedules.add_run(KEY, run_key().run_id, NOW, triggered=False)
        assert await schedules.list_to_cancel(other, 10) == [(RunKey("shop", theirs.run_id), "nightly")]
