"""Where the rows of runs lie: who goes on stays in its page, so that no index hears of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import asyncpg

from orchestrator.domain.states import RunState
from orchestrator.engine.ports import WriteState
from tests.conformance.journal_store import Stores, now, replica, run_key, states, step, submission

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

RUNS = 200


async def pages(administrator: Connection) -> dict[object, int]:
    """The page of each run."""
    rows = await administrator.fetch("SELECT run_id, (ctid::text::point)[0]::int AS page FROM runs")
    return {row["run_id"]: row["page"] for row in rows}


async def test_runs_that_go_on_together_stay_in_their_pages(stores: Stores, administrator: Connection) -> None:
    me = await replica(stores)
    keys = [run_key() for _ in range(RUNS)]
    # Their first steps have begun: that a run begins is in an index.
    begun = [replace(submission(key), state=int(RunState.RUNNING), start_time=now()) for key in keys]
    assert set(await states(stores, me, *begun)) == {WriteState.WRITTEN}
    before = await pages(administrator)
    assert 1 < len(set(before.values())) < RUNS / 4, "many runs share a page, and there are several"
    for sequence in range(2, 7):
        assert set(await states(stores, me, *(step(key, sequence) for key in keys))) == {WriteState.WRITTEN}
        after = await pages(administrator)
        assert after == before
