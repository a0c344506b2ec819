"""The checks that the kill tests rest on find what they look for: each kind of damage, done by hand, is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from baton.v1 import event_pb2

from tests.acceptance.invariants import StoredRun, answer_faults, call_faults, journal_faults, submission_faults
from tests.acceptance.lab_worker import Note

SECOND_US = 1_000_000


def event(kind: str, sequence: int, step: str = "", attempt: int = 0) -> event_pb2.RunEvent:
    made = event_pb2.RunEvent(sequence=sequence, step=step, attempt=attempt)
    made.time.FromMicroseconds(sequence * SECOND_US)
    getattr(made, kind).SetInParent()
    return made


def sound() -> StoredRun:
    """A run of one step that was killed once and ended well."""
    run = StoredRun("r", 3, 2, 6, "q", False, True)
    run.events = [
        event("run_submitted", 1),
        event("attempt_started", 2, "a", 1),
        event("delivery_started", 3, "a", 1),
        event("step_succeeded", 4, "a", 1),
        event("run_succeeded", 5),
    ]
    run.events[2].delivery_started.delivery = 2
    run.epochs = [1, 1, 2, 2, 2]
    return run


def note(what: str, second: float, delivery: int) -> Note:
    return Note(what, int(second * SECOND_US), "m", "", "r", "a", 1, delivery, delivery, "r/a/1", "", "", None)


NOTES = [note("arrived", 2.1, 1), note("arrived", 3.1, 2), note("answered", 3.5, 2)]


def faults(run: StoredRun, notes: list[Note]) -> list[str]:
    runs = {run.run_id: run}
    return [
        *journal_faults(runs, [("a", "b")]),
        *submission_faults(runs, {"q": "r"}),
        *call_faults(runs, notes),
        *answer_faults(runs, notes),
    ]


def test_a_sound_run_has_no_faults() -> None:
    assert faults(sound(), NOTES) == []


def damage_gap(run: StoredRun) -> None:
    del run.events[2], run.epochs[2]


def damage_epoch(run: StoredRun) -> None:
    run.epochs[3] = 1


def damage_time(run: StoredRun) -> None:
    run.events[3].time.CopyFrom(run.events[2].time)


def damage_end(run: StoredRun) -> None:
    run.events.append(event("step_succeeded", 6, "a", 1))
    run.epochs.append(2)
    run.next_sequence = 7


def damage_order(run: StoredRun) -> None:
    run.events[3:3] = [event("attempt_started", 4, "b", 1)]
    run.epochs.append(2)
    run.next_sequence = 7
    for sequence, each in enumerate(run.events, start=1):
        each.sequence = sequence


def damage_delivery(run: StoredRun) -> None:
    run.events[2].delivery_started.delivery = 3


def damage_row(run: StoredRun) -> None:
    run.owned = True


def damage_request(run: StoredRun) -> None:
    run.request_id = "another"


@pytest.mark.parametrize(
    "damage",
    [
        damage_gap,
        damage_epoch,
        damage_time,
        damage_end,
        damage_order,
        damage_delivery,
        damage_row,
        damage_request,
    ],
)
def test_damage_to_the_journal_is_found(damage: Callable[[StoredRun], None]) -> None:
    run = sound()
    damage(run)
    assert faults(run, NOTES)


@pytest.mark.parametrize(
    "notes",
    [
        [replace(NOTES[0], time=SECOND_US), *NOTES[1:]],
        [*NOTES, replace(NOTES[1], time=9 * SECOND_US)],
        [*NOTES, note("arrived", 3.2, 3)],
        [NOTES[0], replace(NOTES[1], key="other"), NOTES[2]],
        [NOTES[0], replace(NOTES[1], run="nobody's"), NOTES[2]],
        NOTES[:2],
    ],
    ids=["before its entry", "after the end", "never journaled", "another key", "unknown run", "no answer"],
)
def test_calls_that_may_not_be_are_found(notes: list[Note]) -> None:
    assert faults(sound(), notes)
