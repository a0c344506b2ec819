"""Cancel: ends a run by the wish of a caller."""

from __future__ import annotations

from uuid import UUID

from baton.v1 import run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import DatabaseUnavailable, RunEnded
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import CancelRequest
from orchestrator.domain.states import RunState
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.ownership import Ownership

END_SECONDS = 10.0
"""How long a cancellation may take to be durable."""


class Canceller:
    """Cancels runs of the caller's namespace."""

    def __init__(self, driver: Driver, reader: RunReader, ownership: Ownership) -> None:
        self._driver, self._reader, self._ownership = driver, reader, ownership

    async def cancel(self, caller: Caller, run_id: UUID, reason: str) -> run_pb2.Run:
        """See CancelRun."""
        key = RunKey(caller.namespace, run_id)
        view = run_service_pb2.RUN_VIEW_BASIC
        live = await self._ownership.find(key)
        if live is not None and not live.run.ended:
            self._driver.advance(live, CancelRequest(reason, caller.principal))
        undoing = live.run.undoing if live is not None and live.run.state is RunState.UNDOING else None
        if live is not None and undoing is None:
            run = await self._reader.wait_for_end(key, END_SECONDS, view)
        elif live is not None and not await live.durable(live.run.sequence):
            raise _unknown()
        else:
            run, _ = await self._reader.get(caller, run_id, view)
        if run.state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING):
            raise _unknown()
        if run.state == run_pb2.RUN_STATE_CANCELLED or (undoing is not None and undoing.failure is None):
            return run
        name = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
        if run.state == run_pb2.RUN_STATE_UNDOING:
            raise RunEnded("the run has failed, and is being undone", metadata={"run_id": str(run_id), "state": name})
        raise RunEnded(f"the run has ended as {name}", metadata={"run_id": str(run_id), "state": name})


def _unknown() -> DatabaseUnavailable:
    return DatabaseUnavailable("it is not known whether the run is cancelled; cancel it again")
