"""The judge of schedules: each time is dealt with once, none early, and none beside another where that may not be.

Times are those at which the second of the minute is a multiple of `every_seconds`, which needs no cron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton.v1 import schedule_pb2

from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import RunEntry
from orchestrator.engine.schedule_ports import ScheduleKey
from orchestrator.engine.scheduled_runs import firing_request_id
from tests.simulation.database import Database
from tests.simulation.schedules import ScheduleTables


@dataclass(slots=True)
class Plan:
    """What the judge knows of a schedule. Times are microseconds."""

    key: ScheduleKey
    every_seconds: int
    end_time: int
    overlap_policy: schedule_pb2.OverlapPolicy.ValueType
    max_firings: int
    may_miss: bool
    """Whether its catch-up window is so short that firings may be dropped."""
    was_held: bool = False
    """Whether somebody has paused it: what went by is not made up for."""
    was_filled: bool = False
    """Whether somebody has started runs of times that went by."""
    acknowledged: bool = False

    @property
    def every_us(self) -> int:
        return self.every_seconds * 1_000_000


class Firings:
    """Judges schedules. `breach` is told of each thing that must not be."""

    def __init__(self, database: Database, tables: ScheduleTables, breach: Callable[[str, str], None]) -> None:
        self._database, self._tables, self._breach = database, tables, breach
        self._plans: dict[ScheduleKey, Plan] = {}
        self._runs: dict[ScheduleKey, dict[int, RunKey]] = {}
        """The run of each firing."""

    def add(self, plan: Plan) -> None:
        """Takes note of a schedule that somebody is about to apply."""
        self._plans[plan.key] = plan
        self._runs[plan.key] = {}

    def written(self, entry: RunEntry) -> None:
        """An entry is about to be written."""
        request_id = entry.new.request_id if entry.new is not None else ""
        if not request_id.startswith("schedule/") or "/trigger/" in request_id:
            return
        plan = self._plans[ScheduleKey(entry.key.namespace, request_id.split("/")[1])]
        fire_time = self._time_of(plan, request_id)
        if fire_time is None:
            self._breach("each firing makes one run", f"{request_id} is no time of its schedule")
            return
        if fire_time in self._runs[plan.key]:
            self._breach("each firing makes one run", f"{request_id} has two")
        if plan.overlap_policy != schedule_pb2.OVERLAP_POLICY_ALLOW and not plan.was_filled:
            for time, key in self._runs[plan.key].items():
                if self._database.runs[key].unfinished:
                    text = f"{request_id} begins beside that of {time}"
                    self._breach("runs of a schedule do not overlap", text)
        self._runs[plan.key][fire_time] = entry.key

    def _time_of(self, plan: Plan, request_id: str) -> int | None:
        """The time of a firing: one that has come."""
        now = self._database.now()
        latest = now - now % plan.every_us
        times = range(latest, latest - 600_000_000, -plan.every_us)
        return next((time for time in times if firing_request_id(plan.key, time) == request_id), None)

    def applied(self, plan: Plan) -> None:
        """Somebody is told that a schedule is kept."""
        plan.acknowledged = True
        if plan.key not in self._tables.rows:
            self._breach("nothing acknowledged is lost", f"the schedule {plan.key.schedule} is told, and not durable")

    def held(self, plan: Plan) -> None:
        """Somebody was told that a schedule is paused, and has not resumed it."""
        if self._tables.rows[plan.key].row.pause is None:
            self._breach("nothing acknowledged is lost", f"the pause of {plan.key.schedule} is told, and lost")

    def has_ended(self, plan: Plan) -> bool:
        """Whether all of a schedule is dealt with."""
        stored = self._tables.rows.get(plan.key)
        return stored is not None and stored.row.due_time is None and stored.row.pause is None

    def look_at_all(self) -> None:
        """Looks at what became of every schedule, once all is still."""
        for plan in self._plans.values():
            if plan.acknowledged:
                self._look_at(plan)

    def _look_at(self, plan: Plan) -> None:
        row, where = self._tables.rows[plan.key].row, f"schedule {plan.key.schedule}"
        progress, runs = row.progress, self._runs[plan.key]
        if progress.refused_count:
            why = progress.refusal.reason if progress.refusal is not None else ""
            self._breach("each firing makes one run", f"{where}: {progress.refused_count} were refused, for {why}")
        if progress.missed_count and not plan.may_miss:
            self._breach("each firing makes one run", f"{where}: {progress.missed_count} are missed within the window")
        if plan.max_firings and progress.fired_count > plan.max_firings:
            self._breach("each firing makes one run", f"{where}: {progress.fired_count} of {plan.max_firings}")
        if plan.was_filled:
            return
        # What was started and not counted yet is forgotten where somebody pauses it and resumes it, and counted as
        # missed where its window is over before it is looked at again.
        spared = plan.was_held or plan.may_miss
        if progress.fired_count > len(runs) or (progress.fired_count < len(runs) and not spared):
            self._breach("firings are counted", f"{where}: {progress.fired_count} counted, {len(runs)} runs")
        if plan.was_held or plan.max_firings:
            return
        first = row.create_time + plan.every_us - row.create_time % plan.every_us
        times = range(first, plan.end_time, plan.every_us)
        if sum(progress.counts) != len(times):
            self._breach("firings are counted", f"{where}: {progress.counts} of {len(times)}")
        if plan.overlap_policy == schedule_pb2.OVERLAP_POLICY_ALLOW and not plan.may_miss:
            missing = [time for time in times if time not in runs]
            if missing:
                self._breach("each firing makes one run", f"{where}: none at {missing}")
