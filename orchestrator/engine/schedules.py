"""Schedules: keeps them, pauses and resumes them, and starts runs of them by a caller's wish. What fires them by
themselves is in firing.py."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from uuid import UUID

from baton.v1 import event_pb2, schedule_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    BatonError,
    DatabaseUnavailable,
    FieldFault,
    InvalidRequest,
    InvalidSchedule,
    ScheduleNotFound,
    TooManySchedules,
)
from orchestrator.domain.tracing import trace_id_of
from orchestrator.engine.api import Backfilled
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.messages import from_timestamp, set_timestamp
from orchestrator.engine.ports import Clock
from orchestrator.engine.schedule_ports import (
    Pause,
    Progress,
    ScheduleKey,
    ScheduleRow,
    ScheduleRunRow,
    ScheduleStore,
)
from orchestrator.engine.schedule_rules import ScheduleRules, content_of, same_times, schedule_of
from orchestrator.engine.scheduled_runs import (
    CHANNEL,
    ScheduledRuns,
    firing_request_id,
    trigger_request_id,
    written,
)
from orchestrator.engine.timetable import TimesInvalid, Timetable

NEXT_COUNT = 5
NEXT_COUNT_LIMIT = 100
"""Next times that a view tells, where the caller does not say, and at most."""

SHOWN_RUNS = 100
BACKFILL_LIMIT = 1_000
BACKFILL_BATCH = 100
"""Firings of one backfill, and how many of them are in memory at a time as submissions."""

CHANGE_TRIES = 10
"""How often a change is tried again that was overtaken by another."""


class Schedules:
    """Schedules of the caller's namespace."""

    def __init__(
        self, store: ScheduleStore, runs: ScheduledRuns, clock: Clock, limits: EngineLimits, changed: Callable[[], None]
    ) -> None:
        """`changed` is called when a schedule may be due sooner than it was."""
        self._store, self._runs, self._clock, self._limits, self._changed = store, runs, clock, limits, changed

    async def apply(
        self, caller: Caller, schedule: schedule_pb2.Schedule, validate_only: bool
    ) -> tuple[schedule_pb2.StoredSchedule, bool]:
        """See ApplySchedule."""
        key = ScheduleKey(caller.namespace, schedule.name)
        rules = _rules(key, schedule)
        await self._check_run(caller, key, schedule)
        for _ in range(CHANGE_TRIES):
            now = self._clock.now()
            stored = await self._store.get(key)
            row = _applied(caller, key, schedule, rules, stored, now)
            existing = stored is not None and (stored.definition, stored.input) == (row.definition, row.input)
            if validate_only or (existing and stored is not None and stored.principal == row.principal):
                return await self._shown(row, NEXT_COUNT), existing
            if stored is None:
                await self._require_room(caller.namespace)
            else:
                await self._note_started(stored, row, now)
            if await (self._store.insert(row) if stored is None else self._store.update(row)):
                self._changed()
                return await self._shown(row, NEXT_COUNT), existing
        raise _overtaken()

    async def get(self, caller: Caller, schedule: str, next_count: int) -> schedule_pb2.StoredSchedule:
        """See GetSchedule."""
        row = await self._require(ScheduleKey(caller.namespace, schedule))
        return await self._shown(row, min(next_count or NEXT_COUNT, NEXT_COUNT_LIMIT))

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[schedule_pb2.StoredSchedule]:
        """See ListSchedules."""
        return [_render(row, 1, ()) for row in await self._store.list_schedules(caller.namespace, after, limit)]

    async def delete(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        """See DeleteSchedule."""
        row = await self._store.delete(ScheduleKey(caller.namespace, schedule))
        if row is None:
            raise _not_found(schedule)
        return _render(row, NEXT_COUNT, ())

    async def pause(self, caller: Caller, schedule: str, note: str) -> schedule_pb2.StoredSchedule:
        """See PauseSchedule."""

        def paused(row: ScheduleRow, now: int) -> ScheduleRow:
            progress = replace(row.progress, waiting_time=None)
            since = row.pause.time if row.pause is not None else now
            return replace(row, progress=progress, due_time=None, pause=Pause(since, note, caller.principal))

        return await self._change(ScheduleKey(caller.namespace, schedule), paused)

    async def resume(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        """See ResumeSchedule."""

        def resumed(row: ScheduleRow, now: int) -> ScheduleRow:
            if row.pause is None:
                return row
            rules = _rules(row.key, schedule_of(row))
            progress = replace(row.progress, next_time=rules.timetable.after(now))
            return replace(row, progress=progress, due_time=rules.due_time(progress, now), pause=None)

        return await self._change(ScheduleKey(caller.namespace, schedule), resumed)

    async def trigger(self, caller: Caller, schedule: str, request_id: str) -> tuple[UUID, bool]:
        """See TriggerSchedule."""
        row = await self._require(ScheduleKey(caller.namespace, schedule))
        definition = schedule_of(row)
        fire_time, own_id = self._clock.now(), trigger_request_id(row.key, request_id or str(uuid.uuid4()))
        found = await self._runs.find(row.key, own_id) if request_id else None
        existing = found is not None
        if found is None:
            found, existing = await self._runs.submit(self._own(caller), row.key, definition.run, fire_time, own_id)
        if not existing or request_id:
            await self._store.add_run(row.key, found, fire_time, triggered=True)
        return found, existing

    async def backfill(
        self, caller: Caller, schedule: str, start_time: int, end_time: int, validate_only: bool
    ) -> Sequence[Backfilled]:
        """See BackfillSchedule."""
        row = await self._require(ScheduleKey(caller.namespace, schedule))
        definition = schedule_of(row)
        now = self._clock.now()
        if end_time > now:
            raise _invalid_request(
                "end_time", f"lies in the future; give at most {written(now)}: what follows will fire"
            )
        # Its own times: the range says where they begin and end.
        timetable = Timetable(definition.cron, definition.time_zone, None, end_time)
        times = list(islice(timetable.times_after(start_time - 1), BACKFILL_LIMIT + 1))
        if len(times) > BACKFILL_LIMIT:
            divide = f"end it at {written(times[-1])} and go on from there"
            text = f"the range holds more than {BACKFILL_LIMIT} firings; {divide}"
            raise _invalid_request("end_time", text)
        if validate_only:
            return [Backfilled(time) for time in times]
        submissions = [(time, firing_request_id(row.key, time)) for time in times]
        answers: list[tuple[UUID, bool] | BatonError] = []
        for first in range(0, len(submissions), BACKFILL_BATCH):
            batch = submissions[first : first + BACKFILL_BATCH]
            answers += await self._runs.submit_many(self._own(caller), row.key, definition.run, batch)
        return [
            Backfilled(time, refused=answer) if isinstance(answer, BatonError) else Backfilled(time, *answer)
            for time, answer in zip(times, answers, strict=True)
        ]

    async def _check_run(self, caller: Caller, key: ScheduleKey, schedule: schedule_pb2.Schedule) -> None:
        """Checks what would be submitted. Errors: those of SubmitRun, with paths into the schedule."""
        try:
            await self._runs.check(caller, key, schedule.run, self._clock.now())
        except InvalidSchedule:
            raise
        except BatonError as error:
            if error.faults and error.message.startswith(error.faults[0].path):
                error.message = f"schedule.run.{error.message}"
            error.faults = tuple(replace(fault, path=f"schedule.run.{fault.path}") for fault in error.faults)
            raise

    async def _require_room(self, namespace: str) -> None:
        limit = self._limits.max_schedules
        if await self._store.count(namespace, limit) >= limit:
            raise TooManySchedules(f"the namespace has {limit} schedules, as many as it may; delete some first")

    async def _require(self, key: ScheduleKey) -> ScheduleRow:
        row = await self._store.get(key)
        if row is None:
            raise _not_found(key.schedule)
        return row

    async def _change(
        self, key: ScheduleKey, change: Callable[[ScheduleRow, int], ScheduleRow]
    ) -> schedule_pb2.StoredSchedule:
        """Changes a schedule, again where another change came between."""
        for _ in range(CHANGE_TRIES):
            row, now = await self._require(key), self._clock.now()
            changed = change(row, now)
            await self._note_started(row, changed, now)
            if changed == row or await self._store.update(changed):
                self._changed()
                return await self._shown(changed, NEXT_COUNT)
        raise _overtaken()

    async def _note_started(self, row: ScheduleRow, changed: ScheduleRow, now: int) -> None:
        """Notes the runs of firings that a change lets go by: a look that was cut short may have started them and not
        noted it, and whoever looks next begins after them."""
        before, after = row.progress, changed.progress
        if (before.next_time, before.waiting_time) == (after.next_time, after.waiting_time):
            return
        for fire_time in _rules(row.key, schedule_of(row)).doubtful_times(before, now):
            run_id = await self._runs.find(row.key, firing_request_id(row.key, fire_time))
            if run_id is not None:
                await self._store.add_run(row.key, run_id, fire_time, triggered=False)

    async def _shown(self, row: ScheduleRow, next_count: int) -> schedule_pb2.StoredSchedule:
        return _render(row, next_count, await self._store.list_runs(row.key, SHOWN_RUNS))

    @staticmethod
    def _own(caller: Caller) -> Caller:
        return replace(caller, channel=CHANNEL)


def _rules(key: ScheduleKey, schedule: schedule_pb2.Schedule) -> ScheduleRules:
    """Reads the rules of a schedule. Errors: InvalidSchedule."""
    faults = []
    both = schedule.HasField("start_time") and schedule.HasField("end_time")
    if both and from_timestamp(schedule.end_time) <= from_timestamp(schedule.start_time):
        faults.append(FieldFault("end_time", "INVALID_SCHEDULE", "must be after start_time"))
    try:
        rules = ScheduleRules(key, schedule)
    except TimesInvalid as error:
        faults.insert(0, error.fault)
    if faults:
        raise _invalid_schedule(*faults)
    return rules


def _applied(
    caller: Caller,
    key: ScheduleKey,
    schedule: schedule_pb2.Schedule,
    rules: ScheduleRules,
    stored: ScheduleRow | None,
    now: int,
) -> ScheduleRow:
    """Returns the row of a schedule once it is applied. Errors: InvalidSchedule."""
    definition, run_input = content_of(schedule)
    if stored is None:
        progress = Progress(_first_time(schedule, rules, now))
        row = ScheduleRow(key, definition, run_input, caller.principal, now, now, 1, progress, None)
        return replace(row, due_time=rules.due_time(progress, now))
    progress = stored.progress
    if (stored.definition, stored.input) != (definition, run_input):
        has_ended = stored.due_time is None and stored.pause is None
        if not same_times(schedule_of(stored), schedule):
            progress = replace(progress, next_time=_first_time(schedule, rules, now), waiting_time=None)
        elif has_ended:
            progress = replace(progress, next_time=rules.timetable.after(now))
        stored = replace(stored, definition=definition, input=run_input, update_time=now)
    due_time = rules.due_time(progress, now) if stored.pause is None else None
    return replace(stored, principal=caller.principal, progress=progress, due_time=due_time)


def _first_time(schedule: schedule_pb2.Schedule, rules: ScheduleRules, now: int) -> int:
    found = rules.timetable.after(now)
    if found is not None:
        return found
    if schedule.HasField("end_time"):
        text = f"no time of {schedule.cron!r} lies between now and then; give a later one"
        raise _invalid_schedule(FieldFault("end_time", "INVALID_SCHEDULE", text))
    text = f"{schedule.cron!r} never fires; look for a day that its months do not have"
    raise _invalid_schedule(FieldFault("cron", "INVALID_SCHEDULE", text))


def _render(row: ScheduleRow, next_count: int, runs: Sequence[ScheduleRunRow]) -> schedule_pb2.StoredSchedule:
    progress = row.progress
    shown = schedule_pb2.StoredSchedule(
        principal=row.principal,
        fired_count=progress.fired_count,
        skipped_count=progress.skipped_count,
        missed_count=progress.missed_count,
        refused_count=progress.refused_count,
    )
    shown.schedule.CopyFrom(schedule_of(row))
    set_timestamp(shown.create_time, row.create_time)
    set_timestamp(shown.update_time, row.update_time)
    if row.pause is not None:
        shown.state = schedule_pb2.SCHEDULE_STATE_PAUSED
        shown.pause_note, shown.pause_principal = row.pause.note, row.pause.principal
        set_timestamp(shown.pause_time, row.pause.time)
    else:
        shown.state = schedule_pb2.SCHEDULE_STATE_ENDED if row.due_time is None else schedule_pb2.SCHEDULE_STATE_ACTIVE
    if row.due_time is not None:
        for time in _next_times(row, shown.schedule, next_count):
            set_timestamp(shown.next_times.add(), time)
    if progress.waiting_time is not None:
        set_timestamp(shown.waiting_time, progress.waiting_time)
    if progress.refusal is not None:
        shown.last_refusal.reason, shown.last_refusal.message = progress.refusal.reason, progress.refusal.message
        set_timestamp(shown.last_refusal.fire_time, progress.refusal.fire_time)
    for run in runs:
        told = shown.runs.add(run_id=str(run.run_id), triggered=run.triggered, state=run.state)
        told.trace_id = trace_id_of(event_pb2.RunEvent.FromString(run.submitted).run_submitted.traceparent)
        set_timestamp(told.fire_time, run.fire_time)
    return shown


def _next_times(row: ScheduleRow, schedule: schedule_pb2.Schedule, count: int) -> Sequence[int]:
    try:
        return ScheduleRules(row.key, schedule).next_times(row.progress, count)
    except TimesInvalid:  # This replica's data has not the time zone, which the replica that took it knew.
        return [row.progress.next_time] if row.progress.next_time is not None else []


def _invalid_schedule(*faults: FieldFault) -> InvalidSchedule:
    named = [replace(fault, path=f"schedule.{fault.path}") for fault in faults]
    more = f" (and {len(named) - 1} more)" if len(named) > 1 else ""
    return InvalidSchedule(f"{named[0].path}: {named[0].message}{more}", faults=named)


def _invalid_request(field: str, text: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {text}", faults=[FieldFault(field, "INVALID_REQUEST", text)])


def _not_found(schedule: str) -> ScheduleNotFound:
    return ScheduleNotFound(f"no schedule is named {schedule}; list them with ListSchedules")


def _overtaken() -> DatabaseUnavailable:
    return DatabaseUnavailable("the schedule is being changed by others; try again", retry_delay_seconds=0.5)
