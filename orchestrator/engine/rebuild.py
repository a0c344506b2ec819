"""Rebuilds a run from its journal: the fold of its events, and the scope that its bindings read."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.domain import events as ev
from orchestrator.domain.events import JOURNAL_FORMAT
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.engine.codec import decode, indexes, to_any
from orchestrator.engine.ports import JournalRow, JournalStore

PAGE_ROWS = 1_000
"""Rows read at once."""


class FormatUnknown(Exception):
    """The journal of a run is in a format that this code does not read."""


async def read_rows(store: JournalStore, key: RunKey, payloads: bool) -> list[JournalRow]:
    """Reads a whole journal, page by page."""
    rows: list[JournalRow] = []
    while True:
        page = await store.read(key, rows[-1].sequence if rows else 0, PAGE_ROWS, payloads)
        rows.extend(page)
        if len(page) < PAGE_ROWS:
            return rows


def fold(compiled: CompiledWorkflow, rows: Sequence[JournalRow]) -> Run:
    """Folds rows into a run. Errors: UnknownEvent, SequenceGap, IllegalTransition."""
    run = Run(compiled.graph)
    step_indexes = indexes(compiled.graph)
    for row in rows:
        run.apply(decode(row, step_indexes))
    return run


def refold(run: Run, rows: Sequence[JournalRow], scope: Scope, compiled: CompiledWorkflow) -> None:
    """Folds rows that carry payloads into a fresh run and fills its scope."""
    step_indexes = indexes(compiled.graph)
    for row in rows:
        event = decode(row, step_indexes)
        run.apply(event)
        match event:
            case ev.RunSubmitted():
                if event.payload is not None:
                    scope.input = compiled.parse_input(to_any(event.payload))
            case ev.StepSucceeded():
                scope.set_succeeded(event.step, parse_output(compiled, event.step, run, event.payload.data))
            case ev.StepFailed():
                scope.set_failed(event.step, event.failure)
            case ev.StepSkipped():
                scope.set_skipped(event.step)


def parse_output(compiled: CompiledWorkflow, step: int, run: Run, data: bytes) -> Message:
    """Parses the stored output of a step."""
    target = compiled.step(step).targets[run.steps[step].target]
    return target.response_class.FromString(data)


def require_format(journal_format: int) -> None:
    """Refuses a journal that this code does not read. Errors: FormatUnknown."""
    if journal_format != JOURNAL_FORMAT:
        raise FormatUnknown(f"journal format {journal_format}; this replica reads {JOURNAL_FORMAT}")
