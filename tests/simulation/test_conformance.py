"""Runs the conformance suites on the stores of the simulation: what they do, Postgres does."""

from __future__ import annotations

import time

import pytest

from orchestrator.postgres.approvals import LOOKED_AT, PAGE_BYTES
from tests.conformance.approval_store import ApprovalStoreConformance, ApprovalStoreMaker
from tests.conformance.journal_store import JournalStoreConformance, Stores
from tests.conformance.replica_store import ReplicaStoreConformance
from tests.conformance.run_store import RunStoreConformance
from tests.conformance.schedule_store import ScheduleStoreConformance
from tests.simulation.approvals import SimulatedApprovals
from tests.simulation.database import Database
from tests.simulation.replicas import SimulatedReplicas
from tests.simulation.schedules import ScheduleTables, SimulatedSchedules
from tests.simulation.stores import Direct, SimulatedJournal, SimulatedRuns


@pytest.fixture
def database() -> Database:
    """A new database."""
    return Database(lambda: time.time_ns() // 1_000)


@pytest.fixture
def approvals(database: Database) -> ApprovalStoreMaker:
    """Makes the store of approvals over the same."""

    def make(looked_at: int = LOOKED_AT, page_bytes: int = PAGE_BYTES) -> SimulatedApprovals:
        return SimulatedApprovals(database, Direct(), looked_at, page_bytes)

    return make


@pytest.fixture
def stores(database: Database) -> Stores:
    """The stores over a new database, with nothing in between."""
    link = Direct()
    return Stores(SimulatedJournal(database, link), SimulatedReplicas(database, link), SimulatedRuns(database, link))


@pytest.fixture
def schedules(database: Database) -> SimulatedSchedules:
    """The store of schedules over the same."""
    return SimulatedSchedules(ScheduleTables(database), Direct())


class TestSimulatedJournal(JournalStoreConformance):
    """The journal."""


class TestSimulatedReplicas(ReplicaStoreConformance):
    """Leases and ownership."""


class TestSimulatedRuns(RunStoreConformance):
    """Runs."""


class TestSimulatedApprovals(ApprovalStoreConformance):
    """What waits for people."""


class TestSimulatedSchedules(ScheduleStoreConformance):
    """Schedules."""
