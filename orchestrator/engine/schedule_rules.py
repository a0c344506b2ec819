"""What the definition of a schedule says of its times: when it fires, is looked at, is too late, and has ended.

Pure: the clock is handed in. Instants are microseconds since the Unix epoch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import replace
from itertools import chain, islice, takewhile

from baton.v1 import schedule_pb2
from google.protobuf import duration_pb2

from orchestrator.engine.messages import from_timestamp
from orchestrator.engine.schedule_ports import Progress, ScheduleKey, ScheduleRow
from orchestrator.engine.timetable import Timetable

CATCH_UP_US = 3_600 * 1_000_000
"""How late a firing may be where the schedule does not say."""

FIRINGS_A_LOOK = 50
"""Firings of one schedule that are dealt with before others have their turn."""

LET_GO_US = 60 * 1_000_000
"""How long after its time a firing may still be started by a look that was cut short: longer than a claim, and than a
statement that was not answered, may be under way."""

WAITING_LOOK_US = 1_000_000
LONGEST_WAITING_LOOK_US = 30_000_000
"""How often a schedule is looked at while a firing waits for its runs to end: after a tenth of what it has waited, in
these limits."""


class ScheduleRules:
    """The rules of one definition. Errors: TimesInvalid."""

    def __init__(self, key: ScheduleKey, schedule: schedule_pb2.Schedule) -> None:
        self._key = key
        self.timetable = Timetable(
            schedule.cron,
            schedule.time_zone,
            from_timestamp(schedule.start_time) if schedule.HasField("start_time") else None,
            from_timestamp(schedule.end_time) if schedule.HasField("end_time") else None,
        )
        self.overlap_policy = schedule.overlap_policy or schedule_pb2.OVERLAP_POLICY_SKIP
        self._jitter_us = _micros(schedule.jitter)
        has_window = schedule.HasField("catch_up_window")
        self._catch_up_us = _micros(schedule.catch_up_window) if has_window else CATCH_UP_US
        self._max_firings = schedule.max_firings

    def start_time_of(self, fire_time: int) -> int:
        """Returns when a firing starts its run: at its time and its part of the jitter."""
        if not self._jitter_us:
            return fire_time
        drawn = hashlib.blake2b(f"{self._key.namespace}\0{self._key.schedule}\0{fire_time}".encode(), digest_size=8)
        return fire_time + int.from_bytes(drawn.digest(), "big") % (self._jitter_us + 1)

    def is_missed(self, fire_time: int, now: int) -> bool:
        """Tells whether a firing comes too late to be made up for."""
        return self.start_time_of(fire_time) < now - self._catch_up_us

    def is_due(self, fire_time: int, now: int) -> bool:
        """Tells whether a firing's time has come, and is not so long ago that it is missed."""
        return self.start_time_of(fire_time) <= now and not self.is_missed(fire_time, now)

    def doubtful_times(self, progress: Progress, now: int) -> list[int]:
        """Returns the firings that a look may have started and not taken into account: the one that waited, what is
        due, also where it is missed by now, and what was let go by since, as by a pause: a run may have been on its way
        then."""
        times = [] if progress.waiting_time is None else [progress.waiting_time]
        if progress.next_time is not None:
            until = min(progress.next_time, now)
            past = takewhile(lambda time: time < until, self.timetable.times_after(now - LET_GO_US))
            times += deque(past, maxlen=FIRINGS_A_LOOK)
            due = chain((progress.next_time,), self.timetable.times_after(progress.next_time))
            times += takewhile(lambda time: self.start_time_of(time) <= now, islice(due, FIRINGS_A_LOOK))
        return times

    def is_spent(self, progress: Progress) -> bool:
        """Tells whether it has fired as often as it may, the firing that waits counted too."""
        waiting = progress.waiting_time is not None
        return 0 < self._max_firings <= progress.fired_count + waiting

    def next_times(self, progress: Progress, count: int) -> list[int]:
        """Returns the times at which it fires next, those that are due first; at most `count`."""
        if progress.next_time is None or self.is_spent(progress):
            return []
        if self._max_firings:
            waiting = progress.waiting_time is not None
            count = min(count, self._max_firings - progress.fired_count - waiting)
        following = self.timetable.times_after(progress.next_time)
        return [progress.next_time, *islice(following, count - 1)]

    def due_time(self, progress: Progress, now: int) -> int | None:
        """Returns when it is to be looked at next; None where it has ended."""
        times = []
        if progress.waiting_time is not None:
            tenth_us = (now - progress.waiting_time) // 10
            times.append(now + min(max(tenth_us, WAITING_LOOK_US), LONGEST_WAITING_LOOK_US))
        if progress.next_time is not None and not self.is_spent(progress):
            times.append(self.start_time_of(progress.next_time))
        return min(times, default=None)


def schedule_of(row: ScheduleRow) -> schedule_pb2.Schedule:
    """Reads the schedule of a row."""
    schedule = schedule_pb2.Schedule.FromString(row.definition)
    if row.input:
        schedule.run.input.MergeFromString(row.input)
    return schedule


def content_of(schedule: schedule_pb2.Schedule) -> tuple[bytes, bytes]:
    """Returns `definition` and `input` of a schedule's row."""
    without = schedule_pb2.Schedule()
    without.CopyFrom(schedule)
    without.run.ClearField("input")
    return without.SerializeToString(deterministic=True), schedule.run.input.SerializeToString(deterministic=True)


def settled(before: Progress, after: Progress, changed: ScheduleRow, now: int) -> ScheduleRow:
    """Returns a schedule that was changed while a look took its progress from `before` to `after`, with what the look
    did: its counts in any case, and how far it came unless the change was about that. Errors: TimesInvalid."""
    progress = changed.progress
    for name in ("fired_count", "skipped_count", "missed_count", "refused_count"):
        count = getattr(progress, name) + getattr(after, name) - getattr(before, name)
        progress = replace(progress, **{name: count})
    if progress.next_time == before.next_time:
        progress = replace(progress, next_time=after.next_time)
    if progress.waiting_time == before.waiting_time and changed.pause is None:
        progress = replace(progress, waiting_time=after.waiting_time)
    if after.refusal != before.refusal:
        progress = replace(progress, refusal=after.refusal)
    due_time = None
    if changed.pause is None:
        due_time = ScheduleRules(changed.key, schedule_of(changed)).due_time(progress, now)
    return replace(changed, progress=progress, due_time=due_time)


def same_times(one: schedule_pb2.Schedule, other: schedule_pb2.Schedule) -> bool:
    """Tells whether two definitions fire at the same times."""
    names = ("cron", "time_zone", "start_time", "end_time")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _micros(length: duration_pb2.Duration) -> int:
    return length.seconds * 1_000_000 + length.nanos // 1_000
