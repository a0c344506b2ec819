"""Recovery: takes over runs whose replica is gone and drives them on from their journal."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

from orchestrator.contracts.scope import Scope
from orchestrator.domain.errors import BatonError, DatabaseUnavailable
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Abandonment, Resumption
from orchestrator.domain.run import SequenceGap
from orchestrator.domain.states import ENDED_RUN, IllegalTransition
from orchestrator.engine.catalogue import Catalogue, RevisionBroken
from orchestrator.engine.codec import UnknownEvent
from orchestrator.engine.drive import Driver
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.observer import Observer
from orchestrator.engine.ports import JournalStore, ReplicaStore, RunRow, RunStore
from orchestrator.engine.rebuild import FormatUnknown, read_rows, refold, require_format

UNSTORABLE = Failure(Code.INTERNAL, "INTERNAL", "the database refused the run's events", Origin.ORCHESTRATOR)


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
        while True:
            try:
                adopted = await self._adopt(replica_id)
                await self._fail_refused()
            except DatabaseUnavailable:
                adopted = 0
            if adopted < self._limits.adoption_batch:
                await asyncio.sleep(self._limits.adoption_interval_seconds * random.uniform(0.7, 1.0))

    async def _adopt(self, replica_id: UUID) -> int:
        room = self._limits.max_active_runs - len(self._driver.runs)
        limit = min(self._limits.adoption_batch, room)
        if limit <= 0:
            return 0
        rows = await self._replicas.adopt(replica_id, limit)
        for row in rows:
            live = await self._rebuild(row)
            if live is not None:
                self._driver.advance(live, Resumption())
        return len(rows)

    async def _fail_refused(self) -> None:
        """Ends runs whose events the database refused, from what it does hold of them."""
        while self._driver.refused:
            key = self._driver.refused[-1]
            row = await self._runs.get_run(key)
            if row is not None and row.state not in ENDED_RUN:
                live = await self._rebuild(row)
                if live is not None:
                    self._driver.advance(live, Abandonment(UNSTORABLE))
            self._driver.refused.remove(key)

    async def _rebuild(self, row: RunRow) -> LiveRun | None:
        """Rebuilds a run in memory; one that cannot be read is left alone and reported."""
        try:
            return await self._load(row)
        except DatabaseUnavailable:
            raise
        except (BatonError, RevisionBroken, FormatUnknown, UnknownEvent, SequenceGap, IllegalTransition) as error:
            self._report(row.key, f"cannot be rebuilt: {error}")
            return None

    async def _load(self, row: RunRow) -> LiveRun:
        require_format(row.journal_format)
        compiled = await self._catalogue.compiled(row.revision)
        rows = await read_rows(self._journal, row.key, payloads=True)
        scope = Scope(len(compiled.graph.steps), None)
        live = LiveRun(row.key, row.epoch, compiled, scope, None)
        refold(live.run, rows, scope, compiled)
        live.durable_sequence = live.run.sequence
        self._driver.adopt(live)
        return live

    def _report(self, key: RunKey, why: str) -> None:
        self._observer.run_forgotten(key, why)
