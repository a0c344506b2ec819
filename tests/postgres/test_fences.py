"""Proves the fences by races between real connections: each holds a transaction open where a replica would be slow."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.events import READABLE_FORMATS
from orchestrator.engine.ports import LeaseLost, RunEntry
from orchestrator.postgres import journal
from orchestrator.postgres.pool import set_time_codec
from orchestrator.postgres.sql import load
from tests.conformance.journal_store import (
    FENCED,
    WRITTEN,
    Stores,
    ending,
    journal_of,
    replica,
    rows,
    run_key,
    states,
    step,
    submission,
)
from tests.conformance.replica_store import parked


async def write_within(connection: asyncpg.Connection[asyncpg.Record], me: UUID, entry: RunEntry) -> list[int]:
    """Runs the journal's own statement on `connection`, which may be in a transaction; answers what it wrote."""
    name, arguments = journal.statement_of(me, [entry])
    answer = await connection.fetchrow(load("journal")[name], *arguments)
    assert answer is not None
    assert answer["leased"]
    return list(answer["positions"])


async def is_waiting_for_a_lock(administrator: asyncpg.Connection[asyncpg.Record]) -> None:
    """Returns once some statement of this database waits for a lock."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while not await administrator.fetchval(count):  # noqa: ASYNC110 - the fact is in the database
            await asyncio.sleep(0.005)


async def expire(administrator: asyncpg.Connection[asyncpg.Record], replica_id: UUID) -> None:
    """Lets a lease run out at once."""
    await administrator.execute(
        "UPDATE replicas SET lease_expire_time = clock_timestamp() - interval '1s' WHERE replica_id = $1", replica_id
    )


async def test_a_zombie_writes_nothing_after_the_theft(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    zombie, thief, key = await replica(stores), await replica(stores), run_key()
    await states(stores, zombie, submission(key))
    await expire(administrator, zombie)
    assert [row.epoch for row in await stores.replicas.adopt(thief, 10)] == [2]
    with pytest.raises(LeaseLost):
        await stores.journal.write(zombie, [step(key, 2)])
    with pytest.raises(LeaseLost):
        await stores.replicas.renew(zombie, 60.0)
    assert await journal_of(stores, key) == rows(1)
    assert await states(stores, thief, step(key, 2, epoch=2)) == [WRITTEN]


async def test_under_a_lease_that_ran_out_nothing_is_done_before_it_is_renewed(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    late, gone, mine, left, new = await replica(stores), await replica(stores), run_key(), run_key(), run_key()
    await states(stores, late, submission(mine))
    await states(stores, gone, submission(left))
    await expire(administrator, late)
    with pytest.raises(DatabaseUnavailable):
        await stores.journal.write(late, [submission(new)])
    with pytest.raises(DatabaseUnavailable):
        await stores.journal.write(late, [step(mine, 2)])
    await stores.replicas.release(gone)
    assert await stores.replicas.adopt(late, 10) == []
    await stores.replicas.renew(late, 60.0)
    assert await states(stores, late, submission(new), step(mine, 2)) == [WRITTEN, WRITTEN]
    assert [row.key for row in await stores.replicas.adopt(late, 10)] == [left]


async def test_a_marked_replica_cannot_come_back(
    stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    """The mark alone keeps a replica out: its lease is made long again, as by a clock that was set back."""
    zombie, thief, key = await replica(stores), await replica(stores), run_key()
    await states(stores, zombie, submission(key))
    await expire(administrator, zombie)
    await stores.replicas.adopt(thief, 10)
    await administrator.execute("UPDATE replicas SET lease_expire_time = clock_timestamp() + interval '1h'")
    with pytest.raises(LeaseLost):
        await stores.journal.write(zombie, [step(key, 2)])
    with pytest.raises(LeaseLost):
        await stores.replicas.renew(zombie, 60.0)


async def test_the_thief_waits_for_a_statement_in_flight_and_sees_what_it_wrote(
    stores: Stores, database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    zombie, thief, key, born = await replica(stores, 1.0), await replica(stores), run_key(), run_key()
    await states(stores, zombie, submission(key))
    slow = await asyncpg.connect(database)
    try:
        await set_time_codec(slow)
        transaction = slow.transaction()
        await transaction.start()
        assert await write_within(slow, zombie, step(key, 2)) == [1]
        assert await write_within(slow, zombie, submission(born)) == [1]
        # The lease ends while the zombie's statement is under way. Its row is locked, so nobody can mark it.
        while not await administrator.fetchval(  # noqa: ASYNC110 - the fact is in the database
            "SELECT lease_expire_time < clock_timestamp() FROM replicas WHERE replica_id = $1", zombie
        ):
            await asyncio.sleep(0.02)
        assert await stores.replicas.adopt(thief, 10) == []
        mark = "SELECT end_time FROM replicas WHERE replica_id = $1"
        assert await administrator.fetchval(mark, zombie) is None
        await transaction.commit()
    finally:
        await slow.close()
    adopted = await stores.replicas.adopt(thief, 10)
    assert [(row.key, row.next_sequence) for row in adopted] == [(key, 3), (born, 2)]
    assert await journal_of(stores, key) == rows(1, 2)


async def test_a_statement_that_waited_for_the_thief_writes_nothing(
    stores: Stores, database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    zombie, key = await replica(stores), run_key()
    await states(stores, zombie, submission(key))
    thief = await asyncpg.connect(database)
    try:
        transaction = thief.transaction()
        await transaction.start()
        await thief.execute("UPDATE replicas SET end_time = clock_timestamp() WHERE replica_id = $1", zombie)
        attempt = asyncio.create_task(stores.journal.write(zombie, [step(key, 2)]))
        await is_waiting_for_a_lock(administrator)
        await transaction.commit()
        with pytest.raises(LeaseLost):
            await attempt
    finally:
        await thief.close()
    assert await journal_of(stores, key) == rows(1)


async def test_a_run_taken_from_a_live_replica_is_fenced_by_its_epoch(
    stores: Stores, database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    """The lease alone is no fence for a run that changed hands while both replicas live."""
    old, new, key, kept = await replica(stores), await replica(stores), run_key(), run_key()
    await states(stores, old, submission(key), submission(kept))
    other = await asyncpg.connect(database)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE runs SET owner_replica = $1, epoch = 2 WHERE run_id = $2", new, key.run_id)
        attempt = asyncio.create_task(states(stores, old, step(key, 2), step(kept, 2)))
        await is_waiting_for_a_lock(administrator)
        await transaction.commit()
        assert await attempt == [FENCED, WRITTEN]
    finally:
        await other.close()
    # Taken back by hand with a newer epoch: the old epoch stays out even for its owner.
    await administrator.execute("UPDATE runs SET owner_replica = $1, epoch = 3 WHERE run_id = $2", old, key.run_id)
    assert await states(stores, old, step(key, 2, epoch=1)) == [FENCED]
    assert await states(stores, old, step(key, 2, epoch=3)) == [WRITTEN]


async def test_the_key_is_a_fence_of_its_own(stores: Stores, administrator: asyncpg.Connection[asyncpg.Record]) -> None:
    """Where a run's row were wrong about the next sequence, what stands in the journal still stands."""
    me, key = await replica(stores), run_key()
    await states(stores, me, submission(key), submission(run_key()))
    await states(stores, me, step(key, 2, 3))
    await administrator.execute("UPDATE runs SET next_sequence = 3 WHERE run_id = $1", key.run_id)
    assert await states(stores, me, step(key, 3, 4, text="other")) == [FENCED]
    assert await journal_of(stores, key) == rows(1, 4)


async def test_who_wakes_takes_others_than_those_that_are_being_taken(stores: Stores, database: str) -> None:
    me, other, keys = await replica(stores), await replica(stores), [run_key() for _ in range(30)]
    await states(stores, me, *(submission(key) for key in keys))
    await stores.replicas.park(me, [parked(key, (number - 100) * 1_000) for number, key in enumerate(keys)])
    slow = await asyncpg.connect(database)
    try:
        async with slow.transaction():
            rows = await slow.fetch(load("replicas")["wake"], other, 10, 0.0, list(READABLE_FORMATS), 1, None)
            assert {row["run_id"] for row in rows} == {key.run_id for key in keys[:10]}
            woken = await stores.replicas.wake(me, 15, 0.0)
    finally:
        await slow.close()
    assert {row.key for row in woken} == set(keys[10:25])


async def test_a_replica_that_hangs_in_a_statement_holds_up_nobody(stores: Stores, database: str) -> None:
    stuck, free, key = await replica(stores), await replica(stores), run_key()
    await states(stores, free, submission(key))
    holder = await asyncpg.connect(database)
    try:
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM replicas WHERE replica_id = $1 FOR NO KEY UPDATE", stuck)
        assert await states(stores, free, step(key, 2)) == [WRITTEN]
        assert await stores.replicas.adopt(free, 10) == []
    finally:
        await holder.close()


async def test_an_end_that_commits_late_is_followed_all_the_same(
    stores: Stores, database: str, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    """The earlier transaction commits last: whoever goes by numbers or times alone has passed it by then."""
    me, early, late = await replica(stores), run_key(), run_key()
    await states(stores, me, submission(early), submission(late))
    before = await stores.runs.end_position()
    slow = await asyncpg.connect(database)
    await set_time_codec(slow)
    # The lease's row is locked by each batch: the other is written by a replica of its own.
    other = await replica(stores)
    await administrator.execute("UPDATE runs SET owner_replica = $1 WHERE run_id = $2", other, late.run_id)
    transaction = slow.transaction()
    await transaction.start()
    assert await write_within(slow, me, ending(early, 2)) == [1]
    await states(stores, other, ending(late, 2))
    page = await stores.runs.list_ended("shop", [], before, 10, None)
    assert [row.key for row in page.rows] == [late]
    again = await stores.runs.list_ended("shop", [], page.position, 10, None)
    assert again.rows == []
    cut = await stores.runs.list_ended("shop", [], before, 1, None)
    assert [row.key for row in cut.rows] == [late]
    await transaction.commit()
    await slow.close()
    for position in (page.position, again.position, cut.position):
        assert [row.key for row in (await stores.runs.list_ended("shop", [], position, 10, None)).rows] == [early]
