"""Each safeguard, switched off, is found out by the simulation; see mutants.py."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, SEEDS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_safeguard_is_missed_where_it_is_switched_off(mutant: Mutant) -> None:
    assert mutant.hunt() is not None, f"not found in {SEEDS} seeds: {mutant.name}"


def test_what_stands_behind_another_safeguard_is_known() -> None:
    assert all(bool(mutant.guard) == bool(mutant.guard_patches) for mutant in MUTANTS)
