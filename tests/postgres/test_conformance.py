"""Runs the conformance suites on the stores in Postgres."""

from __future__ import annotations

from tests.conformance.approval_store import ApprovalStoreConformance
from tests.conformance.journal_store import JournalStoreConformance
from tests.conformance.replica_store import ReplicaStoreConformance
from tests.conformance.run_store import RunStoreConformance
from tests.conformance.schedule_store import ScheduleStoreConformance


class TestPostgresJournalStore(JournalStoreConformance):
    """The journal in Postgres."""


class TestPostgresReplicaStore(ReplicaStoreConformance):
    """Leases and ownership in Postgres."""


class TestPostgresRunStore(RunStoreConformance):
    """Runs in Postgres."""


class TestPostgresApprovalStore(ApprovalStoreConformance):
    """Requests that wait for people, in Postgres."""


class TestPostgresScheduleStore(ScheduleStoreConformance):
    """Schedules in Postgres."""
