"""Approvals: what waits for a person's decision, and the decision.

A decision is of one request, known by its hash, and is taken once: whether it may be is looked at in the same tick in
which the core hears of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from baton.v1 import approval_pb2, approval_service_pb2, event_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import ApprovalChanged, ApprovalNotFound, ApproverNotAllowed, OwnerUnavailable
from orchestrator.domain.events import ApprovalDecided, Payload
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Decided
from orchestrator.domain.run import Run
from orchestrator.domain.waits import ApprovalAwaited
from orchestrator.engine.approval_ports import ApprovalPosition, ApprovalRow, ApprovalStore
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import from_timestamp, set_any
from orchestrator.engine.ownership import Ownership
from orchestrator.engine.ports import Clock

Request = approval_service_pb2.DecideApprovalRequest


class Approvals:
    """Implements api.Approvals."""

    def __init__(
        self, driver: Driver, ownership: Ownership, reader: RunReader, store: ApprovalStore, clock: Clock
    ) -> None:
        self._driver, self._ownership, self._reader = driver, ownership, reader
        self._store, self._clock = store, clock

    async def list(
        self, caller: Caller, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> tuple[Sequence[tuple[approval_pb2.Approval, ApprovalPosition]], ApprovalPosition | None]:
        """See ListApprovals. What nobody decided on in time is left out, also where no replica has seen that yet."""
        page = await self._store.list_approvals(caller.namespace, run_id, after, limit)
        now = self._clock.now()
        shown = [(_render(row), row.position) for row in page.rows]
        return [each for each in shown if from_timestamp(each[0].expire_time) > now], page.after

    async def decide(self, caller: Caller, request: Request) -> approval_service_pb2.DecideApprovalResponse:
        """See DecideApproval."""
        key = RunKey(caller.namespace, UUID(request.run_id))
        live = await self._ownership.find(key)
        if live is None:
            run = await self._reader.fold(key)
            if not _is_repeated(run, caller, request):
                raise _not_found(request, "the run has ended")
        else:
            run = live.run
            try:
                self._take(live, caller, request)
            except ApprovalNotFound:
                await live.durable(run.sequence)  # What it says of the step must not be taken back.
                raise
            if not await live.durable(run.sequence):
                raise OwnerUnavailable("it is not known whether the decision was kept; send it again")
        steps = await self._reader.list_steps(
            caller, key.run_id, run.indexes[request.step], 1, run_service_pb2.RUN_VIEW_BASIC
        )
        return approval_service_pb2.DecideApprovalResponse(step=steps[0])

    def _take(self, live: LiveRun, caller: Caller, request: Request) -> None:
        """Lets a decision happen to a run, where it has not already. Errors: those of `_require`."""
        if _is_repeated(live.run, caller, request):
            return
        index = _require(live.run, caller, request, self._clock.now())
        given = Decided(index, request.request_hash, request.approved, caller.principal, request.reason)
        if not self._driver.advance(live, given).events:
            raise _not_found(request, "its time is over")


def _render(row: ApprovalRow) -> approval_pb2.Approval:
    event = event_pb2.RunEvent.FromString(row.event.header)
    asked = event.approval_requested
    approval = approval_pb2.Approval(
        run_id=str(row.key.run_id),
        step=event.step,
        workflow=row.workflow,
        method=asked.method,
        request_hash=asked.request_hash,
        principal=row.principal,
        approvers=asked.approvers,
        description=asked.description,
        create_time=event.time,
        expire_time=asked.expire_time,
    )
    set_any(approval.request, Payload(row.event.payload_type, row.event.payload or b""))
    return approval


def _is_repeated(run: Run, caller: Caller, request: Request) -> bool:
    """Tells whether this very decision was taken already. Errors: ApprovalNotFound where another one was."""
    index = run.indexes.get(request.step)
    decided = run.steps[index].decided if index is not None else None
    if decided is None:
        return False
    asked = (request.request_hash, request.approved, caller.principal)
    if asked == (decided.request_hash, decided.approved, decided.principal):
        return True
    raise _not_found(request, f"{decided.principal} has {_verb(decided)} it")


def _verb(decided: ApprovalDecided) -> str:
    return "approved" if decided.approved else "denied"


def _require(run: Run, caller: Caller, request: Request, now: int) -> int:
    """Returns the step whose request the caller may decide on. Errors: ApprovalNotFound, ApproverNotAllowed,
    ApprovalChanged."""
    index = run.indexes.get(request.step)
    if index is None:
        raise _not_found(request, "the run has no such step")
    step = run.steps[index]
    approval, wait = step.spec.approval, step.wait
    if approval is None:
        raise _not_found(request, "its request needs none")
    if not isinstance(wait, ApprovalAwaited):
        raise _not_found(request, f"it is {step.state.name}")
    if now >= wait.expire_time:
        raise _not_found(request, "its time is over")
    metadata = {"run_id": request.run_id, "step": request.step}
    if caller.principal == run.principal:
        text = f"{caller.principal} submitted the run: somebody else has to decide on its requests"
        raise ApproverNotAllowed(text, metadata=metadata)
    if approval.approvers and caller.principal not in approval.approvers:
        names = ", ".join(approval.approvers[:5]) + (" and others" if len(approval.approvers) > 5 else "")
        text = f"{caller.principal} is not among the approvers of step {request.step}: {names}"
        raise ApproverNotAllowed(text, metadata=metadata)
    if wait.request_hash != request.request_hash:
        text = "request_hash: another request waits than the one that was decided on; look at it with ListApprovals"
        raise ApprovalChanged(text, metadata=metadata | {"request_hash": wait.request_hash})
    return index


def _not_found(request: Request, why: str) -> ApprovalNotFound:
    text = f"step {request.step} of the run waits for no decision: {why}"
    return ApprovalNotFound(text, metadata={"run_id": request.run_id, "step": request.step})
