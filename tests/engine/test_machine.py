"""Ids of runs: in the order of the database's time, on whichever machine they are made."""

from __future__ import annotations

import itertools
import time
from uuid import UUID

import pytest
import uuid_utils.compat

from orchestrator.engine import machine
from orchestrator.engine.machine import WALL_SLACK_MS, new_run_id

HOUR_US = 3_600_000_000


def milliseconds(made: UUID) -> int:
    return made.int >> 80


def test_an_id_is_the_libraries_where_the_clock_of_the_machine_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    made = uuid_utils.compat.uuid7()
    monkeypatch.setattr(machine, "new_id", lambda: made)
    for off_ms in (-WALL_SLACK_MS, 0, WALL_SLACK_MS):
        assert new_run_id((milliseconds(made) + off_ms) * 1_000) == made


@pytest.mark.parametrize("off_us", [-10_000 * HOUR_US, -HOUR_US, HOUR_US, 10_000 * HOUR_US])
def test_an_id_has_the_time_of_the_database_where_that_of_the_machine_is_wrong(off_us: int) -> None:
    now = time.time_ns() // 1_000 + off_us
    made = [new_run_id(now + number * 1_000) for number in range(100)]
    assert [milliseconds(each) for each in made] == [now // 1_000 + number for number in range(100)]
    assert all(each.version == 7 and each.variant == uuid_utils.compat.uuid7().variant for each in made)
    assert all(one < other for one, other in itertools.pairwise(made))
    assert len({new_run_id(now) for _ in range(1_000)}) == 1_000
