"""Workflows: checks them against the namespace's contracts and keeps them as immutable revisions."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from baton.v1 import error_reason_pb2, workflow_pb2, workflow_service_pb2

from orchestrator.contracts.compile import Checked, check_workflow
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import FieldFault, WorkflowInvalid, WorkflowNotFound
from orchestrator.domain.ids import RevisionKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import RevisionRow, WorkflowStore
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.ports import Clock

INLINE_CACHE = 256
"""Inline workflows whose check is remembered, until the catalogue changes."""


class WorkflowCatalogue:
    """Workflows of the caller's namespace."""

    def __init__(self, catalogue: Catalogue, store: WorkflowStore, clock: Clock) -> None:
        self._catalogue, self._store, self._clock = catalogue, store, clock
        self._inline: OrderedDict[tuple[str, bytes, int], CompiledWorkflow] = OrderedDict()

    async def apply(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> tuple[workflow_pb2.WorkflowRevision, bool]:
        """See ApplyWorkflow."""
        checked = await self._check(caller, workflow, require_name=True)
        compiled = _require_valid(checked, "workflow")
        doubts = self._catalogue.doubts
        row, existing = await self._store.put_revision(self._row(caller, workflow.name, compiled))
        if doubts == self._catalogue.doubts:
            self._catalogue.remember(row.key, compiled)
        # Which is the newest is for the database to say: another replica may have applied one meanwhile.
        self._catalogue.forget_newest(row.key.namespace, row.key.workflow)
        return _revision(row, checked), existing

    async def check(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> workflow_service_pb2.CheckWorkflowResponse:
        """See CheckWorkflow."""
        checked = await self._check(caller, workflow, require_name=False)
        response = workflow_service_pb2.CheckWorkflowResponse()
        for violation in checked.violations:
            response.violations.add(
                path=violation.path,
                reason=error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{violation.reason}"),
                message=violation.message,
            )
        if checked.compiled is not None:
            response.revision = checked.compiled.revision
            response.edges.extend(_edges(checked))
        return response

    async def get(self, caller: Caller, workflow: str, revision: str) -> workflow_pb2.WorkflowRevision:
        """See GetWorkflow."""
        compiled = await self._catalogue.compiled(RevisionKey(caller.namespace, workflow, revision))
        row = await self._store.get_revision(RevisionKey(caller.namespace, workflow, compiled.revision))
        if row is None:
            raise WorkflowNotFound(f"no workflow is named {workflow}; apply it with ApplyWorkflow")
        parts = [
            (digest[:12], contract)
            for digest in row.contract_digests
            if (contract := self._catalogue.contract(digest)) is not None
        ]
        applied = await self._catalogue.children(caller.namespace, compiled.definition)
        return _revision(row, check_workflow(compiled.definition, parts, applied=applied))

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[workflow_pb2.WorkflowRevision]:
        """See ListWorkflows."""
        return [_revision(row, None) for row in await self._store.list_workflows(caller.namespace, after, limit)]

    async def list_revisions(
        self, caller: Caller, workflow: str, offset: int, limit: int
    ) -> Sequence[workflow_pb2.WorkflowRevision]:
        """See ListWorkflowRevisions."""
        rows = await self._store.list_revisions(caller.namespace, workflow, offset, limit)
        if not rows and not offset:
            raise WorkflowNotFound(f"no workflow is named {workflow}; apply it with ApplyWorkflow")
        return [_revision(row, None) for row in rows]

    async def delete(self, caller: Caller, workflow: str) -> workflow_pb2.WorkflowRevision:
        """See DeleteWorkflow."""
        row = await self._store.delete_workflow(caller.namespace, workflow)
        self._catalogue.forget_newest(caller.namespace, workflow)
        if row is None:
            raise WorkflowNotFound(f"no workflow is named {workflow}; list them with ListWorkflows")
        return _revision(row, None)

    async def inline(
        self, caller: Caller, workflow: workflow_pb2.Workflow, store: bool
    ) -> tuple[RevisionKey, CompiledWorkflow]:
        """Checks an inline workflow and stores its revision, under no name, where `store`. Errors: WorkflowInvalid."""
        # First: what is remembered is so by the version that is read then, for all who wait for it together.
        await self._catalogue.meet(caller.namespace)
        applied = await self._catalogue.children(caller.namespace, workflow)
        content = hashlib.sha256(workflow.SerializeToString(deterministic=True))
        for child in applied.values():
            content.update(child.revision.encode())
        cache_key = (caller.namespace, content.digest(), self._catalogue.version(caller.namespace))
        compiled = self._inline.get(cache_key)
        if compiled is None:
            compiled = _require_valid(await self._check(caller, workflow, require_name=False), "inline_workflow")
        key = RevisionKey(caller.namespace, "", compiled.revision)
        if store and self._catalogue.cached(key) is None:
            doubts = -1
            while doubts != self._catalogue.doubts:  # It may be in no database any more.
                doubts = self._catalogue.doubts
                await self._store.put_revision(self._row(caller, "", compiled))
            self._catalogue.remember(key, compiled)
        self._inline[cache_key] = compiled
        while len(self._inline) > INLINE_CACHE:
            self._inline.popitem(last=False)
        return key, compiled

    async def _check(self, caller: Caller, workflow: workflow_pb2.Workflow, *, require_name: bool) -> Checked:
        await self._catalogue.meet(caller.namespace)
        applied = await self._catalogue.children(caller.namespace, workflow)
        contracts = self._catalogue.contracts(caller.namespace)
        return check_workflow(workflow, contracts, require_name=require_name, applied=applied)

    def _row(self, caller: Caller, name: str, compiled: CompiledWorkflow) -> RevisionRow:
        key = RevisionKey(caller.namespace, name, compiled.revision)
        definition = compiled.definition.SerializeToString(deterministic=True)
        return RevisionRow(key, definition, compiled.contract_digests, self._clock.now())


def _require_valid(checked: Checked, root: str) -> CompiledWorkflow:
    if checked.compiled is not None:
        return checked.compiled
    faults = [
        FieldFault(f"{root}.{one.path}" if one.path else root, one.reason, one.message) for one in checked.violations
    ]
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise WorkflowInvalid(f"{first.path}: {first.message}{more}", faults=faults)


def _revision(row: RevisionRow, checked: Checked | None) -> workflow_pb2.WorkflowRevision:
    return workflow_pb2.WorkflowRevision(
        workflow=row.key.workflow,
        revision=row.key.revision,
        definition=workflow_pb2.Workflow.FromString(row.definition),
        create_time=to_timestamp(row.create_time),
        edges=_edges(checked) if checked is not None else (),
    )


def _edges(checked: Checked) -> Iterable[workflow_pb2.Edge]:
    for edge in checked.edges:
        yield workflow_pb2.Edge(from_step=edge.from_step, to_step=edge.to_step, data=edge.data)
