"""What every ReplicaStore must do: leases, and the adoption of what dead replicas leave."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import LeaseLost, RunOwner
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
