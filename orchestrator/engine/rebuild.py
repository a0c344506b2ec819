"""Rebuilds a run from its journal: the fold of its events, and the scope that its bindings read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.domain import events as ev
from orchestrator.domain.events import JOURNAL_FORMAT, READABLE_FORMATS
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.run import Run, SequenceGap
from orchestrator.domain.states import StepState
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.codec import decode, to_message, total_bytes
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import to_any
from orchestrator.engine.payloads import with_stand_in
from orchestrator.engine.ports import READ_LIMIT_BYTES, JournalReader, JournalRow, JournalStore, RunRow

PAGE_ROWS = 500
"""Rows read and folded at once."""

AHEAD_ROWS = 32
AHEAD_BYTES = 8 << 20
"""Rows of a run, and payloads of all, that are read together with those of other runs."""


class FormatUnknown(Exception):
    """The journal of a run is in a format that this code does not read."""


class ReadAhead:
    """JournalReader of runs whose whole journals were read together; others are read as they are asked for."""

    def __init__(self, store: JournalStore, read: Mapping[RunKey, Sequence[JournalRow]]) -> None:
        self._store, self._read = store, read

    @classmethod
    async def of(cls, store: JournalStore, runs: Sequence[RunRow]) -> ReadAhead:
        """Reads the journals of `runs` that are short. Errors: DatabaseUnavailable."""
        short = {run.key: run.next_sequence - 1 for run in runs if run.next_sequence - 1 <= AHEAD_ROWS}
        read = await store.read_first(list(short), AHEAD_ROWS, AHEAD_BYTES) if short else {}
        return cls(store, {key: rows for key, rows in read.items() if len(rows) == short[key]})

    async def read(
        self, key: RunKey, after_sequence: int, limit: int, payloads: bool, limit_bytes: int = READ_LIMIT_BYTES
    ) -> Sequence[JournalRow]:
        """See JournalReader.read. What was read ahead is here already, and comes whole."""
        rows = self._read.get(key)
        if rows is None or not payloads:
            return await self._store.read(key, after_sequence, limit, payloads, limit_bytes)
        return rows[after_sequence : after_sequence + limit]


async def read_pages(store: JournalReader, key: RunKey, payloads: bool) -> AsyncIterator[Sequence[JournalRow]]:
    """Reads a whole journal, page by page: what folds them lets others go on in between."""
    sequence = 0
    while True:
        page = await store.read(key, sequence, PAGE_ROWS, payloads)
        if not page:
            return
        is_last = len(page) < PAGE_ROWS and total_bytes(page) <= READ_LIMIT_BYTES
        sequence = page[-1].sequence
        yield page
        if is_last:
            return


async def first_compiled(store: JournalReader, row: RunRow, catalogue: Catalogue) -> CompiledWorkflow:
    """Returns the revision that a run was submitted with; it may have been reopened with another."""
    if row.round == 1:
        return await catalogue.compiled(row.revision)
    rows = await store.read(row.key, 0, 1, payloads=False)
    revision = to_message(rows[0], payloads=False).run_submitted.revision if rows else row.revision.revision
    return await catalogue.compiled(row.revision._replace(revision=revision))


async def read_run(store: JournalReader, row: RunRow, catalogue: Catalogue, stand_ins: bool) -> Run | None:
    """Reads and folds a run without its payloads, with `stand_ins` for them where these are to be read later; None
    where its journal is gone. Errors: UnknownEvent, SequenceGap, IllegalTransition."""
    run = Run((await first_compiled(store, row, catalogue)).graph)
    async for page in read_pages(store, row.key, payloads=False):
        for one in page:
            event = decode(with_stand_in(one) if stand_ins else one, run)
            if isinstance(event, ev.RunReopened) and event.revision != run.revision:
                compiled = await catalogue.compiled(row.revision._replace(revision=event.revision))
                run.next_graph = compiled.graph
            run.apply(event)
    if not run.sequence:
        return None
    _require_whole(run, row)
    return run


async def refold(live: LiveRun, rows: Sequence[JournalRow], catalogue: Catalogue) -> None:
    """Folds the next rows, which carry payloads, into a run and its data. Errors: as read_run, MethodNotServed."""
    live.held_bytes += total_bytes(rows)
    for row in rows:
        event = decode(row, live.run)
        match event:
            case ev.RunSubmitted():
                if event.payload is not None:
                    live.data.scope.input = live.compiled.parse_input(to_any(event.payload))
            case ev.StepSucceeded():
                live.data.step_ended(event.step, StepState.SUCCEEDED, None, event.payload)
            case ev.StepFailed():
                live.data.step_ended(event.step, StepState.FAILED, event.failure, None)
            case ev.StepSkipped():
                live.data.step_ended(event.step, StepState.SKIPPED, None, None)
            case ev.CheckpointRecorded():
                before = live.run.steps[event.step].checkpoint
                live.held_bytes -= len(before.data) if before is not None else 0  # It is held no more.
            case ev.StepDelegated():
                digest = event.contract_digest
                step = await catalogue.delegated_step(live.key.namespace, digest, event.target.method)
                live.data.learn(event.step, step, digest)
            case ev.RunReopened():
                await _prepare(live, event, catalogue)
        live.run.apply(event)
        if isinstance(event, ev.RunReopened):
            live.data.reopened()
        elif isinstance(event, ev.StepRetried):
            live.data.begun_anew(event.reset)


async def _prepare(live: LiveRun, event: ev.RunReopened, catalogue: Catalogue) -> None:
    compiled = live.compiled
    if event.revision != live.run.revision:
        compiled = await catalogue.compiled(RevisionKey(live.key.namespace, live.run.workflow, event.revision))
    run_input = compiled.parse_input(to_any(event.payload)) if event.payload is not None else None
    live.data.go_on_with(compiled, run_input)


async def load_run(store: JournalReader, row: RunRow, catalogue: Catalogue) -> LiveRun:
    """Rebuilds a run with its data, ended or not, which nobody drives by that. Errors: as refold, FormatUnknown."""
    require_format(row.journal_format)
    compiled = await first_compiled(store, row, catalogue)
    live = LiveRun(row.key, row.epoch, compiled, Scope(len(compiled.graph.steps), None), None)
    live.client_id = row.client_id
    async for page in read_pages(store, row.key, payloads=True):
        await refold(live, page, catalogue)
    _require_whole(live.run, row)
    live.durable_sequence = live.run.sequence
    return live


def _require_whole(run: Run, row: RunRow) -> None:
    """Refuses a journal that lacks what its row tells of; it may hold more, since it is read later. Errors:
    SequenceGap."""
    if run.sequence < row.next_sequence - 1:
        raise SequenceGap(f"the journal ends with event {run.sequence}, and {row.next_sequence - 1} were written")


def require_format(journal_format: int) -> None:
    """Refuses a journal that this code does not read. Errors: FormatUnknown."""
    if journal_format not in READABLE_FORMATS:
        raise FormatUnknown(f"journal format {journal_format}; this replica reads {JOURNAL_FORMAT}")
