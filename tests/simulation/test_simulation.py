"""The short part of the simulation: some hundreds of seeds, and that each gives the same wherever it runs."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import report
from tests.simulation.parts import DRAWN, PARTS
from tests.simulation.tally import Tally
from tests.simulation.world import Outcome, simulate

SEEDS, PART = 200, 40
STRESSED_SEEDS, BALANCED_SEEDS, STREAMED_SEEDS, HELD_SEEDS, POISONED_SEEDS = 30, 6, 25, 25, 6
STRESS = ("cut:park", "commits", "away", "crash", "cut:update_schedule")
"""What lets come up in few seeds what otherwise comes up in thousands."""
ROOT = Path(__file__).parents[2]


@functools.cache
def outcome_of(seed: int) -> Outcome:
    """What comes of a seed, simulated once for all tests."""
    return simulate(seed)


@pytest.mark.parametrize("first", range(1, SEEDS, PART))
def test_everything_holds_that_must_always_hold(first: int) -> None:
    for seed in range(first, first + PART):
        outcome = outcome_of(seed)
        if outcome.breach is not None:
            pytest.fail(report(outcome), pytrace=False)


@pytest.mark.parametrize(
    ("seed", "parts"),
    [
        (50897, ("growth", "mending")),
        (51239, ("growth", "limits", "mending")),
        (53279, ("growth", "limits", "mending")),
    ],
)
def test_what_an_ended_step_has_handed_over_is_tried_now_too(seed: int, parts: tuple[str, ...]) -> None:
    assert simulate(seed, (), parts).breach is None


@pytest.mark.parametrize("seed", [45, 480, 1343])
def test_firings_that_a_look_left_behind_are_found(seed: int) -> None:
    assert simulate(seed, (), ("schedules",)).breach is None


@pytest.mark.timeout(30)
def test_a_watch_of_a_run_that_was_reopened_elsewhere_goes_on_where_it_is_taken_over() -> None:
    assert simulate(1421, (), ("mending", "growth", "limits")).breach is None


def test_what_is_rare_comes_up() -> None:
    tally = Tally()
    for outcome in [outcome_of(seed) for seed in range(1, SEEDS)]:
        tally.add(outcome.tally)
    outcomes = [simulate(seed, STRESS, DRAWN) for seed in range(1, STRESSED_SEEDS)]
    outcomes += [simulate(seed, (), ("balance", "tuning")) for seed in range(1, BALANCED_SEEDS)]
    outcomes += [simulate(seed, ("workers",), ("streams",)) for seed in range(1, STREAMED_SEEDS)]
    outcomes += [simulate(seed, ("workers",), ("retries",)) for seed in range(1, HELD_SEEDS)]
    outcomes += [simulate(seed, (), ("poison",)) for seed in range(1, POISONED_SEEDS)]
    for outcome in outcomes:
        assert outcome.breach is None, report(outcome)
        tally.add(outcome.tally)
    assert tally.missing() == []


@pytest.mark.parametrize(("seed", "stress"), [(23, ("statements",)), (222, ()), (5119, ()), (5150, ())])
def test_what_once_found_a_fault_holds(seed: int, stress: tuple[str, ...]) -> None:
    assert simulate(seed, stress, ()).breach is None


def test_a_child_run_that_is_cancelled_while_its_replica_drains_is_no_error() -> None:
    assert simulate(9920, (), ()).breach is None


@pytest.mark.parametrize(
    ("seed", "part"),
    [(128, "limits"), (171, "growth"), (287, "growth"), (71, "mending"), (120, "mending"), (224, "mending")],
)
def test_what_once_found_a_fault_of_a_part_holds(seed: int, part: str) -> None:
    assert simulate(seed, (), (part,)).breach is None


def test_who_waits_for_its_steps_leaves_room_for_them_where_names_share_an_address() -> None:
    assert simulate(85, (), ("streams", "growth")).breach is None


def test_a_call_that_tries_an_endpoint_and_waits_for_its_steps_lets_them_through() -> None:
    parts = ("streams", "growth", "limits", "mending", "schedules", "balance", "tuning")
    assert simulate(3152, (), parts).breach is None


def test_who_asks_again_for_a_step_that_has_ended_waits_for_its_permits_as_the_first_does() -> None:
    assert simulate(1287, (), ("growth", "limits", "balance", "tuning")).breach is None


def test_a_call_that_waited_for_the_lease_does_not_leave_once_it_is_cancelled() -> None:
    parts = ("balance", "tuning", "limits", "growth", "mending", "schedules", "stale", "retries")
    assert simulate(3076, ("leave",), parts).breach is None


def test_a_seed_gives_the_same_trace_again() -> None:
    for seed in range(1, 9):
        assert simulate(seed).trace == outcome_of(seed).trace
    for seed, parts in ((4, PARTS), (17, ("streams",)), (2, ("poison",))):
        assert simulate(seed, (), parts).trace == simulate(seed, (), parts).trace
    for stress in (("pause", "drowsy"), ("absent",), ("outage", "tardy:renew", "cut:write"), ("deaf", "statements")):
        assert simulate(3, stress, PARTS).trace == simulate(3, stress, PARTS).trace


def test_a_seed_gives_the_same_trace_in_another_process_whatever_the_hashes_are() -> None:
    seed = 5
    told = {digest_in_a_process(seed, hash_seed) for hash_seed in ("0", "4242")}
    assert told == {outcome_of(seed).digest[:16]}


def digest_in_a_process(seed: int, hash_seed: str) -> str:
    """What the command says of a seed."""
    command = [sys.executable, "-m", "tests.simulation", "--first", str(seed), "--seeds", "1", "--trace"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"trace ([0-9a-f]{16})", done.stdout)
    assert found is not None
    return found[1]
