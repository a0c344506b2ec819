"""Mutants: each switches one safeguard off. The simulation must find it out, or another safeguard is named that stands
behind it.

A mutant that survives where none may is a hole in the simulation; one that is found where another safeguard was thought
to stand behind it is a hole in what we believe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

from orchestrator.domain.errors import ApprovalChanged, ApproverNotAllowed, DatabaseUnavailable
from orchestrator.domain.plan import attempts, mending
from orchestrator.domain.plan.planner import Planner
from orchestrator.domain.run import Run as FoldedRun
from orchestrator.engine import approvals, homes, park, recovery, schedule_rules
from orchestrator.engine.admission import Admission
from orchestrator.engine.balance import Balance
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.engine import Engine
from orchestrator.engine.firing import Firing, _Look
from orchestrator.engine.homes import Homes
from orchestrator.engine.journal import GroupCommit
from orchestrator.engine.lease import LeaseKeeper
from orchestrator.engine.limit_home import LimitHome
from orchestrator.engine.live import LiveRun
from orchestrator.engine.mend import Mender, Wish
from orchestrator.engine.park import Parker
from orchestrator.engine.ports import RunEntry, RunRow, WriteResult, WriteState
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.resumptions import Resumptions
from orchestrator.engine.retry_budget import RetryBudgets
from orchestrator.engine.submit import Submitter
from tests.simulation import known_mutants, lease_mutants, limit_mutants, read_mutants, stream_mutants
from tests.simulation.database import Database
from tests.simulation.mutant import ANY_LEASE, ANY_OWNER, UNDOUBTED, UNSEEN, Mutant, empty, no, nothing, yes
from tests.simulation.schedules import ScheduleTables

# --- the journal's fences


def _owner_without_epoch(self: Database, replica_id: UUID, entry: RunEntry) -> bool:
    run = self.runs.get(entry.key)
    return run is not None and (run.owner, run.next_sequence) == (replica_id, entry.rows[0].sequence)


def _owner_without_sequence(self: Database, replica_id: UUID, entry: RunEntry) -> bool:
    run = self.runs.get(entry.key)
    return run is not None and (run.owner, run.epoch) == (replica_id, entry.epoch)


def _end_held_too(self: Database, replica_id: UUID, mark_before: int | None = None) -> None:
    for each, replica in self.replicas.items():
        if replica.end_time is None and replica.lease_expire_time <= self.now() and each != replica_id:
            replica.end_time = self.now()


def _is_unknown(self: Database, replica_id: UUID) -> bool:
    if (replica := self.replicas.get(replica_id)) is not None:
        replica.end_time = None
    return replica is None


def _claim_any_request(self: Database, namespace: str, request_id: str, run_id: UUID, body_hash: bytes) -> bool:
    self.requests[namespace, request_id] = (run_id, body_hash)
    return True


def _park_unseen(self: Database, replica_id: UUID, runs: Sequence[Any]) -> None:
    for parked in runs:
        run = self.runs.get(parked.key)
        if run is not None and run.unfinished:
            run.owner, run.wake_time = None, parked.wake_time


# --- group commit


async def _write_once(self: Any, replica_id: UUID, batch: Sequence[Any], unknown: Callable[[int], Any]) -> Any:
    try:
        return await self._store.write(replica_id, [part.entry for part in batch])
    except DatabaseUnavailable:
        return unknown(len(batch))


async def _taken_for_written(self: Any, replica_id: UUID, batch: Sequence[Any]) -> Any:
    return await _write_once(self, replica_id, batch, lambda count: [WriteResult(WriteState.WRITTEN)] * count)


async def _taken_for_refused(self: Any, replica_id: UUID, batch: Sequence[Any]) -> Any:
    return await _write_once(self, replica_id, batch, lambda _: None)


# --- the driver

_admit, _record, _start = Driver._admit, Driver.record, Submitter._start
_admit_by_plan, _mend_ended = attempts.admit, Mender._mend_ended


def _admit_and_send(self: Any, live: LiveRun, index: int, *others: Any) -> bool:
    admitted = cast(Callable[..., bool], _admit)(self, live, index, *others)
    if admitted:
        self._dispatcher.send(live, live.flights[index])
    return admitted


def _record_any_flight(self: Any, live: LiveRun, flight: Any, outcome: Any) -> None:
    known = live.flights.get(flight.step)
    if known is not None and known is not flight:
        self._land(live, known)
    live.flights[flight.step] = flight
    _record(self, live, flight, outcome)


def _start_and_accept(self: Any, *arguments: Any) -> LiveRun:
    live = cast(Callable[..., LiveRun], _start)(self, *arguments)
    if live.accepted is not None:
        live.accepted.set_result(WriteResult(WriteState.WRITTEN))
    return live


_resume = Recovery._resume


async def _resume_as_handed_over(self: Recovery, row: RunRow, journal: Any) -> LiveRun | None:
    return await _resume(self, replace(row, handed_over=True), journal)


async def _resume_without_timers(self: Any, row: Any, journal: Any) -> LiveRun | None:
    return await self._rebuild(row, journal)  # type: ignore[no-any-return]


# --- mending


def _may_start_though_paused(live: LiveRun, step: int) -> bool:
    return not (live.forgotten or live.run.ended or step in live.flights)


def _admit_though_paused(plan: Any, given: Any) -> None:
    paused, plan.run.paused = plan.run.paused, False
    try:
        _admit_by_plan(plan, given)
    finally:
        plan.run.paused = paused


async def _durable_unseen(live: LiveRun) -> None:
    pass


def _begin_all_anew(run: FoldedRun, graph: Any, again: Any = ()) -> tuple[str, ...]:
    return tuple(step.id for step in graph.steps)


async def _mend_any_round(self: Any, caller: Any, run_id: UUID, wish: Wish) -> Any:
    return await _mend_ended(self, caller, run_id, replace(wish, round=0))


# --- schedules


def _only_own_claims(self: ScheduleTables, stored: Any, replica_id: UUID) -> bool:
    return stored.claim_replica in (None, replica_id)


def _two_seconds_early(self: Any) -> int:
    return int(self._clock.now()) + 2_000_000


async def _find_nothing(self: Any) -> None:
    pass


def _all(self: Balance) -> int:
    return self._own() if self._others else 0


async def _find_nothing_of(self: Any, namespace: str) -> None:
    pass


# --- the domain


def _stamp_unheeding(self: Planner) -> tuple[int, int]:
    return self.run.sequence + 1, self.now


# --- limits, delegation, approvals

_opening, _require = Homes.opening, approvals._require


def _not_paused(self: LimitHome) -> str:
    return ""


def _nothing_held(self: Homes, replica_id: UUID) -> Any:
    opening = _opening(self, replica_id)
    del opening.holdings[:]
    return opening


def _go_on_without(self: Resumptions, one: Any) -> None:
    one.flight.permit = one.flight.resumption = None
    self._withdraw(one)
    self._admission.call_resumed(one.flight.endpoint)
    one.changed.wake()


@contextmanager
def _keep_permits(self: Resumptions, live: LiveRun, flight: Any, step: int) -> Iterator[None]:
    yield


def _let_anybody_decide(run: Any, caller: Any, request: Any, now: int) -> int:
    try:
        return _require(run, caller, request, now)
    except (ApproverNotAllowed, ApprovalChanged):
        step = run.indexes[request.step]
        request.request_hash = run.steps[step].wait.request_hash
        return int(step)


async def _durable_at_once(self: LiveRun, sequence: int) -> bool:
    return True


LATE = ("pause", "slow")
GROWN = ("growth", "limits")
MENDED = ("mending",)
PLANNED = ("schedules",)
STREAMED = ("streams",)
MUTANTS = (
    Mutant(
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
        LATE,
        "the lease in the same statement",
        [ANY_LEASE, UNSEEN],
    ),
    Mutant("the lease in the journal's statement", [ANY_LEASE], LATE),
    Mutant(
        "the epoch in the journal's fence",
        [(Database, "is_owner", _owner_without_epoch)],
        LATE,
        "the owner in the same fence: a process that lost its lease comes back under another id",
        [ANY_OWNER, ANY_LEASE, UNSEEN],
    ),
    Mutant(
        "the sequence in the journal's fence",
        [(Database, "is_owner", _owner_without_sequence)],
        ("commits",),
        "the key of the events",
        [(Database, "_stands_under", no)],
    ),
    Mutant("the epoch rises with each owner", [(Database, "raised", staticmethod(lambda epoch: epoch))], ("crash",)),
    Mutant(
        "no replica is marked whose statement is under way",
        [(Database, "end_dead", _end_held_too)],
        LATE,
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
    ),
    Mutant(
        "a lease is not renewed whose replica is marked",
        [(Database, "is_marked", _is_unknown)],
        ("pause",),
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
    ),
    Mutant(
        "the dead are marked where renewals come late too",
        [(LeaseKeeper, "mark_before", property(lambda _: 0))],
        ("crash",),
    ),
    Mutant("one run a request id", [(Database, "claim_request", _claim_any_request)], ("statements",)),
    Mutant("an identical batch is found written", [(Database, "stands", no)], ("commits",)),
    Mutant(
        "only who owns a run parks it",
        [(Database, "park", _park_unseen)],
        ("cut:park",),
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
    ),
    Mutant(
        "an ambiguous commit is written again", [(GroupCommit, "_write_until_known", _taken_for_written)], ("commits",)
    ),
    Mutant(
        "an ambiguous commit is no refusal", [(GroupCommit, "_write_until_known", _taken_for_refused)], ("commits",)
    ),
    Mutant("an answer comes after the commit", [(Submitter, "_start", _start_and_accept)], ("outage",)),
    Mutant(
        "a call leaves after the commit",
        [(Driver, "_admit", _admit_and_send), (Driver, "_dispatch", nothing)],
        ("slow",),
    ),
    Mutant("a call leaves under a lease", [(Engine, "_holds_lease", yes)], ("pause", "tardy:write")),
    Mutant(
        "the answer of a call that was given up is dropped",
        [(Driver, "record", _record_any_flight)],
        ("workers",),
        "an answer counts for its own attempt alone",
        [(FoldedRun, "is_current", yes)],
    ),
    Mutant(
        "only what a replica cut off in good order does not count",
        [(Recovery, "_resume", _resume_as_handed_over)],
        ("crash", "workers"),
    ),
    Mutant("deliveries are bounded", [(attempts, "MAX_DELIVERIES", 99)], ("workers", "lost")),
    Mutant("runs of dead replicas are adopted", [(Database, "adopt", empty)], ("crash",)),
    Mutant("parked runs are woken", [(Database, "wake", empty)]),
    Mutant(
        "what was taken over is gone on with, timers too", [(Recovery, "_resume", _resume_without_timers)], ("crash",)
    ),
    Mutant(
        "a poke lets the time of a parked run come",
        [(Database, "poke", nothing)],
        (),
        "the parent looks for itself once a minute",
        [(park, "CHILD_LOOK_US", 10**12)],
    ),
    Mutant("a replica looks for runs that it may own", [(Recovery, "_is_doubtful", no)], ("statements",)),
    Mutant(
        "it looks again when nothing can be under way",
        [(recovery, "UNDER_WAY_SECONDS", 0.0)],
        ("cut:wake", "cut:adopt"),
    ),
    Mutant(
        "a replica that lost its lease forgets its runs",
        [(Driver, "forget_all", nothing)],
        LATE,
        "owner and epoch in the journal's fence",
        [ANY_OWNER],
    ),
    Mutant("only what is durable is shown", [(LiveRun, "settled", property(yes))], ("slow",)),
    Mutant(
        "a home of limits gives nothing before all have told what they hold",
        [(LimitHome, "pause", _not_paused)],
        ("links", "crash"),
        parts=("limits",),
    ),
    Mutant(
        "what is held is told with each stream",
        [(Homes, "opening", _nothing_held)],
        ("links", "crash"),
        parts=("limits",),
    ),
    Mutant("permits come back", [(Homes, "give_back", nothing)], parts=("limits",)),
    Mutant(
        "workers have given up on a lost replica before its permits are given again",
        [(homes, "WORKER_HOLD_SECONDS", 0.0)],
        ("crash", "workers"),
        parts=("limits",),
    ),
    Mutant("a call that waits for its steps lends its permits", [(Resumptions, "lent", _keep_permits)], parts=GROWN),
    Mutant("it goes on once it has them again", [(Resumptions, "_try", _go_on_without)], parts=GROWN),
    Mutant(
        "verbs are answered after the commit", [(LiveRun, "durable", _durable_at_once)], ("slow",), parts=("growth",)
    ),
    Mutant(
        "an ended run is reopened by who is first",
        [(Database, "has_ended_so", staticmethod(yes))],
        ("workers", "slow"),
        "the key of the events",
        [(Database, "_stands_under", no)],
        parts=MENDED,
    ),
    Mutant(
        "nothing starts while a run is paused",
        [(Admission, "_may_start", staticmethod(_may_start_though_paused))],
        ("workers",),
        "no attempt of a paused run is decided on",
        [(attempts, "admit", _admit_though_paused)],
        parts=MENDED,
    ),
    Mutant(
        "mending is answered after the commit",
        [(Mender, "_durable", staticmethod(_durable_unseen))],
        ("slow", "workers"),
        parts=MENDED,
    ),
    Mutant("what was done is kept", [(mending, "steps_begun_anew", _begin_all_anew)], ("workers",), parts=MENDED),
    Mutant(
        "a wish that names its round is done once",
        [(Mender, "_mend_ended", _mend_any_round)],
        ("workers", "commits", "slow"),
        parts=MENDED,
    ),
    Mutant("retries have a budget", [(RetryBudgets, "has_token", yes)], ("workers",), parts=("retries",)),
    Mutant(
        "schedules of replicas that are gone are taken over",
        [(ScheduleTables, "is_free", _only_own_claims)],
        ("crash",),
        parts=PLANNED,
    ),
    Mutant(
        "who has lost a claim on a schedule writes nothing",
        [(ScheduleTables, "has_claim", staticmethod(yes))],
        ("slow", "cut:update_schedule"),
        parts=PLANNED,
    ),
    Mutant(
        "who takes a schedule over looks first which firings have a run",
        [(_Look, "_find_started", _find_nothing)],
        ("cut:add_run", "cut:update_schedule"),
        parts=PLANNED,
    ),
    Mutant(
        "a firing that was let go by is looked for while its run may be on its way",
        [(schedule_rules, "LET_GO_US", 0)],
        ("held", "cut:add_run", "slow"),
        parts=PLANNED,
    ),
    Mutant(
        "a change of a schedule that came between stays",
        [(ScheduleTables, "is_unchanged", staticmethod(yes))],
        ("outage", "slow"),
        parts=PLANNED,
    ),
    Mutant(
        "half of what a replica has beyond its share is given away", [(Balance, "surplus", _all)], parts=("balance",)
    ),
    Mutant(
        "a change of limits reaches every replica",
        [(Catalogue, "follow", _find_nothing_of)],
        (),
        "who rests on what has changed reads it again",
        [UNDOUBTED],
        parts=("tuning",),
    ),
    Mutant("nothing fires early", [(Firing, "_surely_now", _two_seconds_early)], parts=PLANNED),
    Mutant("only runs at rest are parked", [(Parker, "wake_time", lambda self, live: self._clock.now() + 10_000_000)]),
    Mutant(
        "who may not decide on a request does not", [(approvals, "_require", _let_anybody_decide)], parts=("growth",)
    ),
    Mutant(
        "a call whose outcome is unknown is not made again where that may not be",
        [(attempts, "_at_most_once", no)],
        ("crash",),
    ),
    Mutant("times rise, whatever a clock says", [(Planner, "stamp", _stamp_unheeding)], ("crash",)),
    *known_mutants.MUTANTS,
    *lease_mutants.MUTANTS,
    *limit_mutants.MUTANTS,
    *read_mutants.MUTANTS,
    *stream_mutants.MUTANTS,
)
"""Every mutant."""
