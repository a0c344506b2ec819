"""Page tokens, page sizes, and pages over the wire."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import pytest
from baton.v1 import (
    event_pb2,
    replica_pb2,
    replica_service_pb2,
    replica_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from orchestrator.domain.errors import InvalidPageToken
from orchestrator.rpc.paging import PAGE_LIMIT_BYTES, Listing, cut_page, page_size
from tests.rpc.fakes import FakeEngine, told

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_tokens_give_their_position_back() -> None:
    listing = Listing("ListRuns", "default", "state = FAILED")
    assert listing.position("") == ""
    assert listing.position(listing.token("ü/1")) == "ü/1"
    assert listing.id_position(listing.token(RUN_ID)) == UUID(RUN_ID)
    assert listing.number_position(listing.token("7")) == 7
    assert listing.number_position("") == 0
    assert listing.id_position("") is None


@pytest.mark.parametrize(
    "other",
    [
        Listing("ListWorkers", "default", "a"),
        Listing("ListRuns", "other", "a"),
        Listing("ListRuns", "default", "b"),
        Listing("ListRuns", "default", ""),
    ],
)
def test_tokens_fit_one_listing_only(other: Listing) -> None:
    with pytest.raises(InvalidPageToken):
        other.position(Listing("ListRuns", "default", "a").token("x"))


@pytest.mark.parametrize("token", ["x", "!!!!", "AAAA", "é", "A" * 600, "=", "\0", " "])
def test_other_tokens_are_refused(token: str) -> None:
    for read in (Listing("m", "n").position, Listing("m", "n").id_position, Listing("m", "n").number_position):
        with pytest.raises(InvalidPageToken):
            read(token)


@pytest.mark.parametrize("position", ["-1", "0", "1.5", "x", "99999999999999999999", "٣"])
def test_positions_of_the_wrong_kind_are_refused(position: str) -> None:
    listing = Listing("m", "n")
    for read in (listing.number_position, listing.id_position):
        with pytest.raises(InvalidPageToken):
            read(listing.token(position))


def test_changed_tokens_are_refused() -> None:
    listing = Listing("m", "n")
    token = listing.token("1")
    for index in range(11):  # The version and the hash.
        changed = token[:index] + ("B" if token[index] != "B" else "C") + token[index + 1 :]
        with pytest.raises(InvalidPageToken):
            listing.position(changed)


def test_sizes() -> None:
    assert [page_size(asked) for asked in (0, 1, 1000, 1001, 2**31 - 1)] == [50, 1, 1000, 1000, 1000]
    assert page_size(0, 200) == 200


def test_a_page_of_large_items_ends_early_but_is_never_empty() -> None:
    large = run_pb2.Run(workflow="x" * (PAGE_LIMIT_BYTES // 2))
    assert cut_page([large] * 4, 3) == ([large], True)
    huge = run_pb2.Run(workflow="x" * PAGE_LIMIT_BYTES)
    assert cut_page([huge], 3) == ([huge], False)
    assert cut_page([], 3) == ([], False)


async def test_runs_are_paged(engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub) -> None:
    engine.run_list = [run_pb2.Run(run_id=str(UUID(int=n))) for n in range(7, 0, -1)]
    request = run_service_pb2.ListRunsRequest(page_size=3, filter="state = FAILED")
    seen, pages = [], 0
    while True:
        page = await runs.ListRuns(request)
        seen += [run.run_id for run in page.runs]
        pages += 1
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert (seen, pages) == ([run.run_id for run in engine.run_list], 3)

    other = await runs.ListRuns(run_service_pb2.ListRunsRequest(page_size=3, filter="state = PENDING"))
    request.page_token = other.next_page_token
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.ListRuns(request)
    assert told(caught.value).reason == "INVALID_PAGE_TOKEN"
    assert told(caught.value).paths == ["page_token"]


async def test_events_are_paged(engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub) -> None:
    engine.event_list = [event_pb2.RunEvent(sequence=n) for n in range(1, 6)]
    request = run_service_pb2.ListRunEventsRequest(run_id=RUN_ID, page_size=3)
    first = await runs.ListRunEvents(request)
    request.page_token = first.next_page_token
    second = await runs.ListRunEvents(request)
    assert [[each.sequence for each in page.events] for page in (first, second)] == [[1, 2, 3], [4, 5]]
    assert second.next_page_token == ""
    request.run_id = str(UUID(int=1))
    with pytest.raises(grpc.aio.AioRpcError):
        await runs.ListRunEvents(request)


async def test_steps_are_paged(engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub) -> None:
    engine.step_list = [run_pb2.RunStep(step=f"s{number}") for number in range(5)]
    request = run_service_pb2.ListRunStepsRequest(run_id=RUN_ID, page_size=3)
    first = await runs.ListRunSteps(request)
    request.page_token = first.next_page_token
    second = await runs.ListRunSteps(request)
    assert [[each.step for each in page.steps] for page in (first, second)] == [["s0", "s1", "s2"], ["s3", "s4"]]
    assert second.next_page_token == ""
    request.run_id = str(UUID(int=1))
    with pytest.raises(grpc.aio.AioRpcError):
        await runs.ListRunSteps(request)


async def test_workers_and_workflows_are_paged(
    engine: FakeEngine,
    workers: worker_service_pb2_grpc.WorkerServiceAsyncStub,
    workflows: workflow_service_pb2_grpc.WorkflowServiceAsyncStub,
) -> None:
    names = ["a", "b", "c"]
    engine.worker_list = [worker_pb2.Worker(name=name) for name in names]
    engine.revision_list = [workflow_pb2.WorkflowRevision(workflow=name) for name in names]
    first = await workers.ListWorkers(worker_service_pb2.ListWorkersRequest(page_size=2))
    rest = await workers.ListWorkers(worker_service_pb2.ListWorkersRequest(page_token=first.next_page_token))
    assert [each.name for each in (*first.workers, *rest.workers)] == names
    page = await workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest(page_size=2))
    more = await workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest(page_token=page.next_page_token))
    assert [each.workflow for each in (*page.workflows, *more.workflows)] == names
    asked = workflow_service_pb2.ListWorkflowRevisionsRequest(workflow="w", page_size=2)
    start = await workflows.ListWorkflowRevisions(asked)
    asked.page_token = start.next_page_token
    end = await workflows.ListWorkflowRevisions(asked)
    assert [each.workflow for each in (*start.revisions, *end.revisions)] == names
    assert engine.last("list_revisions") == ("w", 2, 3)


async def test_replicas_and_faults_are_paged(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    stub: Any = replica_service_pb2_grpc.ReplicaServiceStub(channel)
    engine.replica_list = [replica_pb2.Replica(replica_id=str(UUID(int=number))) for number in range(1, 6)]
    replicas = replica_service_pb2.ListReplicasRequest(page_size=3, include_ended=True)
    first = await stub.ListReplicas(replicas)
    replicas.page_token = first.next_page_token
    second = await stub.ListReplicas(replicas)
    assert [each.replica_id[-1] for page in (first, second) for each in page.replicas] == list("12345")
    assert (len(first.replicas), second.next_page_token) == (3, "")
    assert engine.last("list") == (UUID(int=3), 4, True)
    replicas.include_ended = False
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListReplicas(replicas)
    assert told(caught.value).reason == "INVALID_PAGE_TOKEN"

    engine.fault_list = [replica_pb2.FoundFault(count=number) for number in range(5)]
    faults = replica_service_pb2.ListFaultsRequest(page_size=2)
    counts = []
    while True:
        page = await stub.ListFaults(faults)
        counts.append([each.count for each in page.faults])
        faults.page_token = page.next_page_token
        if not faults.page_token:
            break
    assert counts == [[0, 1], [2, 3], [4]]
