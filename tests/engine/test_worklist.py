"""What is still to be done in a tick: in which order, what comes of it, and whom a fault harms."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.engine.worklist import Kind, Worklist


def runs(count: int) -> list[Any]:
    return [SimpleNamespace(key=SimpleNamespace(run_id=f"run-{number}")) for number in range(count)]


async def test_each_kind_is_done_for_all_runs_before_the_next() -> None:
    done: list[tuple[str, str]] = []
    worklist = Worklist(lambda _: None)
    # Made in another order than that in which they are done.
    encode = worklist.of(Kind.ENCODE, lambda live: done.append(("encode", live.key.run_id)))
    record = worklist.of(Kind.RECORD, lambda live, what: (done.append((what, live.key.run_id)), encode.add((live,))))
    first, second = runs(2)
    encode.add((first,))
    record.add((first, "record"))
    record.add((second, "record"))
    worklist.work_off()
    assert done == [
        ("record", "run-0"),
        ("record", "run-1"),
        ("encode", "run-0"),
        ("encode", "run-0"),
        ("encode", "run-1"),
    ]
    worklist.work_off()
    assert len(done) == 5


async def test_nothing_is_left_though_a_later_kind_makes_work_of_an_earlier_one() -> None:
    done: list[int] = []
    worklist = Worklist(lambda _: None)
    queue = worklist.of(Kind.QUEUE, lambda live, left: start.add((live, left)))

    def go_on(live: Any, left: int) -> None:
        done.append(left)
        if left:
            queue.add((live, left - 1))

    start = worklist.of(Kind.START, go_on)
    queue.add((runs(1)[0], 3))
    worklist.work_off()
    assert done == [3, 2, 1, 0]


async def test_what_nobody_works_off_is_done_in_the_next_turn_of_the_loop() -> None:
    done: list[int] = []
    worklist = Worklist(lambda _: None)
    record = worklist.of(Kind.RECORD, lambda _, number: done.append(number))
    for turn in range(3):
        record.add((runs(1)[0], turn))
        record.add((runs(1)[0], turn))
        assert len(done) == 2 * turn
        await asyncio.sleep(0)
        assert done[2 * turn :] == [turn, turn]


async def test_a_fault_in_one_run_is_told_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    faulty: list[str] = []
    done: list[str] = []
    worklist = Worklist(lambda live: faulty.append(live.key.run_id))

    def do(live: Any) -> None:
        if live.key.run_id == "run-1":
            raise ValueError("a fault of ours")
        done.append(live.key.run_id)

    record = worklist.of(Kind.RECORD, do)
    with caplog.at_level(logging.ERROR):
        for live in runs(3):
            record.add((live,))
        worklist.work_off()
    assert (faulty, done) == (["run-1"], ["run-0", "run-2"])
    assert [record.message for record in caplog.records] == ["run run-1: it could not be driven on"]


async def test_nothing_else_is_lost_where_a_run_cannot_even_be_given_up() -> None:
    done: list[str] = []

    def fail(_: Any) -> None:
        raise ValueError("a fault of ours")

    def do(live: Any) -> None:
        if live.key.run_id == "run-0":
            fail(live)
        done.append(live.key.run_id)

    worklist = Worklist(fail)
    record = worklist.of(Kind.RECORD, do)
    for live in runs(3):
        record.add((live,))
    worklist.work_off()
    assert done == ["run-1", "run-2"]
