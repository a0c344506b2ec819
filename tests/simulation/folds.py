"""The runs of the simulated database as their journals tell them, each event folded once."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run as FoldedRun
from orchestrator.engine.codec import decode
from tests.simulation.tables import Run


class Folds:
    """Folds runs. `graphs` are those of workflows, by name and revision."""

    def __init__(self) -> None:
        self.graphs: dict[tuple[str, str], Any] = {}
        self._folded: dict[RunKey, FoldedRun] = {}

    def of(self, run: Run) -> FoldedRun:
        """Gives a run as its durable events tell it; not to be changed. Errors: those of Run.apply."""
        folded = self._folded.get(run.key)
        if folded is None or folded.sequence > len(run.events):
            folded = self._folded[run.key] = FoldedRun(self.graphs[run.revision.workflow, run.revision.revision])
        while folded.sequence < len(run.events):
            row = run.events[folded.sequence].row
            try:
                folded.apply(decode(row, folded))
            except BaseException:
                del self._folded[run.key]
                raise
        return folded
