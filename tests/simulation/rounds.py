"""The judge of mending: of runs that are reopened, paused, resumed and forked, and of steps that begin anew.

Who mends is known by the principal, which is another for each wish: what is journaled tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from baton.v1 import event_pb2, run_pb2

from orchestrator.domain import events as ev
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run as FoldedRun
from orchestrator.domain.states import ENDED_RUN, TERMINAL_EVENTS, EventKind, StepState
from orchestrator.engine.codec import decode
from orchestrator.engine.ports import RunEntry
from tests.simulation.database import Database
from tests.simulation.folds import Folds
from tests.simulation.tables import Run

KEPT = "what was done is kept"
ACKNOWLEDGED = "nothing acknowledged is lost"


class Rounds:
    """Judges what is mended. `breach` is told of each thing that must not be."""

    def __init__(self, database: Database, folds: Folds, breach: Callable[[str, str], None]) -> None:
        self._database, self._folds, self._breach = database, folds, breach
        self.checked_only: set[str] = set()
        """Principals who only asked what would be done."""
        self.named_round: set[str] = set()
        """Principals who said which round is to be mended."""

    # --- as it is written

    def written(self, entry: RunEntry, run: Run) -> None:
        """An entry is about to be written."""
        where = f"run {entry.key.run_id} from sequence {entry.rows[0].sequence}"
        kinds = [EventKind(row.kind) for row in entry.rows]
        if (entry.reopened is not None) != (EventKind.RUN_REOPENED in kinds):
            self._breach("legal transitions", f"{where}: its row and its events differ on whether it is reopened")
        if not run.events:
            return
        before = self._folds.of(run)
        self._look_for_starts(where, kinds, paused=before.paused)
        if kinds[0] is EventKind.RUN_REOPENED:
            event = decode(entry.rows[0], before)
            assert isinstance(event, ev.RunReopened)
            self._look_at_reopening(where, before, event)

    def _look_for_starts(self, where: str, kinds: list[EventKind], *, paused: bool) -> None:
        for kind in kinds:
            if kind is EventKind.RUN_PAUSED:
                paused = True
            elif kind in (EventKind.RUN_RESUMED, EventKind.RUN_REOPENED):
                paused = False
            elif kind is EventKind.ATTEMPT_STARTED and paused:
                self._breach("nothing starts while a run is paused", where)

    def _look_at_reopening(self, where: str, before: FoldedRun, event: ev.RunReopened) -> None:
        self._database.tally("runs reopened")
        if event.round != before.round + 1:
            self._breach("one after the other", f"{where}: round {event.round} after {before.round}")
        wish, _, step = event.reason.partition(" ")
        for index in range(len(before.graph.steps)):
            name = before.steps[index].spec.id
            if name in event.reset and self._is_done(before, index, step if wish == "step" else ""):
                self._breach(KEPT, f"{where}: {name} has succeeded, and begins anew")

    def _is_done(self, run: FoldedRun, index: int, again: str) -> bool:
        """Whether a step has succeeded, and all before it is as it was: then it has no reason to begin anew."""
        step = run.steps[index]
        taken_back = any(one.spec.id.partition("/")[::2] == (step.spec.id, "undo") for one in run.steps)
        delegated = any(one.spec.id.startswith(f"{step.spec.id}/") for one in run.steps)
        if step.state is not StepState.SUCCEEDED or taken_back or delegated or step.spec.id == again:
            return False
        return all(self._is_done(run, before, again) for before in step.spec.predecessors)

    # --- as it is told

    def mended(self, key: RunKey, principal: str, run: run_pb2.Run, reset: list[str], *, checked_only: bool) -> None:
        """Somebody is told what became of a wish."""
        row = self._database.runs[key]
        folded = self._folds.of(row)
        if run.round > folded.round:
            self._breach(ACKNOWLEDGED, f"run {key.run_id}: round {run.round} is told, and {folded.round} is durable")
        if reset and not checked_only and not self._count(row, principal):
            self._breach(ACKNOWLEDGED, f"run {key.run_id}: what {principal} wished is told, and not durable")

    def skipped(self, key: RunKey, principal: str, step: str) -> None:
        """Somebody is told that a step was ended in its place."""
        self._database.tally("steps skipped")
        for event in self._database.runs[key].events:
            if event.row.step == step and event.row.kind in (EventKind.STEP_SUCCEEDED, EventKind.STEP_SKIPPED):
                told = event_pb2.RunEvent.FromString(event.row.header)
                if principal in (told.step_succeeded.substituted_by, told.step_skipped.skipped_by):
                    return
        self._breach(ACKNOWLEDGED, f"run {key.run_id}: that {principal} has ended {step} is told, and not durable")

    def held(self, key: RunKey, *, paused: bool) -> None:
        """Somebody is told that a run is paused, or goes on."""
        self._database.tally("runs paused", paused)
        kind = EventKind.RUN_PAUSED if paused else EventKind.RUN_RESUMED
        rows = [event.row for event in self._database.runs[key].events]
        # A run that was not paused is told to go on without an event.
        if paused and not any(row.kind == kind for row in rows):
            self._breach(ACKNOWLEDGED, f"run {key.run_id}: {kind.name} is told, and not durable")

    def forked(self, source: RunKey, run_id: UUID, kept: list[str]) -> None:
        """Somebody is told of a run that begins in the middle of another."""
        self._database.tally("runs forked")
        row = self._database.runs.get(RunKey(source.namespace, run_id))
        if row is None:
            self._breach(ACKNOWLEDGED, f"run {run_id}, forked from {source.run_id}, is told, and not durable")
            return
        folded = self._folds.of(row)
        given = {
            (event.row.step, event.row.payload)
            for event in self._database.runs[source].events
            if event.row.kind == EventKind.STEP_SUCCEEDED
        }
        for step in folded.steps:
            if step.substituted_by == f"run {source.run_id}" and step.state is StepState.SUCCEEDED:
                data = step.output.data if step.output is not None else None
                known = {payload for name, payload in given if name == step.spec.id}
                # One that was made of the outputs of others has none in the journal.
                if known and all(known) and data not in known:
                    self._breach(KEPT, f"run {run_id}: {step.spec.id} has an output that its source never had")

    # --- when it is over

    def look_at(self, run: Run) -> None:
        """Looks at a run that is still."""
        where = f"run {run.key.run_id}"
        rows = [event.row for event in run.events]
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            if row.kind in TERMINAL_EVENTS and following is not None and following.kind != EventKind.RUN_REOPENED:
                self._breach("one end", f"{where}: {EventKind(following.kind).name} follows the end")
        if run.state in ENDED_RUN and rows[-1].kind not in TERMINAL_EVENTS:
            self._breach("one end", f"{where}: it ends with {EventKind(rows[-1].kind).name}")
        for principal in self.checked_only:
            if self._count(run, principal):
                self._breach("what is only checked changes nothing", f"{where}: {principal} has changed it")
        for principal in self.named_round:
            if self._count(run, principal, (EventKind.RUN_REOPENED,)) > 1:
                self._breach("a round is mended once", f"{where}: {principal} has reopened it twice")

    @staticmethod
    def _count(
        run: Run, principal: str, kinds: tuple[EventKind, ...] = (EventKind.RUN_REOPENED, EventKind.STEP_RETRIED)
    ) -> int:
        """Counts what somebody's wish has journaled."""
        count = 0
        for event in run.events:
            if event.row.kind in kinds:
                told = event_pb2.RunEvent.FromString(event.row.header)
                count += principal in (told.run_reopened.principal, told.step_retried.principal)
        return count
