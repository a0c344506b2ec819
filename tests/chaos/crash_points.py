"""Named points at which a replica dies by SIGKILL, or its event loop stands still, when its campaign says so.

They lie at the engine's ports, around the real stores and the real gateway: the product has no line of this. A point is
armed by a file of its name in the folder that CHAOS_CRASHES names; the replica that comes to it first takes the file
away and dies. Who finds a file of STALLS there before a commit lets its loop stand still.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from orchestrator.engine.ports import ParkedRun, Renewal, RunEntry, RunRow, WriteResult
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Sending
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.replicas import PostgresReplicaStore

CRASHES_VARIABLE = "CHAOS_CRASHES"

POINTS = (
    "before-commit",
    "during-commit",
    "after-commit-before-answer",
    "after-entry-before-dispatch",
    "after-dispatch-before-outcome",
    "after-outcome-before-commit",
    "after-adoption",
    "after-renewal",
    "after-parking",
    "after-waking",
)

STALLS = {"stall-within": 1.5, "stall-beyond": 4.0}
"""How long the event loop stands still, in seconds: longer than a lease of 1 s, which is kept; and longer than
BATON_STALL_SECONDS, so that it is given up."""

STALL_LIMIT_SECONDS = "2"
"""BATON_STALL_SECONDS of all campaigns."""

_SOON_SECONDS = 0.003
"""Within this a statement or a call that began is under way."""


def _take(point: str) -> bool:
    """Tells whether to die here, to the first that asks."""
    try:
        Path(os.environ[CRASHES_VARIABLE], point).unlink()
    except FileNotFoundError:
        return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pass(point: str) -> None:
    if _take(point):
        _die()


def _stand_still() -> None:
    """Blocks the event loop where that was asked for."""
    for name, seconds in STALLS.items():
        if _take(name):
            time.sleep(seconds)


class CrashingJournalStore(PostgresJournalStore):
    """The journal, with a death before, in and after a commit."""

    async def write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """See JournalStore.write."""
        _stand_still()
        _pass("before-commit")
        if _take("during-commit"):
            asyncio.get_running_loop().call_later(_SOON_SECONDS / 3, _die)
        results = await super().write(replica_id, entries)
        _pass("after-commit-before-answer")
        return results


class CrashingReplicaStore(PostgresReplicaStore):
    """Ownership, with a death after each step that others see."""

    async def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        """See ReplicaStore.renew."""
        renewal = await super().renew(replica_id, lease_seconds, active_runs)
        _pass("after-renewal")
        return renewal

    async def adopt(self, replica_id: UUID, limit: int, *, mark_before: int | None = None) -> list[RunRow]:
        """See ReplicaStore.adopt."""
        rows = await super().adopt(replica_id, limit, mark_before=mark_before)
        if rows:
            _pass("after-adoption")
        return rows

    async def wake(self, replica_id: UUID, limit: int, lead_seconds: float) -> list[RunRow]:
        """See ReplicaStore.wake."""
        rows = await super().wake(replica_id, limit, lead_seconds)
        if rows:
            _pass("after-waking")
        return rows

    async def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """See ReplicaStore.park."""
        await super().park(replica_id, runs)
        _pass("after-parking")


class _Listener:
    """Hears of a call, and dies before anything comes of its outcome."""

    def __init__(self, listener: CallListener) -> None:
        self._listener = listener

    def answered(self, answer: Answer) -> None:
        _pass("after-outcome-before-commit")
        self._listener.answered(answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


class CrashingGateway(GrpcWorkerGateway):
    """The way to workers, with a death on either side of a call."""

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See WorkerGateway.send."""
        _pass("after-entry-before-dispatch")
        sending = super().send(call, _Listener(listener))
        if _take("after-dispatch-before-outcome"):
            asyncio.get_running_loop().call_later(_SOON_SECONDS, _die)
        return sending
