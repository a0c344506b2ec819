"""Tables on screens of several widths."""

from __future__ import annotations

import io
import time
from datetime import datetime

import pytest
from baton.cli.output import Cell, fitting, instant, new_table, zoned
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

RUN = "01a22307-8799-75f1-ba2d-2088fbf106ec"
RUN_HEADERS = ("RUN", "WORKFLOW", "STATE", "SUBMITTED", "TIME")
WORKER_HEADERS = ("WORKER", "ADDRESS", "BY", "STATE", "SERVICES")
WORKER = ("express-carrier", "127.0.0.1:50963", "calls", "ACTIVE", "shop.v1.ExpressCarrierService")


def now() -> Timestamp:
    return Timestamp(seconds=int(time.time()))


def drawn(width: int, headers: tuple[str, ...], row: tuple[Cell, ...], spare: tuple[str, ...]) -> list[str]:
    shown, cells = fitting(headers, [row], width, spare=spare)
    table = new_table(shown)
    for each in cells:
        table.add_row(*each)
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(table)
    return [line.rstrip() for line in target.getvalue().splitlines()]


@pytest.mark.parametrize("workflow", ["pay", "fulfil-order", "a-workflow-with-a-name-of-many-letters"])
@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_a_run_takes_one_line(width: int, workflow: str) -> None:
    header, *lines = drawn(width, RUN_HEADERS, (RUN, workflow, "SUCCEEDED", now(), "10.3 ms"), ("TIME",))
    assert len(lines) == 1
    assert lines[0].startswith(f"{RUN}  {workflow[:3]}")
    assert "SUBMITTED" in header


def test_times_are_shortened_before_columns_are_left_out() -> None:
    row = (RUN, "pay", "SUCCEEDED", now(), "10.3 ms")
    header, line = drawn(80, RUN_HEADERS, row, ("TIME",))
    assert "TIME" in header
    assert line.endswith("10.3 ms")
    header, line = drawn(79, RUN_HEADERS, (*row[:4], "59 min 12 s"), ("TIME",))
    assert header.split()[-1] == "SUBMITTED"


def test_the_day_is_told_where_it_is_another() -> None:
    past = Timestamp(seconds=1_760_000_000)
    day = datetime.fromtimestamp(past.seconds).astimezone()
    (line,) = drawn(75, RUN_HEADERS, (RUN, "pay", "FAILED", past, "1 ms"), ("TIME",))[1:]
    assert f"{day:%m-%d %H:%M}" in line


def test_where_there_is_room_all_is_told() -> None:
    begun = now()
    for width in (None, 200):
        shown, (cells,) = fitting(RUN_HEADERS, [(RUN, "pay", "FAILED", begun, "1 ms")], width, spare=("TIME",))
        assert shown == list(RUN_HEADERS)
        assert cells[3].plain == instant(begun)


def test_addresses_are_whole_and_services_are_spared() -> None:
    header, line = drawn(60, WORKER_HEADERS, WORKER, ("SERVICES", "BY"))
    assert header.split() == ["WORKER", "ADDRESS", "BY", "STATE"]
    assert line.split() == list(WORKER[:4])
    header, line = drawn(85, WORKER_HEADERS, WORKER, ("SERVICES", "BY"))
    assert line.split() == list(WORKER)


def test_a_zoned_time_tells_its_distance_from_utc() -> None:
    told = zoned(Timestamp(seconds=1_760_000_000))
    assert datetime.fromisoformat(told).timestamp() == 1_760_000_000
    assert datetime.fromisoformat(told).tzinfo is not None
    assert zoned(Timestamp()) == ""
