"""Recovery: takes over runs whose replica is gone and drives them on from their journal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from uuid import UUID

from orchestrator.contracts.scope import Scope
from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.inputs import Abandonment, Resumption
from orchestrator.domain.states import ENDED_RUN
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.observer import Observer
from orchestrator.engine.ports import JournalStore, ReplicaStore, RunRow, RunStore
from orchestrator.engine.rebuild import read_pages, refold, require_format

GIVEN_UP = Failure(
    Code.INTERNAL, "INTERNAL", "the run could not be driven on; the server's log tells why", Origin.ORCHESTRATOR
)


class Recovery:
    """Adopts orphaned runs, a bounded batch at a time, for as long as the replica lives."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        replicas: ReplicaStore,
        runs: RunStore,
        journal: JournalStore,
        limits: EngineLimits,
        observer: Observer,
    ) -> None:
        self._driver, self._catalogue, self._replicas = driver, catalogue, replicas
        self._runs, self._journal, self._limits, self._observer = runs, journal, limits, observer

    async def run(self, replica_id: UUID) -> None:
        """Adopts for ever."""
        doubtful = False
        while True:
            adopted = 0
            try:
                rows = await (self._find_lost(replica_id) if doubtful else self._adopt(replica_id))
                for row in rows:
                    live = await self._rebuild(row)
                    if live is not None:
                        self._driver.advance(live, Resumption())
                await self._fail_refused()
                adopted, doubtful = len(rows), False
            except DatabaseUnavailable:
                doubtful = True
            if adopted < self._limits.adoption_batch:
                await asyncio.sleep(self._limits.adoption_interval_seconds * random.uniform(0.7, 1.0))

    async def _adopt(self, replica_id: UUID) -> Sequence[RunRow]:
        room = self._limits.max_active_runs - len(self._driver.runs)
        limit = min(self._limits.adoption_batch, room)
        return await self._replicas.adopt(replica_id, limit) if limit > 0 else ()

    async def _find_lost(self, replica_id: UUID) -> Sequence[RunRow]:
        """Finds runs that this replica owns and does not hold: the database went away after it had given them."""
        rows = await self._replicas.list_owned(replica_id)
        held = self._driver.runs.keys() | set(self._driver.refused)
        return [row for row in rows if row.key not in held]

    async def _fail_refused(self) -> None:
        """Ends runs that were given up, from their last durable state."""
        while self._driver.refused:
            key = self._driver.refused[-1]
            row = await self._runs.get_run(key)
            if row is not None and row.state not in ENDED_RUN:
                live = await self._rebuild(row)
                if live is not None:
                    self._driver.advance(live, Abandonment(GIVEN_UP))
            self._driver.refused.remove(key)

    async def _rebuild(self, row: RunRow) -> LiveRun | None:
        """Rebuilds a run in memory; one that cannot be read is left alone and reported."""
        try:
            return await self._load(row)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # whatever is wrong with one run, the others go on
            self._observer.run_forgotten(row.key, f"cannot be rebuilt: {type(error).__name__}: {error}")
            return None

    async def _load(self, row: RunRow) -> LiveRun | None:
        require_format(row.journal_format)
        compiled = await self._catalogue.compiled(row.revision)
        scope = Scope(len(compiled.graph.steps), None)
        live = LiveRun(row.key, row.epoch, compiled, scope, None)
        live.client_id = row.client_id
        async for page in read_pages(self._journal, row.key, payloads=True):
            refold(live.run, page, scope, compiled)
        live.durable_sequence = live.run.sequence
        if live.run.ended:
            return None
        self._driver.adopt(live)
        return live
