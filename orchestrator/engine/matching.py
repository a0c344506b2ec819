"""Filters of runs in memory: the terms of `ListRuns` on a run that has just ended, with the meaning they have in SQL.

What may not enter: reading filters (the door's), I/O.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import Comparison, FilterTerm, RunRow

ATTRIBUTES = "attributes."

Mark = tuple[str, str | int]
"""A field and the one value of it that a filter takes."""

_OPERATORS: Mapping[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQUAL: operator.eq,
    Comparison.NOT_EQUAL: operator.ne,
    Comparison.LESS: operator.lt,
    Comparison.LESS_EQUAL: operator.le,
    Comparison.GREATER: operator.gt,
    Comparison.GREATER_EQUAL: operator.ge,
}
_TELLING = ("client_id", "workspace", "workflow", "revision", "principal", "channel")
"""Fields of one value, the most telling first; attributes stand before all but the first."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What filters read of a run that has ended."""

    workflow: str
    revision: str
    state: int
    principal: str
    channel: str
    client_id: str
    workspace: str
    labels: Collection[str]
    attributes: Mapping[str, str]
    create_time: int
    end_time: int

    def marks(self) -> Iterator[Mark]:
        """Yields every mark that a filter which this run meets can have."""
        for field in _TELLING:
            yield field, getattr(self, field)
        for key, value in self.attributes.items():
            yield ATTRIBUTES + key, value


def facts_of_live(live: LiveRun) -> RunFacts:
    """Reads a run in memory, which has ended."""
    run = live.run
    return RunFacts(
        run.workflow,
        run.revision,
        int(run.state),
        run.principal,
        run.channel,
        live.client_id,
        run.workspace,
        run.labels,
        run.attributes,
        run.create_time,
        run.end_time or 0,
    )


def facts_of_row(row: RunRow) -> RunFacts:
    """Reads a stored run, which has ended."""
    return RunFacts(
        row.revision.workflow,
        row.revision.revision,
        row.state,
        row.principal,
        row.channel,
        row.client_id,
        row.workspace,
        row.labels,
        row.attributes,
        row.create_time,
        row.end_time or 0,
    )


def mark_of(terms: Sequence[FilterTerm]) -> Mark | None:
    """Returns the most telling field that a filter takes one value of, so that few runs have to be looked at."""
    exact = {term.field: term.value for term in terms if term.comparison is Comparison.EQUAL}
    attributes = [field for field in exact if field.startswith(ATTRIBUTES)]
    for field in (_TELLING[0], *attributes, *_TELLING[1:]):
        if field in exact:
            return field, exact[field]
    return None


def meets(facts: RunFacts, terms: Sequence[FilterTerm]) -> bool:
    """Tells whether a run meets every term."""
    return all(_holds(facts, term) for term in terms)


def _holds(facts: RunFacts, term: FilterTerm) -> bool:
    if term.comparison is Comparison.HAS:
        return term.value in facts.labels
    if term.field.startswith(ATTRIBUTES):
        found = facts.attributes.get(term.field.removeprefix(ATTRIBUTES))
    else:
        found = getattr(facts, term.field)
    return _OPERATORS[term.comparison](found, term.value)
