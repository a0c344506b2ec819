"""Calls about workflows and workers; client.py has those about runs, schedules.py those about schedules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message

from baton.connection import Connection, Link
from baton.definitions import WorkflowDefinition
from baton.errors import Violation
from baton.v1 import (
    contract_report_pb2,
    error_reason_pb2,
    worker_pb2,
    worker_service_pb2,
    workflow_pb2,
    workflow_service_pb2,
)

if TYPE_CHECKING:
    import grpc

AnyWorkflow = WorkflowDefinition[Any, Any] | workflow_pb2.Workflow
"""A workflow written in Python, or as the message."""

_APPLY_SECONDS = 60.0
_REGISTER_SECONDS = 30.0


def message_of(workflow: AnyWorkflow) -> workflow_pb2.Workflow:
    """Returns the message of a workflow, with the descriptors of its types where it was written in Python."""
    return workflow.with_types() if isinstance(workflow, WorkflowDefinition) else workflow


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` stored: the name and the id of the revision, the revision itself, and whether it was the newest one
    already."""

    workflow: str
    revision: str
    stored: workflow_pb2.WorkflowRevision
    existing: bool


PageRequest = TypeVar("PageRequest", bound=Message)
Page = TypeVar("Page", bound=Message)


async def pages(
    connection: Connection,
    choose: Callable[[Link], grpc.aio.UnaryUnaryMultiCallable[PageRequest, Page]],
    request: PageRequest,
) -> AsyncIterator[Page]:
    """Yields what a call of a list answers, page after page; `request` is the first page's and is changed."""
    asked: Any = request
    while True:
        page: Any = await connection.call(choose, request)
        yield page
        if not page.next_page_token:
            return
        asked.page_token = page.next_page_token


class Catalogue:
    """What a client can ask about workflows and workers."""

    _connection: Connection

    async def apply(self, workflow: AnyWorkflow) -> Applied:
        """Checks and stores a workflow as its newest revision; the same content gives the same revision again.

        Raises InvalidRequest (WORKFLOW_INVALID), whose `violations` name every fault by its path.
        """
        request = workflow_service_pb2.ApplyWorkflowRequest(workflow=message_of(workflow))
        call = self._connection.call(lambda link: link.workflows.ApplyWorkflow, request, timeout=_APPLY_SECONDS)
        answer = await call
        return Applied(answer.revision.workflow, answer.revision.revision, answer.revision, answer.existing)

    async def check(self, workflow: AnyWorkflow) -> list[Violation]:
        """Makes every check of apply and stores nothing; returns the faults, none where the workflow is valid."""
        request = workflow_service_pb2.CheckWorkflowRequest(workflow=message_of(workflow))
        call = self._connection.call(lambda link: link.workflows.CheckWorkflow, request, timeout=_APPLY_SECONDS)
        return [Violation(each.path, _reason(each.reason), each.message) for each in (await call).violations]

    async def get_workflow(self, workflow: str, revision: str = "") -> workflow_pb2.WorkflowRevision:
        """Returns one revision of a workflow, by default the newest."""
        request = workflow_service_pb2.GetWorkflowRequest(workflow=workflow, revision=revision)
        return (await self._connection.call(lambda link: link.workflows.GetWorkflow, request)).revision

    async def list_workflows(self, *, page_size: int = 0) -> AsyncIterator[workflow_pb2.WorkflowRevision]:
        """Yields the newest revision of each workflow, by name, over all pages."""
        request = workflow_service_pb2.ListWorkflowsRequest(page_size=page_size)
        async for page in pages(self._connection, lambda link: link.workflows.ListWorkflows, request):
            for revision in page.workflows:
                yield revision

    async def list_revisions(
        self, workflow: str, *, page_size: int = 0
    ) -> AsyncIterator[workflow_pb2.WorkflowRevision]:
        """Yields the revisions of a workflow, newest first, over all pages."""
        request = workflow_service_pb2.ListWorkflowRevisionsRequest(workflow=workflow, page_size=page_size)
        async for page in pages(self._connection, lambda link: link.workflows.ListWorkflowRevisions, request):
            for revision in page.revisions:
                yield revision

    async def delete_workflow(self, workflow: str) -> None:
        """Removes a workflow's name; its runs keep their revision."""
        request = workflow_service_pb2.DeleteWorkflowRequest(workflow=workflow)
        await self._connection.call(lambda link: link.workflows.DeleteWorkflow, request)

    async def register_worker(
        self,
        worker: str,
        address: str,
        *,
        contract: FileDescriptorSet | None = None,
        services: Iterable[str] = (),
        max_in_flight: int = 0,
        force: bool = False,
    ) -> worker_pb2.Worker:
        """Adds an address to a worker; Baton reads its contract by server reflection unless one is given.

        Raises ContractBreaksWorkflows where that breaks stored workflows or runs in flight, unless with `force`.
        """
        request = worker_service_pb2.RegisterWorkerRequest(
            worker=worker,
            address=address,
            contract=contract,
            services=services,
            max_in_flight=max_in_flight,
            force=force,
        )
        return (await self._register(request)).worker

    async def check_worker(
        self,
        worker: str,
        address: str,
        *,
        contract: FileDescriptorSet | None = None,
        services: Iterable[str] = (),
    ) -> contract_report_pb2.ContractReport:
        """Makes every check of register_worker and stores nothing; returns what the contract would break."""
        request = worker_service_pb2.RegisterWorkerRequest(
            worker=worker, address=address, contract=contract, services=services, validate_only=True
        )
        return (await self._register(request)).report

    async def _register(
        self, request: worker_service_pb2.RegisterWorkerRequest
    ) -> worker_service_pb2.RegisterWorkerResponse:
        return await self._connection.call(lambda link: link.workers.RegisterWorker, request, timeout=_REGISTER_SECONDS)

    async def get_worker(self, worker: str) -> worker_pb2.Worker:
        """Returns one worker."""
        request = worker_service_pb2.GetWorkerRequest(worker=worker)
        return (await self._connection.call(lambda link: link.workers.GetWorker, request)).worker

    async def list_workers(self, *, page_size: int = 0) -> AsyncIterator[worker_pb2.Worker]:
        """Yields the workers, by name, over all pages."""
        request = worker_service_pb2.ListWorkersRequest(page_size=page_size)
        async for page in pages(self._connection, lambda link: link.workers.ListWorkers, request):
            for worker in page.workers:
                yield worker

    async def drain_worker(self, worker: str, address: str = "") -> worker_pb2.Worker:
        """Stops new calls to a worker, or to one of its addresses; calls in flight go on."""
        request = worker_service_pb2.DrainWorkerRequest(worker=worker, address=address)
        return (await self._connection.call(lambda link: link.workers.DrainWorker, request)).worker

    async def delete_worker(self, worker: str, address: str = "") -> None:
        """Removes a worker, or one of its addresses."""
        request = worker_service_pb2.DeleteWorkerRequest(worker=worker, address=address)
        await self._connection.call(lambda link: link.workers.DeleteWorker, request)


def _reason(reason: error_reason_pb2.ErrorReason.ValueType) -> str:
    return error_reason_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
