"""Rebuilds a run from its journal: the fold of its events, and the scope that its bindings read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.domain import events as ev
from orchestrator.domain.events import JOURNAL_FORMAT
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.engine.codec import decode, indexes, to_any
from orchestrator.engine.ports import JournalRow, JournalStore

PAGE_ROWS = 500
"""Rows read and folded at once."""


class FormatUnknown(Exception):
    """The journal of a run is in a format that this code does not read."""


async def read_pages(store: JournalStore, key: RunKey, payloads: bool) -> AsyncIterator[Sequence[JournalRow]]:
    """Reads a whole journal, page by page: what folds them lets others go on in between."""
    sequence = 0
    while True:
        page = await store.read(key, sequence, PAGE_ROWS, payloads)
        if page:
            yield page
            sequence = page[-1].sequence
        if len(page) < PAGE_ROWS:
            return


async def read_run(store: JournalStore, key: RunKey, compiled: CompiledWorkflow, payloads: bool) -> Run | None:
    """Reads and folds a run; None where its journal is gone. Errors: UnknownEvent, SequenceGap, IllegalTransition."""
    run = Run(compiled.graph)
    step_indexes = indexes(compiled.graph)
    async for page in read_pages(store, key, payloads):
        for row in page:
            run.apply(decode(row, step_indexes))
    return run if run.sequence else None


def refold(run: Run, rows: Sequence[JournalRow], scope: Scope, compiled: CompiledWorkflow) -> None:
    """Folds the next rows, which carry payloads, into a run and its scope."""
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
