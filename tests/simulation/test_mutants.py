"""Each safeguard, switched off, is found out by the simulation; see mutants.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutant import SEEDS, Mutant
from tests.simulation.mutants import MUTANTS
from tests.simulation.world import simulate


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_safeguard_is_missed_where_it_is_switched_off(mutant: Mutant) -> None:
    found = mutant.hunt()
    assert found is not None, f"not found in {SEEDS} seeds: {mutant.name}"
    # A mutant that no longer fits what it replaces is found at once, and proves nothing.
    assert not any(name in found[1].how for name in ("TypeError", "AttributeError", "NameError")), found[1]
    assert simulate(found[0], mutant.stress, mutant.parts).breach is None, "it is not the mutant that was found"


def test_the_table_of_the_reliability_page_names_each() -> None:
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text("utf-8")
    table = page.partition("| safeguard | behind it |")[2].partition("\n\n")[0]
    rows = [f"| {mutant.name} | {mutant.guard} |" for mutant in MUTANTS]
    assert table.split("\n")[2:] == rows


def test_what_stands_behind_another_safeguard_is_known() -> None:
    assert all(bool(mutant.guard) == bool(mutant.guard_patches) for mutant in MUTANTS)
