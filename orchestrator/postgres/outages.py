"""Whether the database serves this process, and by which history: the log is told once of each cause, and once that it
serves again.

One object for all pools of a process, on whatever thread: what fails, fails for all of them at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from orchestrator.postgres.causes import Cause, cause_of, detail_of
from orchestrator.postgres.history import History

QUIET_SECONDS = 5.0
"""An outage is over when something was answered and nothing has failed for so long."""

TELL_AGAIN_SECONDS = 60.0
"""A cause is logged no more often than this, also where the database comes and goes."""

RENEW_SECONDS = 1.0
"""Connections are made anew no more often than this."""

_log = logging.getLogger(__name__)


class Outages:
    """Follows failures and answers of the database. `ongoing` is to be looked at before `answered` is called."""

    def __init__(self, now_seconds: Callable[[], float] = time.monotonic) -> None:
        self._now_seconds = now_seconds
        self._lock = threading.Lock()
        self.ongoing = False
        self.silent = False
        """Whether the database was found silent, or out of reach, and has answered nothing since."""
        self.generation = 0
        """Rises when connections lead to a database that takes no writes, or has another history: older ones are to be
        made anew."""
        self.history = History()
        self._renewed_seconds = float("-inf")
        self._begun_seconds = self._failed_seconds = 0.0
        self._failures = 0
        self._told: dict[Cause, float] = {}
        self._tells = False

    def led_to(self, history: str) -> None:
        """Takes note of the history that a new connection leads to."""
        if self.history.led_to(history):
            with self._lock:
                self.generation += 1

    def failed(self, error: BaseException, cause: Cause | None = None) -> Cause:
        """Takes note of a failure, and returns its cause."""
        cause = cause or cause_of(error)
        now = self._now_seconds()
        with self._lock:
            if not self.ongoing:
                self.ongoing, self._begun_seconds, self._failures, self._tells = True, now, 0, False
            self._failed_seconds = now
            self._failures += 1
            self.silent = self.silent or cause in (Cause.SILENT, Cause.UNREACHABLE)
            tell = now - self._told.get(cause, float("-inf")) >= TELL_AGAIN_SECONDS
            if tell:
                self._told[cause], self._tells = now, True
            if cause is Cause.READ_ONLY and now - self._renewed_seconds >= RENEW_SECONDS:
                self._renewed_seconds = now
                self.generation += 1
        if tell:
            fields = {
                "cause": cause.name,
                "sqlstate": getattr(error, "sqlstate", None) or "",
                "detail": detail_of(error),
                "cure": cause.value.cure,
            }
            level = logging.WARNING if cause in (Cause.LOCKED, Cause.RESTARTING) else logging.ERROR
            _log.log(level, cause.value.told, extra={name: value for name, value in fields.items() if value})
        return cause

    def answered(self) -> None:
        """Takes note that a statement was carried out."""
        now = self._now_seconds()
        with self._lock:
            self.silent = False
            if not self.ongoing or now - self._failed_seconds < QUIET_SECONDS:
                return
            self.ongoing = False
            tell, seconds, failures = self._tells, self._failed_seconds - self._begun_seconds, self._failures
        if tell:
            _log.warning("the database serves again", extra={"seconds": round(seconds, 1), "failures": failures})
