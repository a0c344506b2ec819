"""Rebuilds a run from its journal: the fold of its events, and the scope that its bindings read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.domain import events as ev
from orchestrator.domain.events import JOURNAL_FORMAT, READABLE_FORMATS
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.codec import decode
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import to_any
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
    async for page in read_pages(store, key, payloads):
        for row in page:
            run.apply(decode(row, run))
    return run if run.sequence else None


async def refold(live: LiveRun, rows: Sequence[JournalRow], catalogue: Catalogue) -> None:
    """Folds the next rows, which carry payloads, into a run and its data. Errors: as read_run, MethodNotServed."""
    for row in rows:
        event = decode(row, live.run)
        match event:
            case ev.RunSubmitted():
                if event.payload is not None:
                    live.scope.input = live.compiled.parse_input(to_any(event.payload))
            case ev.StepSucceeded():
                live.data.step_ended(event.step, StepState.SUCCEEDED, None, event.payload)
            case ev.StepFailed():
                live.data.step_ended(event.step, StepState.FAILED, event.failure, None)
            case ev.StepSkipped():
                live.data.step_ended(event.step, StepState.SKIPPED, None, None)
            case ev.StepDelegated():
                digest = event.contract_digest
                step = await catalogue.delegated_step(live.key.namespace, digest, event.target.method)
                live.data.learn(event.step, step, digest)
        live.run.apply(event)


def require_format(journal_format: int) -> None:
    """Refuses a journal that this code does not read. Errors: FormatUnknown."""
    if journal_format not in READABLE_FORMATS:
        raise FormatUnknown(f"journal format {journal_format}; this replica reads {JOURNAL_FORMAT}")
