"""The simulated store of what waits for a person's decision, and the people who decide.

They list what waits, decide, and may be wrong: two decide otherwise at the same time, one who submitted the run tries
to, one decides on another request than the one that waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from baton.v1 import approval_pb2, approval_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import ApprovalChanged, ApprovalNotFound, ApproverNotAllowed, BatonError
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import EventKind, RunState
from orchestrator.engine.approval_ports import ApprovalPage, ApprovalPosition, ApprovalRow
from orchestrator.postgres.approvals import LOOKED_AT, PAGE_BYTES
from tests.simulation.database import Database
from tests.simulation.handlers import ASK_AGAIN
from tests.simulation.stores import Link
from tests.simulation.tables import Run
from tests.simulation.workflows import APPROVERS, NAMESPACES

if TYPE_CHECKING:
    from tests.simulation.world import World

ENDS_THE_WAIT = (
    EventKind.STEP_SUCCEEDED,
    EventKind.STEP_FAILED,
    EventKind.STEP_SKIPPED,
    EventKind.STEP_CANCELLED,
    EventKind.APPROVAL_DECIDED,
)


class SimulatedApprovals:
    """ApprovalStore: looks at so many requests a page, and gives so many bytes of payloads."""

    def __init__(
        self, database: Database, link: Link, looked_at: int = LOOKED_AT, page_bytes: int = PAGE_BYTES
    ) -> None:
        self._database, self._link, self._looked_at, self._page_bytes = database, link, looked_at, page_bytes

    async def list_approvals(
        self, namespace: str, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> ApprovalPage:
        """See ApprovalStore.list_approvals."""
        return await self._link.ask("list_approvals", lambda: self._list(namespace, run_id, after, limit))

    def _list(self, namespace: str, run_id: UUID | None, after: ApprovalPosition | None, limit: int) -> ApprovalPage:
        asked = self._asked(namespace, run_id, after)
        waiting = [one for one in asked if self._waits(*one)]
        shown: list[ApprovalRow] = []
        total_bytes = 0
        for run, position in waiting[:limit]:
            event = run.events[position].row
            total_bytes += len(event.payload or b"")
            if shown and total_bytes > self._page_bytes:
                break
            shown.append(ApprovalRow(run.key, run.revision.workflow, run.new.principal, event))
        if len(shown) < len(waiting):
            return ApprovalPage(shown, shown[-1].position)
        if len(asked) == self._looked_at:
            run, position = asked[-1]
            return ApprovalPage(shown, ApprovalPosition(run.key.run_id, run.events[position].row.sequence))
        return ApprovalPage(shown, None)

    def _asked(self, namespace: str, run_id: UUID | None, after: ApprovalPosition | None) -> list[tuple[Run, int]]:
        """Requests after a position, waiting or not, from the oldest run on that is under way."""
        runs = [run for run in self._database.runs.values() if run.key.namespace == namespace]
        oldest = min((run.key.run_id for run in runs if run.state == RunState.RUNNING), default=None)
        found = [
            (run, position)
            for run in sorted(runs, key=lambda run: run.key.run_id)
            if oldest is not None and run.key.run_id >= oldest and run_id in (None, run.key.run_id)
            for position, event in enumerate(run.events)
            if event.row.kind == EventKind.APPROVAL_REQUESTED
            and (after is None or (run.key.run_id, event.row.sequence) > (after.run_id, after.sequence))
        ]
        return found[: self._looked_at]

    @staticmethod
    def _waits(run: Run, position: int) -> bool:
        step = run.events[position].row.step
        later = (event.row for event in run.events[position + 1 :])
        return run.state == RunState.RUNNING and not any(
            row.step == step and row.kind in ENDS_THE_WAIT for row in later
        )


class Approver:
    """People who decide, in all namespaces, as long as the simulation goes on."""

    def __init__(self, world: World) -> None:
        self._world, self._draws = world, world.draws

    async def live(self) -> None:
        """Looks now and then at what waits, and decides on some of it."""
        while True:
            await asyncio.sleep(0.3 + self._draws.random() * 2)
            for namespace in NAMESPACES:
                await self._look(namespace, Caller(namespace, self._draws.choice(APPROVERS), "grpc"))

    async def _look(self, namespace: str, caller: Caller) -> None:
        try:
            shown, _ = await self._world.any_process().call(
                lambda engine: engine.approvals.list(caller, None, None, 10), 3.0
            )
        except ASK_AGAIN:
            return
        await asyncio.gather(*(self._decide(namespace, each) for each, _ in shown))

    async def _decide(self, namespace: str, approval: approval_pb2.Approval) -> None:
        self._world.judge.listed(RunKey(namespace, UUID(approval.run_id)), approval)
        draws = self._draws
        tries = [self._ask(namespace, approval, draws.choice((*APPROVERS, "ada")), draws.random() < 0.8)]
        if draws.random() < 0.4:
            tries.append(self._ask(namespace, approval, draws.choice(APPROVERS), draws.random() < 0.5))
        await asyncio.gather(*tries)

    async def _ask(self, namespace: str, approval: approval_pb2.Approval, principal: str, approved: bool) -> None:
        request = approval_service_pb2.DecideApprovalRequest(
            run_id=approval.run_id, step=approval.step, request_hash=approval.request_hash, approved=approved
        )
        if self._draws.random() < 0.1:
            request.request_hash = "0" * 64
        caller = Caller(namespace, principal, "grpc")

        def verb(engine: Any) -> Any:
            return engine.approvals.decide(caller, request)

        for _ in range(self._draws.choice((1, 1, 4))):
            try:
                await self._world.any_process().call(verb, 4.0)
            except ASK_AGAIN:
                continue
            except (ApprovalNotFound, ApprovalChanged, ApproverNotAllowed):
                return
            except BatonError as error:
                self._world.fault("a decision was refused", error)
                return
            self._world.judge.decided(RunKey(namespace, UUID(approval.run_id)), principal, request)
