"""Random walks over the stores in Postgres and over the simulated ones: what the one says, the other says."""

from __future__ import annotations

import pytest

from tests.conformance.journal_store import Stores, now
from tests.conformance.store_walk import Walk
from tests.simulation.database import Database
from tests.simulation.replicas import SimulatedReplicas
from tests.simulation.stores import Direct, SimulatedJournal, SimulatedRuns

STEPS = 150


@pytest.mark.parametrize("seed", range(1, 7))
async def test_the_simulated_stores_answer_as_postgres_does(stores: Stores, seed: int) -> None:
    database, link = Database(now), Direct()
    simulated = Stores(
        SimulatedJournal(database, link), SimulatedReplicas(database, link), SimulatedRuns(database, link)
    )
    expected = await Walk(stores, seed).go(STEPS)
    told = await Walk(simulated, seed).go(STEPS)
    for number, (theirs, ours) in enumerate(zip(expected, told, strict=False)):
        assert ours == theirs, f"answer {number} of the walk of seed {seed}"
    assert len(told) == len(expected)
