"""ApprovalService: requests of the wire to calls of the engine, and back."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from uuid import UUID

from baton.v1 import approval_service_pb2, approval_service_pb2_grpc

from orchestrator.engine.api import Approvals
from orchestrator.engine.approval_ports import ApprovalPosition
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, invalid_page_token, page_size


class ApprovalService(approval_service_pb2_grpc.ApprovalServiceServicer):
    """Serves ApprovalService by `approvals`. Requests have been validated, and the caller is known."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    async def ListApprovals(
        self, request: approval_service_pb2.ListApprovalsRequest, context: object
    ) -> approval_service_pb2.ListApprovalsResponse:
        """Lists what waits for a decision."""
        caller = current_caller()
        run_id = UUID(request.run_id) if request.run_id else None
        listing = Listing("ListApprovals", caller.namespace, str(run_id or ""))
        after = _read_position(listing.position(request.page_token))
        found, following = await self._approvals.list(caller, run_id, after, page_size(request.page_size))
        approvals, cut = cut_page([approval for approval, _ in found], len(found))
        if cut:
            following = found[len(approvals) - 1][1]
        token = listing.token(f"{following.run_id}/{following.sequence}") if following is not None else ""
        return approval_service_pb2.ListApprovalsResponse(approvals=approvals, next_page_token=token)

    async def DecideApproval(
        self, request: approval_service_pb2.DecideApprovalRequest, context: object
    ) -> approval_service_pb2.DecideApprovalResponse:
        """Takes a decision."""
        return await self._approvals.decide(current_caller(), request)


def _read_position(text: str) -> ApprovalPosition | None:
    if not text:
        return None
    run_id, _, sequence = text.partition("/")
    try:
        position = ApprovalPosition(UUID(run_id), int(sequence))
    except ValueError:
        raise invalid_page_token() from None
    if not 0 < position.sequence < 1 << 63:
        raise invalid_page_token()
    return position
