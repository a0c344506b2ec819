"""`baton serve` that can be told to die at a named point: `replica.py serve ...`, with the arguments of `baton`."""

from __future__ import annotations

from baton.cli import main

from orchestrator import app
from tests.chaos.crash_points import CrashingGateway, CrashingJournalStore, CrashingReplicaStore


def _serve() -> None:
    # The composition root builds a server from these names; everything else of it stays as it is.
    app.PostgresJournalStore = CrashingJournalStore  # type: ignore[misc]
    app.PostgresReplicaStore = CrashingReplicaStore  # type: ignore[misc]
    app.GrpcWorkerGateway = CrashingGateway  # type: ignore[misc]
    main()


if __name__ == "__main__":
    _serve()
