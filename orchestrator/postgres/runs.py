"""Reads runs within one namespace, as the API's role. Filters are put together from a fixed table of SQL fragments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from orchestrator.domain.errors import CursorExpired, InvalidFilter
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.ports import Comparison, EndedPage, FilterTerm, RunRow, UnfinishedRuns
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.snapshots import Snapshot
from orchestrator.postgres.sql import load

_QUERIES = load("runs")
_ATTRIBUTES = "attributes."
_FIELDS = frozenset(
    {
        "workflow",
        "revision",
        "state",
        "principal",
        "channel",
        "client_id",
        "workspace",
        "labels",
        "create_time",
        "end_time",
    }
)
_OPERATORS = {
    Comparison.EQUAL: "=",
    Comparison.NOT_EQUAL: "IS DISTINCT FROM",
    Comparison.LESS: "<",
    Comparison.LESS_EQUAL: "<=",
    Comparison.GREATER: ">",
    Comparison.GREATER_EQUAL: ">=",
}


class PostgresRunStore:
    """RunStore in Postgres. `reads` is a pool of the API's role."""

    def __init__(self, reads: Pool) -> None:
        self._reads = reads

    async def get_run(self, key: RunKey) -> RunRow | None:
        """See RunStore.get_run."""
        rows = await self._reads.fetch_in(key.namespace, _QUERIES["get_run"], key.namespace, key.run_id)
        return run_row(rows[0]) if rows else None

    async def list_runs(
        self, namespace: str, terms: Sequence[FilterTerm], before: UUID | None, limit: int
    ) -> list[RunRow]:
        """See RunStore.list_runs. Errors: InvalidFilter."""
        query, values = compose_list(terms, before)
        rows = await self._reads.fetch_in(namespace, query, namespace, limit, *values)
        return [run_row(row) for row in rows]

    async def end_position(self) -> str:
        """See RunStore.end_position. It is a snapshot: every end that is visible in it was told."""
        rows = await self._reads.fetch(_QUERIES["snapshot"])
        return str(rows[0]["snapshot"])

    async def list_ended(
        self, namespace: str, terms: Sequence[FilterTerm], position: str, limit: int, but_of: UUID | None
    ) -> EndedPage:
        """See RunStore.list_ended. Errors: InvalidFilter, InvalidCursor, CursorExpired."""
        told = Snapshot.parse(position)
        query, values = compose_ended(terms)
        rows = await self._reads.fetch_in(namespace, query, namespace, limit, position, but_of, *values)
        now = Snapshot.parse(rows[0]["snapshot"])
        if now.end < told.end:
            raise CursorExpired("cursor: it was given by another database; watch again without a cursor")
        ended = [row for row in rows if row["run_id"] is not None]
        more = len(ended) >= limit
        after = now.up_to(int(ended[-1]["end_xid"])) if more else now
        return EndedPage([run_row(row) for row in ended], str(after), more)

    async def find_request(self, namespace: str, request_id: str) -> tuple[UUID, bytes] | None:
        """See RunStore.find_request."""
        rows = await self._reads.fetch_in(namespace, _QUERIES["find_request"], namespace, request_id)
        return (rows[0]["run_id"], rows[0]["body_hash"]) if rows else None

    async def count_unfinished(self, namespace: str, limit: int) -> UnfinishedRuns:
        """See RunStore.count_unfinished."""
        states = [state.value for state in RunState if state not in ENDED_RUN]
        rows = await self._reads.fetch_in(namespace, _QUERIES["count_unfinished"], namespace, limit, states)
        counts = {RevisionKey(namespace, row["workflow"], row["revision"]): row["runs"] for row in rows}
        return UnfinishedRuns(counts, rows[0]["revisions"] if rows else 0)


def compose_list(terms: Sequence[FilterTerm], before: UUID | None) -> tuple[str, list[object]]:
    """Puts the query for `terms` together; returns it with the values of its parameters from $3 on.

    Every value is a parameter. Errors: InvalidFilter.
    """
    fragments, values = _compose(terms, 2 if before is None else 3)
    if before is not None:
        values.insert(0, before)
        fragments = "\n".join((_QUERIES["term_before"].format(value=3), fragments))
    return _QUERIES["list_runs"].format(terms=fragments), values


def compose_ended(terms: Sequence[FilterTerm]) -> tuple[str, list[object]]:
    """Puts the query for ends together; returns it with the values of its parameters from $5 on. Errors:
    InvalidFilter."""
    fragments, values = _compose(terms, 4)
    return _QUERIES["list_ended"].format(terms=fragments), values


def _compose(terms: Sequence[FilterTerm], others: int) -> tuple[str, list[object]]:
    """Puts the conditions for `terms` together, for a query with so many `others` parameters before theirs."""
    fragments: list[str] = []
    values: list[object] = []
    for term in terms:
        is_attribute = term.field.startswith(_ATTRIBUTES)
        if not is_attribute and term.field not in _FIELDS:
            raise InvalidFilter(f"{term.field} is not a field that runs can be filtered by")
        if (term.field == "labels") != (term.comparison is Comparison.HAS):
            raise InvalidFilter("the operator `:` is for labels, and labels have no other; write `labels:pii`")
        name = "term_attributes" if is_attribute else f"term_{term.field}"
        key = 0
        if is_attribute:
            values.append(term.field.removeprefix(_ATTRIBUTES))
            key = len(values) + others
        values.append(term.value)
        comparison = _OPERATORS.get(term.comparison, "")
        fragments.append(_QUERIES[name].format(comparison=comparison, key=key, value=len(values) + others))
    return "\n".join(fragments), values


def run_row(row: asyncpg.Record) -> RunRow:
    """Makes a RunRow of a row of `runs`."""
    return RunRow(
        key=RunKey(row["namespace"], row["run_id"]),
        revision=RevisionKey(row["namespace"], row["workflow"], row["revision"]),
        state=row["state"],
        epoch=row["epoch"],
        next_sequence=row["next_sequence"],
        journal_format=row["journal_format"],
        round=row["round"],
        principal=row["principal"],
        channel=row["channel"],
        client_id=row["client_id"],
        workspace=row["workspace"],
        labels=tuple(row["labels"]),
        attributes=json.loads(row["attributes"]),
        create_time=row["create_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        expire_time=row["expire_time"],
        handed_over=row.get("handed_over", False),
    )
