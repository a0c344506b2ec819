"""Listens to the engine and emits the spans of what has ended. Asks for the sampled flag before anything else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from orchestrator.domain.events import (
    Event,
    RunCancelled,
    RunFailed,
    RunSucceeded,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from orchestrator.domain.run import Run
from orchestrator.domain.tracing import is_sampled
from orchestrator.engine.observer import NullObserver
from orchestrator.telemetry.spans import Span, run_spans, run_trace, step_spans

_STEP_ENDS = (StepSucceeded, StepFailed, StepSkipped, StepCancelled)
_ENDS = (*_STEP_ENDS, RunSucceeded, RunFailed, RunCancelled)
_LOGGER = logging.getLogger(__name__)


class SpanObserver(NullObserver):
    """Emits a step's spans when its end is committed, and the run's span when the run's is. Never raises."""

    __slots__ = ("_emit",)

    def __init__(self, emit: Callable[[Span], None]) -> None:
        self._emit = emit

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Emits the spans of all steps, and of the run, that `events` ended."""
        if not is_sampled(run.traceparent):
            return
        try:
            self._emit_ended(namespace, run_id, run, events)
        except Exception:
            _LOGGER.exception("the spans of a run could not be made", extra={"run_id": str(run_id)})

    def _emit_ended(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        trace = None
        for event in events:
            if not isinstance(event, _ENDS):
                continue
            if trace is None:
                trace = run_trace(namespace, run_id, run)
                if trace is None:
                    return
            ended = step_spans(trace, run, event.step) if isinstance(event, _STEP_ENDS) else run_spans(trace, run)
            for span in ended:
                self._emit(span)
