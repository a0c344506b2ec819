"""Firing: claims schedules that are due, a bounded batch at a time, and starts their runs; on every replica.

A schedule is claimed, its firings are submitted under their own request_ids, and what came of them is written under the
schedule's version. A replica that dies in between leaves a claim: whoever takes it over first looks which firings have
a run. So each firing makes one run, however often it is tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from baton.v1 import run_pb2, schedule_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    NamespaceQueueFull,
    ShuttingDown,
    TooManyRuns,
)
from orchestrator.domain.ids import RunKey
from orchestrator.domain.tracing import firing_traceparent
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.observer import FiringOutcome, Observer
from orchestrator.engine.ports import Clock
from orchestrator.engine.schedule_ports import ClaimedSchedule, Refusal, ScheduleRow, ScheduleStore
from orchestrator.engine.schedule_rules import FIRINGS_A_LOOK, ScheduleRules, schedule_of, settled
from orchestrator.engine.scheduled_runs import CHANNEL, ScheduledRuns, firing_request_id

CLAIM_SECONDS = 30.0
"""How long a claim lasts at most, where its replica lives on and does not give it up."""

MISSED_A_LOOK = 1_000
"""Missed firings of one schedule that are counted before others have their turn."""

UNFINISHED_LIMIT = 100
"""Unfinished runs of a schedule that the overlap policy looks at, and cancels."""

CANCEL_SECONDS = 2.0
"""How long a look waits for runs that it has cancelled to end."""

CANCELS_LIMIT = 100
"""Runs that are cancelled at a time by the wish of other replicas."""

SETTLE_TRIES = 5
"""How often what came of a look is written that changes of others overtook."""

RETRY_US = 1_000_000
"""After which a firing is tried again where the replica took no more runs."""

FAULT_US = 60_000_000
"""After which a schedule is looked at again that could not be dealt with because of a fault in the code."""

SHORTEST_SLEEP_SECONDS = 0.005


class Cancel(Protocol):
    """Cancels a run; see api.Runs.cancel."""

    async def __call__(self, caller: Caller, run_id: UUID, reason: str) -> run_pb2.Run:
        """Cancels a run that this replica drives."""
        ...


class Firing:
    """Fires the schedules of all namespaces for as long as the replica lives."""

    def __init__(
        self,
        store: ScheduleStore,
        runs: ScheduledRuns,
        cancel: Cancel,
        clock: Clock,
        limits: EngineLimits,
        observer: Observer,
        new_trace: Callable[[], str],
    ) -> None:
        """`new_trace` gives the traceparent of a new trace, in which a firing is the first span."""
        self._new_trace = new_trace
        self._store, self._runs, self._cancel = store, runs, cancel
        self._clock, self._limits, self._observer = clock, limits, observer
        self._woken = asyncio.Event()
        self._served: set[str] = set()
        self.paused = False
        """While set, nothing new is claimed: the replica drains."""

    def wake(self) -> None:
        """Lets the loop look at once: a schedule has new times."""
        self._woken.set()

    async def run(self, replica_id: UUID) -> None:
        """Fires for ever."""
        while True:
            self._woken.clear()
            again, seconds = False, self._limits.schedule_interval_seconds
            try:
                await self.cancel_asked(replica_id)
                again = await self.fire_due(replica_id)
                seconds = min(seconds, await self._seconds_to_next())
            except DatabaseUnavailable:
                again = False
            try:
                async with asyncio.timeout(0 if again else max(seconds, SHORTEST_SLEEP_SECONDS)):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def fire_due(self, replica_id: UUID) -> bool:
        """Deals with a batch of what is due; tells whether there may be more by now. Errors: DatabaseUnavailable."""
        if self.paused:
            return False
        now, limit, served = self._surely_now(), self._limits.schedule_batch, self._served
        claimed = await self._store.claim(replica_id, now, limit, CLAIM_SECONDS, served)
        full = len(claimed) >= limit
        # Where more is due than one batch holds, the next is of other namespaces, until all have had their turn.
        self._served = served | {each.row.key.namespace for each in claimed} if full else set()
        left = await asyncio.gather(*(self._look(each, now) for each in claimed), return_exceptions=True)
        for each in left:
            if isinstance(each, BaseException):
                raise each
        return full or bool(served) or any(left)

    async def cancel_asked(self, replica_id: UUID) -> None:
        """Cancels runs that this replica drives and that schedules wish cancelled. Errors: DatabaseUnavailable."""
        await self.cancel_runs(await self._store.list_to_cancel(replica_id, CANCELS_LIMIT))

    def _surely_now(self) -> int:
        """Returns a time that is surely over: nothing fires early."""
        return self._clock.now() - self._clock.error_us

    async def _seconds_to_next(self) -> float:
        now = self._surely_now()
        due_time = await self._store.next_due_time(now)
        return float("inf") if due_time is None else (due_time - now) / 1_000_000

    async def _look(self, claimed: ClaimedSchedule, now: int) -> bool:
        """Deals with one schedule; tells whether it is due again already. Errors: DatabaseUnavailable."""
        row = claimed.row
        try:
            look = _Look(self, claimed, now)
            due_time = await look.take()
            return await self._settle(claimed, replace(row, progress=look.progress, due_time=due_time), now)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # whatever is wrong with one schedule, the others go on
            why = f"{type(error).__name__}: {error}"
            self._observer.firing_ended(*row.key, row.progress.next_time or now, "failed", why)
            # Put off, and still claimed: how far this look came is not known.
            await self._store.update(replace(row, due_time=now + FAULT_US))
            return False

    async def _settle(self, claimed: ClaimedSchedule, after: ScheduleRow, now: int) -> bool:
        """Writes what came of a look, also into what others have made of the schedule meanwhile; tells whether it is
        due again already."""
        before = claimed.row
        for _ in range(SETTLE_TRIES):
            if await self._store.update(after, release=claimed.claim):
                return after.due_time is not None and after.due_time <= now
            changed = await self._store.get(before.key)
            if changed is None or changed.create_time != before.create_time:
                return False
            if changed.progress.counts != before.progress.counts:
                return True  # By another look at the same, whose claim this one had lost: it counted all of it.
            after = settled(before.progress, after.progress, changed, now)
        return True  # The claim stays, or is another's, and the next look finds what this one started.

    async def cancel_runs(self, wishes: Sequence[tuple[RunKey, str]]) -> None:
        """Cancels runs for their schedules, and waits a little for their ends, which undo calls may put off."""
        if not wishes:
            return
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await asyncio.gather(*(self._cancel_run(key, schedule) for key, schedule in wishes))
        except TimeoutError:
            return  # The wish stays, and what waits for the ends looks again.

    async def _cancel_run(self, key: RunKey, schedule: str) -> None:
        caller = Caller(key.namespace, f"schedule/{schedule}", CHANNEL)
        try:
            await self._cancel(caller, key.run_id, f"the schedule {schedule} fired again")
        except BatonError:
            return  # Ended by itself, or to be cancelled later, also by another replica: the wish is in the database.


class _Stop(Exception):
    """The replica takes no more runs now."""


class _Look:
    """One look at a claimed schedule: what waits, what is due, what is too late."""

    def __init__(self, firing: Firing, claimed: ClaimedSchedule, now: int) -> None:
        self._store, self._runs, self._observer = firing._store, firing._runs, firing._observer
        self._firing, self._now, self._doubtful = firing, now, claimed.doubtful
        self._key, self._principal = claimed.row.key, claimed.row.principal
        self._schedule = schedule_of(claimed.row)
        self._rules = ScheduleRules(self._key, self._schedule)
        self._unfinished: list[UUID] = []
        self._started: dict[int, UUID] = {}
        self.progress = claimed.row.progress
        """What has come of it, for the schedule's row."""

    async def take(self) -> int | None:
        """Deals with the schedule; returns when it is due next. Errors: DatabaseUnavailable."""
        if self._rules.overlap_policy != schedule_pb2.OVERLAP_POLICY_ALLOW:
            self._unfinished = await self._store.list_unfinished(self._key, UNFINISHED_LIMIT)
        if self._doubtful:
            await self._find_started()
        if self._drop_missed() and self._doubtful:
            await self._find_started()
        try:
            await self._start_waiting()
            await self._fire_due()
            await self._replace_unfinished()
        except _Stop:
            return self._now + RETRY_US
        return self._rules.due_time(self.progress, self._now)

    def _drop_missed(self) -> bool:
        """Leaves out what comes too late; tells whether anything does."""
        next_time = self.progress.next_time
        if next_time is None or not self._rules.is_missed(next_time, self._now):
            return False
        missed, after = 1, self._rules.timetable.times_after(next_time)
        while (following := next(after, None)) is not None and missed < MISSED_A_LOOK:
            if not self._rules.is_missed(following, self._now):
                break
            missed += 1
        count = self.progress.missed_count + missed
        self.progress = replace(self.progress, next_time=following, missed_count=count)
        self._tell(next_time, "missed", f"{missed} firings were later than the catch-up window")
        return True

    async def _find_started(self) -> None:
        """Finds the firings that who claimed the schedule before has started, before any other is: their runs count as
        those of the schedule."""
        for fire_time in self._rules.doubtful_times(self.progress, self._now):
            run_id = await self._runs.find(self._key, firing_request_id(self._key, fire_time))
            if run_id is not None:
                self._started[fire_time] = run_id
                await self._store.add_run(self._key, run_id, fire_time, triggered=False)
        if self._started:
            self._unfinished = await self._store.list_unfinished(self._key, UNFINISHED_LIMIT)

    async def _fire_due(self) -> None:
        after = None
        for _ in range(FIRINGS_A_LOOK):
            fire_time = self.progress.next_time
            if fire_time is None or self._rules.is_spent(self.progress) or not self._rules.is_due(fire_time, self._now):
                return
            await self._fire(fire_time)
            after = after or self._rules.timetable.times_after(fire_time)
            self.progress = replace(self.progress, next_time=next(after, None))

    async def _fire(self, fire_time: int) -> None:
        policy = self._rules.overlap_policy
        if policy == schedule_pb2.OVERLAP_POLICY_CANCEL_OTHER and self.progress.waiting_time is not None:
            self._skip(self.progress.waiting_time, "a later firing took its place")
            self.progress = replace(self.progress, waiting_time=None)
        if self._was_started(fire_time):
            return
        if self._was_passed_over(fire_time):
            self._skip(fire_time, "a later firing was started")
        elif policy == schedule_pb2.OVERLAP_POLICY_CANCEL_OTHER:
            self.progress = replace(self.progress, waiting_time=fire_time)
        elif policy == schedule_pb2.OVERLAP_POLICY_ALLOW or not self._unfinished:
            await self._start(fire_time)
        elif policy == schedule_pb2.OVERLAP_POLICY_BUFFER_ONE and self.progress.waiting_time is None:
            self.progress = replace(self.progress, waiting_time=fire_time)
            self._tell(fire_time, "waiting", "a run of the schedule has not ended")
        else:
            self._skip(fire_time, "a run of the schedule has not ended")

    async def _start_waiting(self) -> None:
        waiting_time = self.progress.waiting_time
        if waiting_time is None:
            return
        done = self._was_started(waiting_time)
        if not done and self._was_passed_over(waiting_time):
            self._skip(waiting_time, "a later firing was started")
            done = True
        elif not done and not self._unfinished:
            await self._start(waiting_time)
            done = True
        if done:
            self.progress = replace(self.progress, waiting_time=None)

    async def _replace_unfinished(self) -> None:
        """Cancels what is under way for the firing that waits, and starts that where all have ended by then."""
        if self._rules.overlap_policy != schedule_pb2.OVERLAP_POLICY_CANCEL_OTHER:
            return
        if self.progress.waiting_time is not None and self._unfinished:
            await self._store.ask_cancel(self._key, self._unfinished)
            keys = [RunKey(self._key.namespace, run_id) for run_id in self._unfinished]
            await self._firing.cancel_runs([(key, self._key.schedule) for key in keys])
            self._unfinished = await self._store.list_unfinished(self._key, UNFINISHED_LIMIT)
        await self._start_waiting()

    def _was_started(self, fire_time: int) -> bool:
        """Tells whether who claimed the schedule before started this firing; it is then counted."""
        run_id = self._started.get(fire_time)
        if run_id is None:
            return False
        self._count(fire_time, run_id, existing=True)
        return True

    def _was_passed_over(self, fire_time: int) -> bool:
        """Tells whether who claimed the schedule before started a later firing in the place of this one. Started now,
        it would be one more than the schedule may fire."""
        if self._rules.overlap_policy == schedule_pb2.OVERLAP_POLICY_ALLOW:
            return False
        return any(fire_time < started for started in self._started)

    async def _start(self, fire_time: int) -> None:
        request_id = firing_request_id(self._key, fire_time)
        traceparent = firing_traceparent(self._firing._new_trace(), request_id)
        caller = Caller(self._key.namespace, self._principal, CHANNEL, traceparent)
        try:
            run_id, existing = await self._runs.submit(caller, self._key, self._schedule.run, fire_time, request_id)
        except DatabaseUnavailable:
            raise  # It may have been stored: the claim stays, and the next look finds out.
        except (NamespaceQueueFull, TooManyRuns, ShuttingDown) as error:
            self._tell(fire_time, "delayed", error.reason)
            raise _Stop from None
        except BatonError as error:
            refusal = Refusal(fire_time, error.reason, error.message.replace("\0", "\ufffd"))
            self.progress = replace(self.progress, refused_count=self.progress.refused_count + 1, refusal=refusal)
            self._tell(fire_time, "refused", error.reason)
            return
        await self._note(fire_time, run_id, existing=existing)

    async def _note(self, fire_time: int, run_id: UUID, *, existing: bool) -> None:
        await self._store.add_run(self._key, run_id, fire_time, triggered=False)
        if existing:
            self._unfinished = await self._store.list_unfinished(self._key, UNFINISHED_LIMIT)
        else:
            self._unfinished.append(run_id)
        self._count(fire_time, run_id, existing=existing)

    def _count(self, fire_time: int, run_id: UUID, *, existing: bool) -> None:
        self.progress = replace(self.progress, fired_count=self.progress.fired_count + 1)
        self._tell(fire_time, "existing" if existing else "started", str(run_id))

    def _skip(self, fire_time: int, why: str) -> None:
        self.progress = replace(self.progress, skipped_count=self.progress.skipped_count + 1)
        self._tell(fire_time, "skipped", why)

    def _tell(self, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        self._observer.firing_ended(*self._key, fire_time, outcome, why)
