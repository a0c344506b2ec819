"""What stands in the place of safeguards of work streams; see mutants.py."""

from __future__ import annotations

from typing import Any

from baton.worker.v1 import work_pb2

from orchestrator.outbound.work_session import Assigned, WorkSession

_opened, _received = WorkSession.opened, WorkSession.received


def take_all_for_held(self: WorkSession, opening: work_pb2.WorkerOpening, draining: bool = False) -> int:
    """Believes that a worker which comes back has all that it was given."""
    opening.held.extend(self._pending)
    return _opened(self, opening, draining)


def cancel_here_alone(self: WorkSession, assigned: Assigned) -> None:
    """Tells no worker what was given up."""
    self._pending.pop(assigned.id, None)


def answer_each_outcome(self: WorkSession, frame: work_pb2.WorkerFrame) -> None:
    """Takes a second outcome of an assignment for one, too."""
    for outcome in frame.outcomes:
        assigned = self._pending.get(outcome.id)
        if assigned is not None:
            self._tell(assigned, self._answer(assigned, outcome))
        self._acknowledged.append(outcome.id)
    del frame.outcomes[:]
    _received(self, frame)


def acknowledge_nothing(self: WorkSession, frame: work_pb2.WorkerFrame) -> None:
    """Lets workers keep every outcome."""
    _received(self, frame)
    self._acknowledged.clear()


def registered_alone(self: Any) -> int:
    """Goes by what was registered, whatever a worker says."""
    return int(self._registered_max)
