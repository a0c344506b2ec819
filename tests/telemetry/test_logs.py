"""Logs as they are written: one JSON object a line, with the ids as fields, whoever logged."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from orchestrator.telemetry.logs import LogSettings, configure_logs, log_settings
from orchestrator.telemetry.settings import TelemetrySettingInvalid
from tests.telemetry.stories import RUN_ID


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_asyncio_tells_without_an_exception_is_logged(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=True, level=logging.INFO), stream)
    loop = asyncio.new_event_loop()
    loop.call_exception_handler({"message": "a connection was reset"})
    loop.close()
    (line,) = written(stream)
    assert (line["level"], line["event"]) == ("error", "a connection was reset")


def test_standard_logging_becomes_fields(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=True, level=logging.INFO), stream)
    logging.getLogger("orchestrator.engine").warning(
        "step %s waits", "charge", extra={"run_id": RUN_ID, "step_id": "a"}
    )
    (line,) = written(stream)
    assert line["event"] == "step charge waits"
    assert (line["level"], line["logger"]) == ("warning", "orchestrator.engine")
    assert (UUID(line["run_id"]), line["step_id"]) == (RUN_ID, "a")
    assert line["time"].endswith("Z")


def test_no_field_of_a_caller_takes_the_place_of_baton_s_own(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=True, level=logging.INFO), stream)
    logging.getLogger("orchestrator").info("adopted", extra={"event": "forged", "level": "x", "time": 0, "epoch": 2})
    (line,) = written(stream)
    assert (line["event"], line["level"], line["epoch"]) == ("adopted", "info", 2)
    assert line["time"] != 0


def test_an_exception_stays_on_its_line(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=True, level=logging.INFO), stream)
    try:
        raise RuntimeError("no such table\nat all")
    except RuntimeError:
        logging.getLogger("x").exception("flush failed")
    (line,) = written(stream)
    assert "RuntimeError: no such table" in line["exception"]


def test_the_level_is_kept(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=True, level=logging.WARNING), stream)
    logging.getLogger("x").info("quiet")
    assert stream.getvalue() == ""


def test_the_console_form_is_for_people(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=False, level=logging.INFO), stream)
    logging.getLogger("x").info("listening", extra={"port": 7233})
    assert "listening" in stream.getvalue()
    assert "port=7233" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_no_field_can_forge_a_line_for_people(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=False, level=logging.INFO), stream)
    logging.getLogger("x").info("listening", extra={"address": "a\n2026-01-01 [error   ] forged\x1b[31m"})
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_an_exception_stands_below_the_line_for_people(stream: io.StringIO) -> None:
    configure_logs(LogSettings(as_json=False, level=logging.INFO), stream)
    try:
        raise RuntimeError("no such table")
    except RuntimeError:
        logging.getLogger("x").exception("flush failed")
    assert stream.getvalue().endswith("RuntimeError: no such table\n")


def test_settings_come_from_the_environment() -> None:
    assert log_settings({}, terminal=True) == LogSettings(as_json=False, level=logging.INFO)
    assert log_settings({}, terminal=False) == LogSettings(as_json=True, level=logging.INFO)
    both = {"BATON_LOG_FORMAT": "JSON", "BATON_LOG_LEVEL": "debug"}
    assert log_settings(both, terminal=True) == LogSettings(as_json=True, level=logging.DEBUG)
    for variable in both:
        with pytest.raises(TelemetrySettingInvalid, match=variable):
            log_settings({variable: "loud"}, terminal=True)
