"""Listens to the engine and hands on what has ended, for its spans to be made elsewhere. Asks for the sampled flag
before anything else: a run that is not recorded costs one look at a letter for each of its commits."""

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
from orchestrator.telemetry.ended import Ended, ended

_STEP_ENDS = (StepSucceeded, StepFailed, StepSkipped, StepCancelled)
_RUN_ENDS = (RunSucceeded, RunFailed, RunCancelled)
_LOGGER = logging.getLogger(__name__)


class SpanObserver(NullObserver):
    """Hands on a step when its end is committed, and the run when the run's is. Never raises."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[Ended], None]) -> None:
        self._take = take

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Hands on the steps, and the run, that `events` ended."""
        if not is_sampled(run.traceparent):
            return
        try:
            steps = [event.step for event in events if isinstance(event, _STEP_ENDS)]
            over = any(isinstance(event, _RUN_ENDS) for event in events)
            if steps or over:
                what = ended(namespace, run_id, run, steps)
                # The run may have ended in memory by an event that is not durable yet.
                self._take(what if over else what._replace(run=None))
        except Exception:
            _LOGGER.exception("the spans of a run could not be made", extra={"run_id": str(run_id)})
