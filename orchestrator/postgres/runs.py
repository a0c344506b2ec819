"""Reads runs within one namespace, as the API's role. Filters are put together from a fixed table of SQL fragments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from orchestrator.domain.errors import InvalidFilter
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.engine.ports import Comparison, FilterTerm, RunRow
from orchestrator.postgres.pool import Pool
from orchestrator.postgres.sql import load

_QUERIES = load("runs")
_ATTRIBUTES = "attributes."
_FIELDS = frozenset(
    {"workflow", "revision", "state", "principal", "channel", "workspace", "labels", "create_time", "end_time"}
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

    async def find_request(self, namespace: str, request_id: str) -> tuple[UUID, bytes] | None:
        """See RunStore.find_request."""
        rows = await self._reads.fetch_in(namespace, _QUERIES["find_request"], namespace, request_id)
        return (rows[0]["run_id"], rows[0]["body_hash"]) if rows else None


def compose_list(terms: Sequence[FilterTerm], before: UUID | None) -> tuple[str, list[object]]:
    """Puts the query for `terms` together; returns it with the values of its parameters from $3 on.

    Every value is a parameter. Errors: InvalidFilter.
    """
    fragments: list[str] = []
    values: list[object] = []
    if before is not None:
        values.append(before)
        fragments.append(_QUERIES["term_before"].format(value=len(values) + 2))
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
            key = len(values) + 2
        values.append(term.value)
        comparison = _OPERATORS.get(term.comparison, "")
        fragments.append(_QUERIES[name].format(comparison=comparison, key=key, value=len(values) + 2))
    return _QUERIES["list_runs"].format(terms="\n".join(fragments)), values


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
        workspace=row["workspace"],
        labels=tuple(row["labels"]),
        attributes=json.loads(row["attributes"]),
        create_time=row["create_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        expire_time=row["expire_time"],
    )
