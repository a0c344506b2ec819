"""Timetables: at which moments a cron expression fires in a time zone. The only importer of cronsim.

What may not enter: runs, stores, the clock. Instants are microseconds since the Unix epoch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from orchestrator.domain.errors import FieldFault

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
"""Names that stand for expressions."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIELDS = ("second", "minute", "hour", "day-of-month", "month", "day-of-week")
_LONGEST_GAP_MINUTES = 25 * 60
"""More than any clock was ever put forward: Samoa left out a day."""


class TimesInvalid(Exception):
    """An expression or a time zone cannot be read; `fault` names the field below the schedule, and the cure."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.fault = FieldFault(field, "INVALID_SCHEDULE", message)


class Timetable:
    """The moments at which a schedule fires: from `start_time` on, before `end_time`, in whole seconds.

    Where the hour field does not begin with `*`, the expression is read by the clock on the wall: a local time that
    does not exist stands for the next moment that does, and one that occurs twice for its first. Else it goes on evenly
    over a change of the clocks: every quarter of an hour is every quarter of an hour.

    Errors: TimesInvalid.
    """

    def __init__(self, cron: str, time_zone: str = "", start_time: int | None = None, end_time: int | None = None):
        self._zone = _zone(time_zone or "UTC")
        self._cron = MACROS.get(cron.strip().lower(), cron)
        self._start_time, self._end_time = start_time, end_time
        fields = self._cron.split()
        try:
            CronSim(self._cron, datetime(2000, 1, 1))
        except (CronSimError, AssertionError, TypeError, ValueError) as error:
            raise TimesInvalid("cron", _cron_fault(cron, len(fields), str(error))) from None
        self._by_wall_clock = not fields[-4].startswith("*")

    def after(self, time: int) -> int | None:
        """Returns the first moment after `time`; None where there is none, in 50 years."""
        return next(self.times_after(time), None)

    def times_after(self, time: int) -> Iterator[int]:
        """Yields the moments after `time`, in order."""
        last = time if self._start_time is None else max(time, self._start_time - 1)
        try:
            moment = (_EPOCH + timedelta(seconds=last // 1_000_000)).astimezone(self._zone)
            # Without its zone cronsim goes by the wall's clock alone; with it, by time that really passes.
            begin = moment.replace(tzinfo=None) if self._by_wall_clock else moment
            for local in CronSim(self._cron, begin):
                found = self._instant(local) if self._by_wall_clock else _micros(local)
                if found <= last:
                    continue  # the second time that the wall shows it
                if self._end_time is not None and found >= self._end_time:
                    return
                last = found
                yield found
        except (OverflowError, ValueError):
            return  # beyond the year 9999

    def _instant(self, wall: datetime) -> int:
        """Returns the moment at which the wall's clock first shows `wall`, or has just gone past it."""
        for _ in range(_LONGEST_GAP_MINUTES):
            moment = wall.replace(tzinfo=self._zone, fold=0)
            found = moment.astimezone(UTC)
            if found.astimezone(self._zone).replace(tzinfo=None) == wall:
                return _micros(found)
            wall = wall.replace(second=0) + timedelta(minutes=1)
        return _micros(moment)


def _micros(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        close = difflib.get_close_matches(name, _zone_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else "write it as `Europe/Berlin`, or leave it out for UTC"
        raise TimesInvalid("time_zone", f"{name!r} is no time zone of the IANA database; {hint}") from None


def _zone_names() -> list[str]:
    return resources.files("tzdata").joinpath("zones").read_text("utf-8").split()


def _cron_fault(cron: str, count: int, said: str) -> str:
    if count not in (5, 6):
        return (
            f"{cron!r} has {count} field{'' if count == 1 else 's'}; write five (minute, hour, day of month, month, "
            f"day of week), such as `30 2 * * *`, or six with the second first; or one of {', '.join(MACROS)}"
        )
    wrong = next((name for name in _FIELDS if said.endswith(name)), "")
    which = f"its {wrong.replace('-', ' ')} cannot be read or never comes" if wrong else "it cannot be read"
    return f"{cron!r}: {which}; write numbers, `*`, ranges `1-5`, lists `1,15` and steps `*/10`"
