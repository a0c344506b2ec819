"""Structured logs, on stderr. Modules log by the standard `logging` with `extra={"run_id": ..., "step_id": ...}`; each
extra becomes a field, and the ids and numbers of a line stand in its fields, not in its text."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from orchestrator.telemetry.settings import TelemetrySettingInvalid

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FORMATS = ("json", "console")
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the others are fields that the caller gave."""

PROCESS_VARIABLE = "BATON_PROCESS_NUMBER"
"""Set by `baton serve --processes` for each of its processes: from 0."""

_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`as_json`: one JSON object a line, else lines for people. `level` is one of `logging`'s numbers. `process_number`
    is in each line, as the field of that name, where it is not empty."""

    as_json: bool
    level: int
    process_number: str = ""


def log_settings(environment: Mapping[str, str], *, terminal: bool) -> LogSettings:
    """Reads BATON_LOG_FORMAT (json or console; console on a terminal, else json) and BATON_LOG_LEVEL (info).

    Errors: TelemetrySettingInvalid.
    """
    form = environment.get("BATON_LOG_FORMAT", "").strip().lower() or ("console" if terminal else "json")
    if form not in _FORMATS:
        raise TelemetrySettingInvalid("BATON_LOG_FORMAT", f"is {form!r}; use json or console")
    level = environment.get("BATON_LOG_LEVEL", "").strip().lower() or "info"
    if level not in _LEVELS:
        raise TelemetrySettingInvalid("BATON_LOG_LEVEL", f"is {level!r}; use one of {', '.join(_LEVELS)}")
    return LogSettings(form == "json", _LEVELS[level], environment.get(PROCESS_VARIABLE, ""))


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Routes everything that is logged to `stream` (stderr). Replaces what was set."""
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if settings.as_json else ConsoleFormatter(colours=stream.isatty()))
    if settings.process_number:
        handler.addFilter(_Numbered(settings.process_number))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)


class _Numbered(logging.Filter):
    """Adds to each line which process of a supervisor wrote it."""

    def __init__(self, process_number: str) -> None:
        super().__init__()
        self._process_number = process_number

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        record.process_number = self._process_number
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line. A caller's field of the name of one of Baton's own gives way to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Renders a record; a field that JSON cannot hold, such as a UUID, is written as its text."""
        line = _fields(record) | {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "time": _time(record),
        }
        exception = _exception(record)
        if exception:
            line["exception"] = exception
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Lines for people: time, level, what happened, fields, logger; an exception below."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Renders a record."""
        words = [
            self._styled(_DIM, _time(record)),
            self._styled(_COLOURS.get(record.levelname, ""), f"[{record.levelname.lower():<8}]"),
            self._styled(_BOLD, record.getMessage()),
            *(f"{name}={_shown(value)}" for name, value in _fields(record).items()),
            self._styled(_DIM, f"[{record.name}]"),
        ]
        exception = _exception(record)
        return " ".join(words) + (f"\n{exception}" if exception else "")

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._colours and style else text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}


def _exception(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:  # asyncio gives False for none.
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shown(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
