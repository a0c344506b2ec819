"""The stores of `engine/ports.py` over the simulated database, each statement sent over a `Link`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from uuid import UUID

from orchestrator.domain.errors import CursorExpired, InvalidFilter
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.states import ENDED_RUN
from orchestrator.engine.approval_ports import ApprovalStore
from orchestrator.engine.catalogue_ports import (
    ContractRow,
    RevisionRow,
    WorkerRow,
)
from orchestrator.engine.codec import total_bytes
from orchestrator.engine.engine import Stores
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.ports import (
    READ_LIMIT_BYTES,
    Comparison,
    EndedPage,
    FilterTerm,
    JournalRow,
    ReplicaStore,
    RunEntry,
    RunRow,
    UnfinishedRuns,
    WriteResult,
)
from orchestrator.engine.schedule_ports import ScheduleStore
from orchestrator.postgres.snapshots import Snapshot
from tests.simulation.database import Database
from tests.simulation.idle_stores import NothingToScrub
from tests.simulation.tables import Run

T = TypeVar("T")

_ATTRIBUTES = "attributes."
_FIELDS: Mapping[str, Callable[[RunRow], Any]] = {
    "workflow": lambda row: row.revision.workflow,
    "revision": lambda row: row.revision.revision,
    "state": lambda row: row.state,
    "principal": lambda row: row.principal,
    "channel": lambda row: row.channel,
    "client_id": lambda row: row.client_id,
    "workspace": lambda row: row.workspace,
    "labels": lambda row: row.labels,
    "create_time": lambda row: row.create_time,
    "end_time": lambda row: row.end_time,
}
_OPERATORS: Mapping[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQUAL: operator.eq,
    Comparison.LESS: operator.lt,
    Comparison.LESS_EQUAL: operator.le,
    Comparison.GREATER: operator.gt,
    Comparison.GREATER_EQUAL: operator.ge,
}


class Link(Protocol):
    """How statements come to the database and answers come back."""

    async def ask(
        self,
        name: str,
        begin: Callable[[], T],
        commit: Callable[[], T] | None = None,
        release: Callable[[], None] | None = None,
    ) -> T:
        """Has `begin` happen at the database, and gives what it returns; with `commit`, that happens some time after
        and gives the answer, and `release` in any case after `begin`. Errors: theirs, and DatabaseUnavailable."""
        ...


class Direct:
    """Implements Link: nothing lies in between."""

    async def ask(
        self,
        name: str,
        begin: Callable[[], T],
        commit: Callable[[], T] | None = None,
        release: Callable[[], None] | None = None,
    ) -> T:
        """See Link.ask."""
        answer = begin()
        try:
            return commit() if commit is not None else answer
        finally:
            if release is not None:
                release()


@dataclass(slots=True)
class Catalogues:
    """What the database keeps of workflows, workers and limits; of these, only limits change during a simulation."""

    revisions: dict[RevisionKey, RevisionRow] = field(default_factory=dict)
    newest: dict[tuple[str, str], RevisionKey] = field(default_factory=dict)
    workers: dict[str, list[WorkerRow]] = field(default_factory=dict)
    contracts: dict[str, ContractRow] = field(default_factory=dict)
    limits: dict[str, Sequence[LimitRow]] = field(default_factory=dict)
    on_limit: Callable[[LimitRow], None] = lambda _: None
    """Told of each limit that has been changed."""


class SimulatedJournal:
    """JournalStore."""

    def __init__(self, database: Database, link: Link) -> None:
        self._database, self._link = database, link

    async def write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """See JournalStore.write."""
        if not entries:
            return []
        database, batch = self._database, list(entries)

        def commit() -> list[WriteResult | None]:
            return database.write_batch(replica_id, batch)

        results = await self._link.ask(
            "write", lambda: database.begin_write(replica_id), commit, lambda: database.unlock(replica_id)
        )
        missing = [entry for entry, result in zip(batch, results, strict=True) if result is None]
        # Another statement, so that it sees what others committed while the first waited for them.
        causes = iter(await self._link.ask("settle", lambda: database.settle(missing)) if missing else ())
        return [result if result is not None else next(causes) for result in results]

    async def read(
        self, key: RunKey, after_sequence: int, limit: int, payloads: bool, limit_bytes: int = READ_LIMIT_BYTES
    ) -> list[JournalRow]:
        """See JournalStore.read."""

        def read() -> list[JournalRow]:
            found, size = list[JournalRow](), 0
            for row in self._database.read_events(key, after_sequence, limit, payloads):
                if size > limit_bytes:
                    break
                found.append(row)
                size += total_bytes((row,))
            return found

        return await self._link.ask("read", read)

    async def read_payloads(self, key: RunKey, sequences: Sequence[int], limit_bytes: int) -> dict[int, bytes]:
        """See JournalStore.read_payloads."""

        def read() -> dict[int, bytes]:
            found: dict[int, bytes] = {}
            for sequence in sequences:
                if sum(map(len, found.values())) > limit_bytes:
                    break
                for row in self._database.read_events(key, sequence - 1, 1, True):
                    if row.sequence == sequence and row.payload is not None:
                        found[sequence] = row.payload
            return found

        return await self._link.ask("read", read)

    async def read_first(self, keys: Sequence[RunKey], limit: int, limit_bytes: int) -> dict[RunKey, list[JournalRow]]:
        """See JournalStore.read_first."""

        def read() -> dict[RunKey, list[JournalRow]]:
            found: dict[RunKey, list[JournalRow]] = {}
            left = limit_bytes
            for key in keys:
                found[key] = []
                for row in self._database.read_events(key, 0, limit, True):
                    left -= len(row.payload or b"")
                    if left >= 0:
                        found[key].append(row)
            return found

        return await self._link.ask("read", read)

    async def read_one_of_each(
        self, namespace: str, places: Sequence[tuple[UUID, int]], limit_bytes: int
    ) -> dict[UUID, JournalRow]:
        """See JournalStore.read_one_of_each."""

        def read() -> dict[UUID, JournalRow]:
            found: dict[UUID, JournalRow] = {}
            left = limit_bytes
            for run_id, sequence in places:
                for row in self._database.read_events(RunKey(namespace, run_id), sequence - 1, 1, False):
                    left -= len(row.header)
                    if left >= 0:
                        found[run_id] = row
            return found

        return await self._link.ask("read", read)


class SimulatedRuns:
    """RunStore."""

    def __init__(self, database: Database, link: Link) -> None:
        self._database, self._link = database, link

    async def get_run(self, key: RunKey) -> RunRow | None:
        """See RunStore.get_run."""

        def get() -> RunRow | None:
            run = self._database.runs.get(key)
            return run.row() if run is not None else None

        return await self._link.ask("get_run", get)

    async def list_runs(
        self, namespace: str, terms: Sequence[FilterTerm], before: UUID | None, limit: int
    ) -> list[RunRow]:
        """See RunStore.list_runs."""
        _require_terms(terms)

        def find() -> list[RunRow]:
            rows = [run.row() for run in self._database.runs.values() if run.key.namespace == namespace]
            met = [row for row in rows if _meets(row, terms) and (before is None or row.key.run_id < before)]
            return sorted(met, key=lambda row: row.key.run_id, reverse=True)[:limit]

        return await self._link.ask("list_runs", find)

    async def end_position(self) -> str:
        """See RunStore.end_position."""
        return await self._link.ask("end_position", lambda: str(self._snapshot()))

    def _snapshot(self) -> Snapshot:
        following = self._database.transaction + 1
        return Snapshot(following, following, ())

    async def list_ended(
        self, namespace: str, terms: Sequence[FilterTerm], position: str, limit: int, but_of: UUID | None
    ) -> EndedPage:
        """See RunStore.list_ended."""
        _require_terms(terms)
        told = Snapshot.parse(position)
        return await self._link.ask("list_ended", lambda: self._ended(namespace, terms, told, limit, but_of))

    def _ended(
        self, namespace: str, terms: Sequence[FilterTerm], told: Snapshot, limit: int, but_of: UUID | None
    ) -> EndedPage:
        now = self._snapshot()
        if now.end < told.end:
            raise CursorExpired("cursor: it was given by another database; watch again without a cursor")
        found: list[tuple[int, Run]] = [
            (run.end_transaction, run)
            for run in self._database.runs.values()
            if run.end_transaction is not None
            and run.key.namespace == namespace
            and (run.end_transaction >= told.end or run.end_transaction in told.open)
            and (but_of is None or run.end_replica != but_of)
            and _meets(run.row(), terms)
        ]
        found.sort(key=lambda one: one[0])
        more = len(found) >= limit
        if more:
            last = found[limit - 1][0]
            found = [one for one in found if one[0] <= last]
        after = now.up_to(found[-1][0]) if more else now
        return EndedPage([run.row() for _, run in found], str(after), more)

    async def find_request(self, namespace: str, request_id: str) -> tuple[UUID, bytes] | None:
        """See RunStore.find_request."""
        return await self._link.ask("find_request", lambda: self._database.requests.get((namespace, request_id)))

    async def count_unfinished(self, namespace: str, limit: int) -> UnfinishedRuns:
        """See RunStore.count_unfinished."""

        def count() -> UnfinishedRuns:
            counts: dict[RevisionKey, int] = {}
            for run in self._database.runs.values():
                if run.key.namespace == namespace and run.state not in ENDED_RUN:
                    counts[run.revision] = counts.get(run.revision, 0) + 1
            most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
            return UnfinishedRuns(dict(most[:limit]), len(counts))

        return await self._link.ask("count_unfinished", count)


def _require_terms(terms: Sequence[FilterTerm]) -> None:
    for term in terms:
        if not term.field.startswith(_ATTRIBUTES) and term.field not in _FIELDS:
            raise InvalidFilter(f"{term.field} is not a field that runs can be filtered by")
        if (term.field == "labels") != (term.comparison is Comparison.HAS):
            raise InvalidFilter("the operator `:` is for labels, and labels have no other; write `labels:pii`")


def _meets(row: RunRow, terms: Sequence[FilterTerm]) -> bool:
    for term in terms:
        if term.field.startswith(_ATTRIBUTES):
            found: Any = row.attributes.get(term.field.removeprefix(_ATTRIBUTES))
        else:
            found = _FIELDS[term.field](row)
        if term.comparison is Comparison.HAS:
            holds = term.value in found
        elif term.comparison is Comparison.NOT_EQUAL:
            holds = found != term.value
        else:
            holds = found is not None and _OPERATORS[term.comparison](found, term.value)
        if not holds:
            return False
    return True


class SimulatedCatalogue:
    """WorkflowStore, WorkerStore and LimitStore, as far as they are read."""

    def __init__(self, catalogues: Catalogues, database: Database, link: Link) -> None:
        self._catalogues, self._database, self._link = catalogues, database, link

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        """See WorkflowStore.get_revision."""

        def get() -> RevisionRow | None:
            found = key if key.revision else self._catalogues.newest.get((key.namespace, key.workflow))
            return self._catalogues.revisions.get(found) if found is not None else None

        return await self._link.ask("get_revision", get)

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        """See WorkerStore.list_workers."""
        return await self._link.ask("list_workers", lambda: self._catalogues.workers.get(namespace, []))

    async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
        """See WorkerStore.get_contracts."""
        contracts = self._catalogues.contracts
        return await self._link.ask(
            "get_contracts", lambda: [contracts[digest] for digest in digests if digest in contracts]
        )

    async def list_namespaces(self, limit: int) -> Mapping[str, int]:
        """See WorkerStore.list_namespaces."""
        return await self._link.ask(
            "list_namespaces", lambda: {name: version for name, (version, _) in self._database.catalogues.items()}
        )

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        """See LimitStore.list_limits."""
        if not self._catalogues.limits.get(namespace):
            return []  # There are none, and nobody makes the first.
        return await self._link.ask("list_limits", lambda: list(self._catalogues.limits[namespace]))

    async def put_limit(self, row: LimitRow, most: int) -> LimitRow | None:
        """See LimitStore.put_limit: one that takes the place of another."""

        def put() -> LimitRow:
            self._database.raise_version(row.namespace)
            stored = self._catalogues.limits[row.namespace]
            self._catalogues.limits[row.namespace] = [row if one.name == row.name else one for one in stored]
            self._catalogues.on_limit(row)
            return row

        return await self._link.ask("put_limit", put)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the simulation has no {name}: its catalogue does not change")


def stores_over(
    catalogues: Catalogues,
    database: Database,
    link: Link,
    replicas: ReplicaStore,
    approvals: ApprovalStore,
    schedules: ScheduleStore,
) -> Stores:
    """Makes the stores of one replica."""
    catalogue: Any = SimulatedCatalogue(catalogues, database, link)
    directory: Any = None  # Nothing is found, and nobody asks.
    return Stores(
        SimulatedJournal(database, link),
        SimulatedRuns(database, link),
        replicas,
        catalogue,
        catalogue,
        approvals,
        schedules,
        catalogue,
        NothingToScrub(),
        directory,
    )
