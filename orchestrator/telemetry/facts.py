"""Facts of the engine as log lines. Events of runs are not logged: they are in the journal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from orchestrator.domain.events import Event
from orchestrator.domain.ids import EndpointKey, RunKey
from orchestrator.domain.run import Run
from orchestrator.engine.observer import CircuitState, FiringOutcome


class LogObserver:
    """Implements engine.observer.Observer."""

    def __init__(self) -> None:
        self._log = logging.getLogger("baton.engine")

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Says nothing."""

    def circuit_changed(self, endpoint: EndpointKey, state: CircuitState) -> None:
        """Logs a circuit that opened or closed."""
        self._log.warning(
            "circuit changed", extra={"worker": endpoint.worker, "address": endpoint.address, "state": state}
        )

    def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
        """Says nothing."""

    def run_forgotten(self, key: RunKey, why: str) -> None:
        """Logs a run that this replica gave up."""
        self._log.warning("run forgotten", extra={"namespace": key.namespace, "run": str(key.run_id), "why": why})

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        """Logs firings that started no run because something is wrong; the others are in the schedule's view."""
        if outcome in ("missed", "refused", "delayed", "failed"):
            told = {
                "namespace": namespace,
                "schedule": schedule,
                "fire_time": fire_time,
                "outcome": outcome,
                "why": why,
            }
            self._log.warning("schedule did not fire", extra=told)

    def fault_found(self, fault: str, count: int, repaired: bool) -> None:
        """Logs what should not exist."""
        self._log.error("fault found", extra={"fault": fault, "count": count, "repaired": repaired})

    def loop_stalled(self, seconds: float) -> None:
        """Logs an event loop that was busy for too long."""
        self._log.warning("event loop stalled", extra={"seconds": round(seconds, 3)})
