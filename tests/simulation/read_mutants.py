"""Mutants of what stands between reads and what others commit meanwhile; see mutants.py.

A read tells what it saw as it began. Two reads see two moments, and what was read first may be taken in last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import ENDED_RUN
from orchestrator.engine import park
from orchestrator.engine.child_runs import ChildRuns
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.lease import LeaseKeeper
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Renewal, RunEntry, RunRow, WriteResult, WriteState
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.transit import Transit
from tests.simulation.database import Database
from tests.simulation.mutant import ANY_OWNER, Mutant, Patch, no, yes
from tests.simulation.stores import SimulatedJournal

_read_end, _take = ChildRuns._read_end, LeaseKeeper._take


async def _write_and_settle_by_one_snapshot(
    self: SimulatedJournal, replica_id: UUID, entries: Sequence[RunEntry]
) -> list[WriteResult]:
    """What was not written is looked for as the database was when the statement began, and waited for its lock."""
    database, batch = self._database, list(entries)
    seen: dict[RunKey, int] = {}
    taken: set[RunKey] = set()

    def begin() -> list[WriteResult | None]:
        for entry in batch:
            run = database.runs.get(entry.key)
            seen.setdefault(entry.key, len(run.events) if run is not None else 0)
            if entry.new is not None and (entry.key.namespace, entry.new.request_id) in database.requests:
                taken.add(entry.key)
        return database.begin_write(replica_id)

    results = await self._link.ask(
        "write", begin, lambda: database.write_batch(replica_id, batch), lambda: database.unlock(replica_id)
    )
    return [
        result
        or (
            WriteResult(WriteState.FENCED)
            if seen[entry.key] < entry.rows[-1].sequence and entry.key not in taken
            else database.settle([entry])[0]
        )
        for entry, result in zip(batch, results, strict=True)
    ]


async def _read_end_for_who_is_there(self: ChildRuns, followed: Any) -> None:
    before = list(self._to_poke)
    await _read_end(self, followed)
    self._to_poke[:] = [key for key in self._to_poke if key in before or key != followed.live.key]


async def _ended_by_its_row(self: RunReader, key: RunKey, sequence: int) -> bool:
    return (await self._row(key)).state in ENDED_RUN


async def _row_of_a_while_ago(self: RunReader, key: RunKey) -> RunRow:
    return await self._looks.row(key)


def _take_in_beside(self: Driver, live: LiveRun) -> None:
    if not live.forgotten:
        self.runs[live.key] = live
        self._time_run(live)


async def _all_that_is_owned(self: Recovery, replica_id: UUID) -> Sequence[RunRow]:
    return await self._replicas.list_owned(replica_id)


def _count_from_now(self: LeaseKeeper, renewal: Renewal, sent_us: int, loop: Any) -> None:
    _take(self, renewal, sent_us, loop)
    self._end_us = self._clock.monotonic_us() + renewal.lease_expire_time - renewal.database_time


CHILD_LOOKS: Patch = (park, "CHILD_LOOK_US", 10**12)
STALE = ("stale",)

MUTANTS = (
    Mutant(
        "why an entry is not written is looked for by another statement",
        [(SimulatedJournal, "write", _write_and_settle_by_one_snapshot)],
        ("commits", "stale"),
        parts=STALE,
    ),
    Mutant(
        "what poked a run before it is parked stands",
        [(Database, "first_time", staticmethod(lambda _, wake_time: wake_time))],
        STALE,
        "the parent looks for itself once a minute",
        [CHILD_LOOKS],
        parts=STALE,
    ),
    Mutant(
        "a run is claimed from nobody, or the dead", [(Database, "is_nobodys", yes)], STALE, parts=("stale", "mending")
    ),
    Mutant(
        "who reads the end of a child pokes a parent that was parked meanwhile",
        [(ChildRuns, "_read_end", _read_end_for_who_is_there)],
        STALE,
        "the parent looks for itself once a minute",
        [CHILD_LOOKS],
        parts=STALE,
    ),
    Mutant(
        "a watch ends with the last event that its row tells of",
        [(RunReader, "_already_ended", _ended_by_its_row)],
        STALE,
        parts=STALE,
    ),
    Mutant(
        "a cursor is held against a row that is read anew",
        [(RunReader, "_row", _row_of_a_while_ago)],
        STALE,
        parts=STALE,
    ),
    Mutant(
        "what is held is not taken up anew",
        [(Recovery, "_find_lost", _all_that_is_owned)],
        ("statements",),
        "what was held of a run is forgotten as it is taken in again",
        [(Driver, "adopt", _take_in_beside)],
        parts=STALE,
    ),
    Mutant(
        "what is on its way is not taken for lost",
        [(Transit, "__contains__", no)],
        ("statements", "stale", "cut:park"),
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
        parts=STALE,
    ),
    Mutant(
        "a lease counts from before it was asked for",
        [(LeaseKeeper, "_take", _count_from_now)],
        ("tardy:renew", "tardy:write", "pause"),
    ),
)
"""What is read in two moments, or comes late."""
