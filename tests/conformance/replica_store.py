"""What every ReplicaStore must do: leases, and the adoption of what dead replicas leave."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter

import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import JOURNAL_FORMAT
from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import LeaseLost, ParkedRun, ReplicaSet, RunOwner
from tests.conformance.journal_store import (
    FENCED,
    LEASE_SECONDS,
    WRITTEN,
    Stores,
    ending,
    now,
    replica,
    run_key,
    states,
    step,
    submission,
)

NO_SECONDS = 0.0
"""Time of a lease that is over as it is given."""


class ReplicaStoreConformance:
    """Leases and adoption."""

    async def test_a_lease_is_renewed_until_it_is_released(self, stores: Stores) -> None:
        me = uuid7()
        first = await stores.replicas.register(me, "127.0.0.1:7000", LEASE_SECONDS)
        second = await stores.replicas.renew(me, LEASE_SECONDS)
        assert abs(first.database_time - now()) < 5_000_000
        assert second.database_time >= first.database_time
        assert second.lease_expire_time > first.lease_expire_time
        assert abs(second.lease_expire_time - second.database_time - LEASE_SECONDS * 1_000_000) < 1_000_000
        await stores.replicas.release(me)
        await stores.replicas.release(me)
        with pytest.raises(LeaseLost):
            await stores.replicas.renew(me, LEASE_SECONDS)
        with pytest.raises(LeaseLost):
            await stores.replicas.renew(uuid7(), LEASE_SECONDS)

    async def test_a_lease_that_is_over_is_renewed_until_its_replica_is_marked(self, stores: Stores) -> None:
        late, other, key = await replica(stores, NO_SECONDS), await replica(stores), run_key()
        with pytest.raises(DatabaseUnavailable):
            await stores.journal.write(late, [submission(key)])
        with pytest.raises(DatabaseUnavailable):
            await stores.replicas.park(late, [parked(key, HOUR_US)])
        assert await stores.replicas.adopt(late, 10) == [], "it does not mark itself"
        await stores.replicas.renew(late, LEASE_SECONDS)
        assert await states(stores, late, submission(key)) == [WRITTEN]

        before = (await stores.replicas.renew(late, NO_SECONDS)).lease_expire_time - 1
        assert await stores.replicas.adopt(other, 10, mark_before=before) == []
        await stores.replicas.renew(late, LEASE_SECONDS)
        assert await states(stores, late, step(key, 2)) == [WRITTEN]

        before = (await stores.replicas.renew(late, LEASE_SECONDS)).lease_expire_time + 1
        assert await stores.replicas.adopt(other, 10, mark_before=before) == [], "it goes on, whatever time is given"
        before = (await stores.replicas.renew(late, NO_SECONDS)).lease_expire_time
        assert [row.key for row in await stores.replicas.adopt(other, 10, mark_before=before)] == [key]
        with pytest.raises(LeaseLost):
            await stores.replicas.renew(late, LEASE_SECONDS)
        with pytest.raises(LeaseLost):
            await stores.journal.write(late, [step(key, 3)])
        with pytest.raises(LeaseLost):
            await stores.replicas.park(late, [parked(key, HOUR_US)])

    async def test_a_lease_that_is_given_up_is_none_that_ended_in_good_order(self, stores: Stores) -> None:
        """What its replica had under way counts, and its workers have to give up first."""
        lost, heir, key = await replica(stores), await replica(stores), run_key()
        await states(stores, lost, submission(key))
        await stores.replicas.give_up(lost)
        await stores.replicas.give_up(lost)
        with pytest.raises(LeaseLost):
            await stores.replicas.renew(lost, LEASE_SECONDS)
        (row,) = await stores.replicas.adopt(heir, 10)
        assert (row.key, row.handed_over) == (key, False)
        left = (await stores.replicas.renew(heir, LEASE_SECONDS)).replicas
        assert left is not None
        assert left.loss_time is not None
        assert lost not in left.members

    async def test_live_replicas_keep_their_runs(self, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        await states(stores, me, submission(run_key()))
        assert await stores.replicas.adopt(other, 10) == []

    async def test_unfinished_runs_of_a_dead_replica_are_adopted_once(self, stores: Stores) -> None:
        dead, heir = await replica(stores), await replica(stores)
        going, ended, mine = run_key(), run_key(), run_key()
        await states(stores, dead, submission(going, labels=("pii",)), submission(ended))
        await states(stores, dead, ending(ended, 2), step(going, 2))
        await states(stores, heir, submission(mine))
        await stores.replicas.release(dead)

        adopted = await stores.replicas.adopt(heir, 10)
        assert [(row.key, row.epoch, row.next_sequence, row.labels) for row in adopted] == [(going, 2, 3, ("pii",))]
        assert adopted[0].handed_over, "its owner was stopped in good order"
        assert await stores.replicas.adopt(heir, 10) == []
        assert {row.key: row.epoch for row in await stores.replicas.list_owned(heir)} == {going: 2, mine: 1}
        assert await stores.replicas.list_owned(dead) == []
        assert await states(stores, heir, step(going, 3, epoch=1)) == [FENCED]
        assert await states(stores, heir, step(going, 3, epoch=2), step(mine, 2)) == [WRITTEN] * 2

    async def test_the_owner_of_a_run_is_told(self, stores: Stores) -> None:
        me, key, ended = await replica(stores), run_key(), run_key()
        await states(stores, me, submission(key), submission(ended))
        await states(stores, me, ending(ended, 2))
        assert await stores.replicas.find_owner(key) == RunOwner(me, "127.0.0.1:7000", True, False)
        assert await stores.replicas.find_owner(ended) == RunOwner(None, "", False, True)
        assert await stores.replicas.find_owner(run_key()) is None
        assert await stores.replicas.find_owner(RunKey("bank", key.run_id)) is None
        await stores.replicas.release(me)
        assert await stores.replicas.find_owner(key) == RunOwner(me, "127.0.0.1:7000", False, False)

    async def test_runs_in_a_format_that_is_not_known_are_left_alone(self, stores: Stores) -> None:
        dead, heir, old, newer = await replica(stores), await replica(stores), run_key(), run_key()
        entry = submission(newer)
        assert entry.new is not None
        beyond = dataclasses.replace(entry, new=dataclasses.replace(entry.new, journal_format=JOURNAL_FORMAT + 1))
        await states(stores, dead, submission(old), beyond)
        await stores.replicas.release(dead)
        adopted = await stores.replicas.adopt(heir, 10)
        assert [(row.key, row.journal_format) for row in adopted] == [(old, JOURNAL_FORMAT)], (
            "it may hold new events now"
        )
        assert await stores.replicas.claim(heir, newer) is None
        assert await stores.replicas.find_owner(newer) == RunOwner(dead, "127.0.0.1:7000", False, False)

    async def test_a_dead_replica_adopts_nothing(self, stores: Stores) -> None:
        dead, zombie, heir = await replica(stores), await replica(stores), await replica(stores)
        await states(stores, dead, submission(run_key()))
        await stores.replicas.release(dead)
        await stores.replicas.release(zombie)
        assert await stores.replicas.adopt(zombie, 10) == []
        assert len(await stores.replicas.adopt(heir, 10)) == 1

    async def test_heirs_share_without_overlap(self, stores: Stores) -> None:
        dead, heirs = await replica(stores), [await replica(stores) for _ in range(4)]
        keys = [run_key() for _ in range(60)]
        await states(stores, dead, *(submission(key) for key in keys))
        await stores.replicas.release(dead)

        async def take(heir_number: int) -> list[object]:
            taken: list[object] = []
            while batch := await stores.replicas.adopt(heirs[heir_number], 7):
                assert len(batch) <= 7
                taken += [row.key for row in batch]
            return taken

        taken = [key for part in await asyncio.gather(*map(take, range(4))) for key in part]
        # An heir may stop early where the last rows were locked by another; a later round finds what is left.
        taken += [row.key for row in await stores.replicas.adopt(heirs[0], 100)]
        assert sorted(map(str, taken)) == sorted(map(str, keys))

    async def test_adoption_is_fair_to_namespaces(self, stores: Stores) -> None:
        dead, heir = await replica(stores), await replica(stores)
        await states(stores, dead, *(submission(run_key("big")) for _ in range(100)))
        await states(stores, dead, *(submission(run_key(name)) for name in ("small", "tiny")))
        await stores.replicas.release(dead)
        first = Counter(row.key.namespace for row in await stores.replicas.adopt(heir, 9))
        assert first == {"big": 3, "small": 1, "tiny": 1}
        rest = Counter(row.key.namespace for row in await stores.replicas.adopt(heir, 1000))
        assert rest == {"big": 97}

    async def test_a_parked_run_is_of_nobody_until_its_time(self, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        later, due, busy = run_key(), run_key(), run_key()
        await states(stores, me, submission(later), submission(due), submission(busy))
        await stores.replicas.park(me, [parked(later, HOUR_US), parked(due, 0)])
        assert await stores.replicas.find_owner(later) == RunOwner(None, "", False, False)
        assert {row.key for row in await stores.replicas.list_owned(me)} == {busy}
        assert await states(stores, me, step(later, 2)) == [FENCED]
        await stores.replicas.release(me)
        assert {row.key for row in await stores.replicas.adopt(other, 10)} == {busy}, "parked runs belong to nobody"
        assert [(row.key, row.epoch) for row in await stores.replicas.wake(other, 10, 0.0)] == [(due, 2)]
        assert await stores.replicas.wake(other, 10, 0.0) == []
        assert [row.key for row in await stores.replicas.wake(other, 10, 3_700.0)] == [later]
        assert await states(stores, other, step(later, 2, epoch=2), step(due, 2, epoch=2)) == [WRITTEN] * 2

    async def test_only_the_owner_parks_what_it_has_written_in_full(self, stores: Stores) -> None:
        me, other, key = await replica(stores), await replica(stores), run_key()
        await states(stores, me, submission(key))
        await stores.replicas.park(other, [parked(key, HOUR_US)])
        await stores.replicas.park(me, [parked(key, HOUR_US, epoch=2), parked(key, HOUR_US, next_sequence=3)])
        await stores.replicas.park(me, [parked(key, HOUR_US, next_sequence=1), parked(run_key("bank"), HOUR_US)])
        owner = await stores.replicas.find_owner(key)
        assert owner is not None
        assert owner.replica_id == me
        await stores.replicas.release(me)
        with pytest.raises(LeaseLost):
            await stores.replicas.park(me, [parked(key, HOUR_US)])

    async def test_a_parked_run_is_claimed_by_one(self, stores: Stores) -> None:
        owner, heirs = await replica(stores), [await replica(stores) for _ in range(5)]
        key, ended = run_key(), run_key()
        await states(stores, owner, submission(key), submission(ended))
        await states(stores, owner, ending(ended, 2))
        assert await stores.replicas.claim(heirs[0], key) is None, "a live replica owns it"
        await stores.replicas.park(owner, [parked(key, HOUR_US)])
        claims = await asyncio.gather(*(stores.replicas.claim(heir, key) for heir in heirs))
        assert [(row.epoch, row.handed_over) for row in claims if row is not None] == [(2, False)]
        assert await stores.replicas.wake(owner, 10, 7_200.0) == []
        for nothing in (ended, run_key(), RunKey("bank", key.run_id)):
            assert await stores.replicas.claim(owner, nothing) is None

    async def test_a_run_of_a_dead_replica_is_claimed_once_that_is_known(self, stores: Stores) -> None:
        dead, zombie, heir, key = await replica(stores), await replica(stores), await replica(stores), run_key()
        await states(stores, dead, submission(key))
        await stores.replicas.release(dead)
        await stores.replicas.release(zombie)
        assert await stores.replicas.claim(zombie, key) is None
        claimed = await stores.replicas.claim(heir, key)
        assert claimed is not None
        assert (claimed.key, claimed.epoch, claimed.handed_over) == (key, 2, True)

    async def test_who_is_poked_is_due_at_once(self, stores: Stores) -> None:
        me, parked_run, awake, ended = await replica(stores), run_key(), run_key(), run_key()
        await states(stores, me, submission(parked_run), submission(awake), submission(ended))
        await states(stores, me, ending(ended, 2))
        await stores.replicas.park(me, [parked(parked_run, HOUR_US)])
        await stores.replicas.poke([parked_run, awake, ended, run_key()])
        assert [row.key for row in await stores.replicas.wake(me, 10, 0.0)] == [parked_run]
        owner = await stores.replicas.find_owner(awake)
        assert owner is not None
        assert owner.replica_id == me, "who is poked stays with its owner"
        # What happened before the run was parked is not slept through.
        await stores.replicas.park(me, [parked(awake, HOUR_US)])
        assert [row.key for row in await stores.replicas.wake(me, 10, 0.0)] == [awake]
        # And it is over with that.
        await stores.replicas.park(me, [parked(awake, HOUR_US, epoch=2)])
        assert await stores.replicas.wake(me, 10, 0.0) == []

    async def test_those_are_woken_first_that_are_due_first_in_turns_among_namespaces(self, stores: Stores) -> None:
        me = await replica(stores)
        big, small = [run_key("big") for _ in range(30)], [run_key("small") for _ in range(2)]
        await states(stores, me, *(submission(key) for key in (*big, *small)))
        await stores.replicas.park(me, [parked(key, (number - 100) * 1_000) for number, key in enumerate(big)])
        await stores.replicas.park(me, [parked(key, -1_000) for key in small])
        first = [row.key for row in await stores.replicas.wake(me, 6, 0.0)]
        assert sorted(map(str, first)) == sorted(map(str, [*big[:4], *small]))
        assert len(await stores.replicas.wake(me, 100, 0.0)) == 26

    async def test_a_dead_replica_wakes_nothing(self, stores: Stores) -> None:
        me, zombie, key = await replica(stores), await replica(stores), run_key()
        await states(stores, me, submission(key))
        await stores.replicas.park(me, [parked(key, 0)])
        await stores.replicas.release(zombie)
        assert await stores.replicas.wake(zombie, 10, 0.0) == []
        assert len(await stores.replicas.wake(me, 10, 0.0)) == 1

    async def test_replicas_wake_without_overlap(self, stores: Stores) -> None:
        me, heirs = await replica(stores), [await replica(stores) for _ in range(4)]
        keys = [run_key() for _ in range(60)]
        await states(stores, me, *(submission(key) for key in keys))
        await stores.replicas.park(me, [parked(key, 0) for key in keys])
        parts = await asyncio.gather(*(stores.replicas.wake(heir, 20, 0.0) for heir in heirs))
        woken = [row.key for part in parts for row in part]
        # What another had locked is found by the next look.
        woken += [row.key for row in await stores.replicas.wake(me, 100, 0.0)]
        assert sorted(map(str, woken)) == sorted(map(str, keys))

    async def test_the_set_of_replicas_knows_who_comes_and_who_goes(self, stores: Stores) -> None:
        store = stores.replicas
        first = await replica(stores)

        async def seen() -> ReplicaSet:
            found = (await store.renew(first, LEASE_SECONDS)).replicas
            assert found is not None
            return found

        alone = await seen()
        assert set(alone.members) == {first}
        second, third = uuid7(), uuid7()
        await store.register(second, "127.0.0.1:7002", LEASE_SECONDS)
        await store.register(third, "127.0.0.1:7003", 1.0)
        three = await seen()
        assert three.generation == alone.generation + 2
        assert three.members == {**alone.members, second: "127.0.0.1:7002", third: "127.0.0.1:7003"}
        assert await seen() == three
        await store.release(second)
        two = await seen()
        assert (two.generation, set(two.members)) == (three.generation + 1, {first, third})
        assert two.leave_time is not None
        assert two.loss_time is None
        async with asyncio.timeout(10):
            # Its lease ends by itself, and nobody is taken out before.
            while third in (last := await seen()).members:
                await store.adopt(first, 1)
        assert (last.generation, set(last.members)) == (two.generation + 1, {first})
        assert last.loss_time is not None
        assert last.loss_time == last.leave_time


HOUR_US = 3_600_000_000


def parked(key: RunKey, wait_us: int, *, epoch: int = 1, next_sequence: int = 2) -> ParkedRun:
    """Makes what is handed over to park a run for a while from now on."""
    return ParkedRun(key, epoch, next_sequence, now() + wait_us)
