"""Structured logs, on stderr. Modules log by the standard `logging` with `extra={"run_id": ..., "step_id": ...}`; each
extra becomes a field. structlog is imported only when logs are configured."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.telemetry.settings import TelemetrySettingInvalid

if TYPE_CHECKING:
    from structlog.typing import Processor

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FORMATS = ("json", "console")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`as_json`: one JSON object a line, else lines for people. `level` is one of `logging`'s numbers."""

    as_json: bool
    level: int


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
    return LogSettings(form == "json", _LEVELS[level])


def configure_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Routes everything that is logged, by structlog or by `logging`, to `stream` (stderr). Replaces what was set."""
    import structlog

    stream = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    ending: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if settings.as_json:
        ending += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    else:
        ending.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                timestamp_key="time",
                # Not the default, which shows local variables and with them what a workflow carries.
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=ending))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)


def _to_json(fields: Any, **_: Any) -> str:
    # A field that JSON cannot hold, such as a UUID, is written as its text: a log line is never lost for it.
    return json.dumps(fields, default=str)
