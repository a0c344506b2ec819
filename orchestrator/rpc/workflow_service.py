"""WorkflowService: requests of the wire to calls of the engine, and back."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from baton.v1 import error_reason_pb2, workflow_service_pb2, workflow_service_pb2_grpc

from orchestrator.domain.errors import FieldFault
from orchestrator.engine.api import Workflows
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, page_size
from orchestrator.rpc.validation import RequestValidator, invalid_request

CHECK_METHOD = "/baton.v1.WorkflowService/CheckWorkflow"
"""Faults of the workflow are this method's answer: it validates its request itself."""

_WORKFLOW = "workflow."


class WorkflowService(workflow_service_pb2_grpc.WorkflowServiceServicer):
    """Serves WorkflowService by `workflows`. Requests have been validated, and the caller is known."""

    def __init__(self, workflows: Workflows, validator: RequestValidator) -> None:
        self._workflows = workflows
        self._validator = validator

    async def ApplyWorkflow(
        self, request: workflow_service_pb2.ApplyWorkflowRequest, context: object
    ) -> workflow_service_pb2.ApplyWorkflowResponse:
        """Stores a workflow."""
        if not request.workflow.name:
            text = "is required, such as `fulfil-order`: runs are submitted by it"
            raise invalid_request([FieldFault("workflow.name", "INVALID_REQUEST", text)])
        revision, existing = await self._workflows.apply(current_caller(), request.workflow)
        return workflow_service_pb2.ApplyWorkflowResponse(revision=revision, existing=existing)

    async def CheckWorkflow(
        self, request: workflow_service_pb2.CheckWorkflowRequest, context: object
    ) -> workflow_service_pb2.CheckWorkflowResponse:
        """Checks a workflow; one that breaks the rules of its own message goes no further."""
        faults = self._validator.faults(request)
        if not all(fault.path.startswith(_WORKFLOW) for fault in faults):
            raise invalid_request(faults)
        if faults:
            return workflow_service_pb2.CheckWorkflowResponse(violations=[_violation(fault) for fault in faults])
        return await self._workflows.check(current_caller(), request.workflow)

    async def GetWorkflow(
        self, request: workflow_service_pb2.GetWorkflowRequest, context: object
    ) -> workflow_service_pb2.GetWorkflowResponse:
        """Reads a revision."""
        revision = await self._workflows.get(current_caller(), request.workflow, request.revision)
        return workflow_service_pb2.GetWorkflowResponse(revision=revision)

    async def ListWorkflows(
        self, request: workflow_service_pb2.ListWorkflowsRequest, context: object
    ) -> workflow_service_pb2.ListWorkflowsResponse:
        """Lists workflows."""
        caller = current_caller()
        listing = Listing("ListWorkflows", caller.namespace)
        size = page_size(request.page_size)
        found = await self._workflows.list(caller, listing.position(request.page_token), size + 1)
        workflows, more = cut_page(found, size)
        return workflow_service_pb2.ListWorkflowsResponse(
            workflows=workflows, next_page_token=listing.token(workflows[-1].workflow) if more else ""
        )

    async def ListWorkflowRevisions(
        self, request: workflow_service_pb2.ListWorkflowRevisionsRequest, context: object
    ) -> workflow_service_pb2.ListWorkflowRevisionsResponse:
        """Lists the revisions of a workflow."""
        caller = current_caller()
        listing = Listing("ListWorkflowRevisions", caller.namespace, request.workflow)
        offset = listing.number_position(request.page_token)
        size = page_size(request.page_size)
        found = await self._workflows.list_revisions(caller, request.workflow, offset, size + 1)
        revisions, more = cut_page(found, size)
        return workflow_service_pb2.ListWorkflowRevisionsResponse(
            revisions=revisions, next_page_token=listing.token(str(offset + len(revisions))) if more else ""
        )

    async def DeleteWorkflow(
        self, request: workflow_service_pb2.DeleteWorkflowRequest, context: object
    ) -> workflow_service_pb2.DeleteWorkflowResponse:
        """Removes a workflow's name."""
        revision = await self._workflows.delete(current_caller(), request.workflow)
        return workflow_service_pb2.DeleteWorkflowResponse(revision=revision)


def _violation(fault: FieldFault) -> workflow_service_pb2.Violation:
    return workflow_service_pb2.Violation(
        path=fault.path.removeprefix(_WORKFLOW),
        reason=error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{fault.reason}"),
        message=fault.message,
    )
