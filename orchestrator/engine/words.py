"""Words to other replicas that there are runs to take: each is given until it is answered, a few times.

One word at a time is under way to a replica. What is to be told meanwhile is told after it, once: the word says nothing
but that there are runs. Who gives words does not wait for them, so that a replica that does not answer holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from uuid import UUID

from orchestrator.engine.replica_ports import ReplicaHints, ReplicaUnreachable

TRIES = 4
"""How often a replica is told that does not answer. Where none gets through, it looks within the adoption interval."""

PAUSE_SECONDS = 0.1
"""Time before a replica is told again that did not answer; doubled each time."""


class Words:
    """Gives words to `others`, replica processes and their addresses. Belongs to one event loop."""

    def __init__(self, hints: ReplicaHints) -> None:
        self._hints = hints
        self.others: Mapping[UUID, str] = {}
        self._owed: set[UUID] = set()
        self._telling: dict[UUID, asyncio.Task[bool]] = {}

    def give(self, replicas: Iterable[UUID]) -> None:
        """Lets replicas be told; those that are no others are left out."""
        for replica_id in replicas:
            if replica_id in self.others:
                self._owed.add(replica_id)
                if replica_id not in self._telling:
                    task = asyncio.create_task(self._tell(replica_id))
                    self._telling[replica_id] = task

    def give_all(self) -> None:
        """Lets every other replica be told."""
        self.give(tuple(self.others))

    async def settle(self, timeout_seconds: float | None = None) -> bool:
        """Waits until nobody is to be told any more, or until the time is over; tells whether any replica that was
        still to be told has answered."""
        if not self._telling:
            return False
        done, _ = await asyncio.wait(tuple(self._telling.values()), timeout=timeout_seconds)
        return any(not task.cancelled() and task.result() for task in done)

    async def close(self) -> None:
        """Tells nobody any more."""
        tasks = tuple(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, replica_id: UUID) -> bool:
        """Tells a replica for as long as it is owed a word; returns whether it has answered the last."""
        told, tries = False, 0
        try:
            while replica_id in self._owed and tries < TRIES:
                self._owed.discard(replica_id)
                told = await self._reach(replica_id)
                tries = 0 if told else tries + 1
                if not told and tries < TRIES:
                    self._owed.add(replica_id)
                    await asyncio.sleep(PAUSE_SECONDS * 2 ** (tries - 1))
            return told
        finally:
            self._owed.discard(replica_id)
            del self._telling[replica_id]

    async def _reach(self, replica_id: UUID) -> bool:
        address = self.others.get(replica_id)
        if address is None:
            return False
        try:
            await self._hints.runs_left(replica_id, address)
        except ReplicaUnreachable:
            return False
        return True
