"""The pace of the journal: when a batch waits, and for how long, on clocks that are moved by hand."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from orchestrator.engine.machine import BusyClock, Machine
from orchestrator.engine.pace import BUSY_FROM, BUSY_FULLY, FEW_RUNS, LONGEST_US, LOOK_US, Pace

LOOKS = 20


@dataclass
class Clocks:
    now_us: int = 1_000_000
    busy_us: float = 0.0

    def pass_time(self, us: int, share: float) -> None:
        self.now_us += us
        self.busy_us += us * share


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def pace(clocks: Clocks) -> Pace:
    return Pace(Machine(lambda: clocks.now_us * 1_000, busy_ns=lambda: round(clocks.busy_us * 1_000)))


def work(pace: Pace, clocks: Clocks, share: float, runs: int = 50) -> None:
    """Writes batches of so many runs, for long enough to be known."""
    for _ in range(LOOKS):
        clocks.pass_time(LOOK_US, share)
        pace.begin(runs)


def test_the_first_batch_begins_at_once(pace: Pace) -> None:
    assert pace.wait_seconds() == 0.0


@pytest.mark.parametrize("share", [0.0, BUSY_FROM])
def test_nothing_waits_while_the_loop_has_time_to_spare(pace: Pace, clocks: Clocks, share: float) -> None:
    work(pace, clocks, share)
    assert pace.wait_seconds() == 0.0


def test_the_busier_the_loop_the_longer_a_batch_waits(pace: Pace, clocks: Clocks) -> None:
    waits = []
    for share in (BUSY_FROM, (BUSY_FROM + BUSY_FULLY) / 2, BUSY_FULLY, 1.0):
        work(pace, clocks, share)
        waits.append(pace.wait_seconds())
    assert waits == pytest.approx([0.0, LONGEST_US / 2e6, LONGEST_US / 1e6, LONGEST_US / 1e6], abs=1e-5)


def test_the_wait_counts_from_the_beginning_of_the_batch_before(pace: Pace, clocks: Clocks) -> None:
    work(pace, clocks, 1.0)
    clocks.pass_time(LONGEST_US // 2, 1.0)
    assert pace.wait_seconds() == pytest.approx(LONGEST_US / 2e6, abs=1e-5)
    clocks.pass_time(LONGEST_US, 1.0)
    assert pace.wait_seconds() == 0.0


def test_a_batch_of_few_runs_is_followed_at_once(pace: Pace, clocks: Clocks) -> None:
    work(pace, clocks, 1.0, runs=FEW_RUNS - 1)
    assert pace.wait_seconds() == 0.0
    pace.begin(FEW_RUNS)
    assert pace.wait_seconds() > 0.0


def test_a_loop_that_has_time_again_waits_no_more(pace: Pace, clocks: Clocks) -> None:
    work(pace, clocks, 1.0)
    work(pace, clocks, 0.1)
    assert pace.wait_seconds() == 0.0


def test_a_single_long_turn_makes_nobody_wait_for_long(pace: Pace, clocks: Clocks) -> None:
    clocks.pass_time(LOOK_US, 1.0)
    pace.begin(50)
    assert 0.0 < pace.wait_seconds() <= LONGEST_US / 2e6


def test_the_work_of_its_thread_counts_at_least() -> None:
    busy_ns = BusyClock()
    before_ns, cpu_before_ns = busy_ns(), time.thread_time_ns()
    sum(range(1_000_000))
    cpu_ns = time.thread_time_ns() - cpu_before_ns
    assert busy_ns() - before_ns >= cpu_ns > 0


def test_where_the_kernel_tells_nothing_of_waiting_the_time_at_work_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    busy_ns, before_ns = BusyClock(), time.thread_time_ns()
    assert before_ns <= busy_ns() <= time.thread_time_ns()
