"""Runs the conformance suites on the stores of the simulation: what they do, Postgres does."""

from __future__ import annotations

import time

import pytest

from tests.conformance.journal_store import JournalStoreConformance, Stores
from tests.conformance.replica_store import ReplicaStoreConformance
from tests.conformance.run_store import RunStoreConformance
from tests.simulation.database import Database
from tests.simulation.stores import Direct, SimulatedJournal, SimulatedReplicas, SimulatedRuns


@pytest.fixture
def stores() -> Stores:
    """The stores over a new database, with nothing in between."""
    database, link = Database(lambda: time.time_ns() // 1_000), Direct()
    return Stores(SimulatedJournal(database, link), SimulatedReplicas(database, link), SimulatedRuns(database, link))


class TestSimulatedJournal(JournalStoreConformance):
    """The journal."""


class TestSimulatedReplicas(ReplicaStoreConformance):
    """Leases and ownership."""


class TestSimulatedRuns(RunStoreConformance):
    """Runs."""
