"""Rows that do not agree with their journals, in Postgres: which are found, and whose are set right."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import asyncpg
import pytest

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import EventKind, RunState
from orchestrator.engine.ports import RunRow
from orchestrator.engine.scrub_ports import DifferingRuns, JournaledRun
from orchestrator.postgres.scrub import PostgresScrubStore
from tests.conformance.journal_store import Stores, ending, replica, run_key, states, step, submission
from tests.postgres.conftest import Pools

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
JOURNALED = JournaledRun(
    int(RunState.RUNNING), 4, 2, "r2", 1_700_000_000_000_005, None, expire_time=1_700_009_000_000_000
)


@pytest.fixture
def scrub(pools: Pools) -> PostgresScrubStore:
    return PostgresScrubStore(pools.claims)


def keys(found: DifferingRuns) -> list[RunKey]:
    return [row.key for row in found.rows]


async def test_unfinished_rows_that_differ_are_found_page_by_page(
    stores: Stores, scrub: PostgresScrubStore, administrator: Connection
) -> None:
    me, another = await replica(stores), await replica(stores)
    sound, behind, ahead, ended, last = sorted(run_key() for _ in range(5))
    await states(stores, me, *(submission(key, count=3) for key in (sound, behind, ahead, ended, last)))
    foreign = run_key()
    await states(stores, another, submission(foreign, count=3))
    assert keys(await scrub.list_differing(me, None, 10)) == []
    set_next = "UPDATE runs SET next_sequence = $2 WHERE run_id = $1"
    await administrator.executemany(set_next, [(behind.run_id, 3), (ahead.run_id, 5), (foreign.run_id, 2)])
    end = "UPDATE events SET kind = $2 WHERE run_id = $1 AND sequence = 3"
    await administrator.execute(end, ended.run_id, int(EventKind.RUN_FAILED))

    found = await scrub.list_differing(me, None, 10)
    assert (keys(found), found.last) == ([behind, ahead, ended], None)
    first = await scrub.list_differing(me, None, 3)
    assert (keys(first), first.last) == ([behind, ahead], ahead)
    rest = await scrub.list_differing(me, first.last, 2)
    assert (keys(rest), rest.last) == ([ended], last)
    assert keys(await scrub.list_differing(me, rest.last, 2)) == []
    assert keys(await scrub.list_differing(another, None, 10)) == [foreign]
    assert keys(await scrub.list_differing(None, None, 10)) == []
    await administrator.execute("UPDATE runs SET owner_replica = NULL WHERE run_id = $1", behind.run_id)
    assert keys(await scrub.list_differing(None, None, 10)) == [behind]


async def test_ended_rows_whose_journals_go_on_are_found(
    stores: Stores, scrub: PostgresScrubStore, administrator: Connection
) -> None:
    me = await replica(stores)
    sound, early, longer, going = sorted(run_key() for _ in range(4))
    await states(stores, me, *(submission(key) for key in (sound, early, longer, going)))
    await states(stores, me, *(ending(key, 2) for key in (sound, early, longer)))
    end = "UPDATE events SET kind = $2 WHERE run_id = $1 AND sequence = 2"
    await administrator.executemany(end, [(key.run_id, int(EventKind.RUN_SUCCEEDED)) for key in (sound, longer)])
    await administrator.execute("UPDATE runs SET next_sequence = 2 WHERE run_id = $1", longer.run_id)
    found = await scrub.list_differing_ended(None, 10)
    assert (keys(found), found.last) == ([early, longer], None)
    found = await scrub.list_differing_ended(None, 2)
    assert (keys(found), found.last) == ([early], early)
    assert keys(await scrub.list_differing_ended(early, 10)) == [longer]


async def row_of(scrub: PostgresScrubStore, key: RunKey) -> RunRow:
    row = await scrub.get_unfinished(key)
    assert row is not None
    return row


async def test_a_row_is_set_right_where_it_stands_as_it_was_read_and_is_nobody_elses(
    stores: Stores, scrub: PostgresScrubStore, administrator: Connection
) -> None:
    me, another = await replica(stores), await replica(stores)
    key = run_key()
    await states(stores, me, submission(key))
    await states(stores, me, step(key, 2, 2))
    await administrator.execute("UPDATE events SET epoch = 6 WHERE run_id = $1 AND sequence = 3", key.run_id)
    await administrator.execute("UPDATE runs SET next_sequence = 3 WHERE run_id = $1", key.run_id)
    row = await row_of(scrub, key)
    for changed in (replace(row, epoch=2), replace(row, next_sequence=2), replace(row, end_time=1)):
        assert not await scrub.align(changed, me, JOURNALED)
    assert not await scrub.align(row, another, JOURNALED)
    assert await row_of(scrub, key) == row

    assert await scrub.align(row, me, JOURNALED)
    aligned = await row_of(scrub, key)
    assert (aligned.next_sequence, aligned.round, aligned.revision.revision) == (4, 2, "r2")
    assert aligned.expire_time == JOURNALED.expire_time
    assert aligned.epoch == 6, "no event is written under an epoch below that of the last one"
    assert await administrator.fetchval("SELECT owner_replica FROM runs WHERE run_id = $1", key.run_id) == me

    end = replace(JOURNALED, state=int(RunState.FAILED), end_time=1_700_000_000_000_009)
    assert await scrub.align(aligned, me, end)
    ended = "SELECT state = 4 AND owner_replica IS NULL AND end_xid IS NOT NULL FROM runs WHERE run_id = $1"
    assert await administrator.fetchval(ended, key.run_id)
    assert await scrub.get_unfinished(key) is None
