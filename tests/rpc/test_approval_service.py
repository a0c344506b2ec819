"""ApprovalService: what it hands to the engine, and how it makes pages of what that gives."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import pytest
from baton.v1 import approval_pb2, approval_service_pb2, approval_service_pb2_grpc
from google.protobuf.any_pb2 import Any

from orchestrator.engine.approval_ports import ApprovalPosition
from orchestrator.rpc.paging import PAGE_LIMIT_BYTES
from tests.rpc.fakes import FakeEngine
from tests.rpc.test_services import RUN_ID, refusal

if TYPE_CHECKING:
    from baton.v1.approval_service_pb2_grpc import ApprovalServiceAsyncStub as Approvals

Request = approval_service_pb2.ListApprovalsRequest
HASH = "ab" * 32


@pytest.fixture
def approvals(channel: grpc.aio.Channel) -> Approvals:
    return approval_service_pb2_grpc.ApprovalServiceStub(channel)


def asked(sequence: int, size: int = 0) -> tuple[approval_pb2.Approval, ApprovalPosition]:
    approval = approval_pb2.Approval(step=f"s{sequence}", request=Any(value=bytes(size)))
    return approval, ApprovalPosition(UUID(RUN_ID), sequence)


async def test_a_list_has_defaults_and_limits(engine: FakeEngine, approvals: Approvals) -> None:
    await approvals.ListApprovals(Request())
    assert engine.last("list_approvals") == (None, None, 50)
    await approvals.ListApprovals(Request(run_id=RUN_ID.upper(), page_size=5_000))
    assert engine.last("list_approvals") == (UUID(RUN_ID), None, 1_000)
    answer = await refusal(approvals.ListApprovals(Request(run_id="x", page_size=-1)))
    assert (answer.reason, sorted(answer.paths)) == ("INVALID_REQUEST", ["page_size", "run_id"])


async def test_the_next_page_begins_where_the_engine_says(engine: FakeEngine, approvals: Approvals) -> None:
    engine.approval_list, engine.more_approvals = [asked(3)], ApprovalPosition(UUID(RUN_ID), 9)
    page = await approvals.ListApprovals(Request(page_size=1))
    assert [each.step for each in page.approvals] == ["s3"]
    await approvals.ListApprovals(Request(page_size=7, page_token=page.next_page_token))
    assert engine.last("list_approvals") == (None, ApprovalPosition(UUID(RUN_ID), 9), 7)
    engine.approval_list, engine.more_approvals = [], ApprovalPosition(UUID(RUN_ID), 11)
    page = await approvals.ListApprovals(Request())
    assert page.next_page_token, "an empty page may have a next one"
    engine.more_approvals = None
    assert (await approvals.ListApprovals(Request())).next_page_token == ""


async def test_a_page_fits_one_message_and_goes_on_with_what_did_not(engine: FakeEngine, approvals: Approvals) -> None:
    third = PAGE_LIMIT_BYTES // 3
    engine.approval_list = [asked(number, third) for number in (2, 4, 6, 8)]
    page = await approvals.ListApprovals(Request())
    assert [each.step for each in page.approvals] == ["s2", "s4"]
    await approvals.ListApprovals(Request(page_token=page.next_page_token))
    assert engine.last("list_approvals")[1] == ApprovalPosition(UUID(RUN_ID), 4)


async def test_tokens_of_other_lists_are_refused(engine: FakeEngine, approvals: Approvals) -> None:
    engine.more_approvals = ApprovalPosition(UUID(RUN_ID), 9)
    token = (await approvals.ListApprovals(Request())).next_page_token
    calls = len(engine.calls)
    for request in (Request(page_token=token, run_id=RUN_ID), Request(page_token=token[:-4]), Request(page_token="x")):
        answer = await refusal(approvals.ListApprovals(request))
        assert (answer.reason, answer.paths) == ("INVALID_PAGE_TOKEN", ["page_token"])
    assert len(engine.calls) == calls


async def test_a_decision_is_handed_over_with_who_takes_it(engine: FakeEngine, approvals: Approvals) -> None:
    request = approval_service_pb2.DecideApprovalRequest(run_id=RUN_ID, step="pay", request_hash=HASH, approved=True)
    answer = await approvals.DecideApproval(request, metadata=(("baton-principal", "ada"),))
    assert answer.step.step == "pay"
    assert engine.last("decide") == (request,)
    assert engine.calls[-1][1].principal == "ada"


@pytest.mark.parametrize("value", ["", "ab", HASH[:-1] + "g", HASH.upper()])
async def test_a_hash_is_whole(value: str, engine: FakeEngine, approvals: Approvals) -> None:
    request = approval_service_pb2.DecideApprovalRequest(run_id=RUN_ID, step="pay", request_hash=value)
    assert (await refusal(approvals.DecideApproval(request))).paths == ["request_hash"]
    assert engine.calls == []
