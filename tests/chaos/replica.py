"""`baton serve` that can be told to die or to stand still at a named point, and has a clock that can be wrong:
`replica.py serve ...`, with the arguments of `baton`.
"""
# ruff: noqa: E402 - the clock must be another one before anything of the product takes it

from __future__ import annotations

from tests.chaos import wrong_clock

wrong_clock.install()

from unittest.mock import patch

from baton.cli import main

from orchestrator import app
from tests.chaos.crash_points import CrashingGateway, CrashingJournalStore, CrashingReplicaStore


def _serve() -> None:
    # The composition root builds a server from these names; everything else of it stays as it is.
    with patch.multiple(
        app,
        PostgresJournalStore=CrashingJournalStore,
        PostgresReplicaStore=CrashingReplicaStore,
        GrpcWorkerGateway=CrashingGateway,
    ):
        main()


if __name__ == "__main__":
    _serve()
