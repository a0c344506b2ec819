"""A client of the tests: the three services as generated, and short ways to say what tests say often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from baton.v1 import (
    approval_pb2,
    approval_service_pb2,
    approval_service_pb2_grpc,
    event_pb2,
    limit_pb2,
    limit_service_pb2,
    limit_service_pb2_grpc,
    replica_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2_grpc,
    step_service_pb2,
    step_service_pb2_grpc,
    worker_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

T = TypeVar("T")

GRPC_ROUNDING = 1.01
"""gRPC sends the time of a call with few digits, rounded up: what arrives may be as much longer."""

ENDED = frozenset({run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED})
ENDING = frozenset({"run_succeeded", "run_failed", "run_cancelled"})
BASIC, FULL = run_service_pb2.RUN_VIEW_BASIC, run_service_pb2.RUN_VIEW_FULL


def workflow(definition: dict[str, Any]) -> workflow_pb2.Workflow:
    """A workflow from its JSON form."""
    return json_format.ParseDict(definition, workflow_pb2.Workflow())


async def eventually(look: Callable[[], Awaitable[T]], timeout_seconds: float = 20.0) -> T:
    """Looks again and again until what is seen is true; returns it."""
    end = time.monotonic() + timeout_seconds
    while True:
        seen = await look()
        if seen:
            return seen
        assert time.monotonic() < end, f"not seen within {timeout_seconds} s; last: {seen!r}"
        await asyncio.sleep(0.02)


class _Named:
    """Names a namespace with every call."""

    def __init__(self, namespace: str) -> None:
        self._metadata = (("baton-namespace", namespace),)

    async def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(metadata=(*(details.metadata or ()), *self._metadata)), request)


class _NamedCall(_Named, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    intercept_unary_unary = _Named._intercept


class _NamedStream(_Named, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    intercept_unary_stream = _Named._intercept


class Baton:
    """One connection to one server, in a namespace where one is given."""

    def __init__(self, address: str, namespace: str = "") -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.initial_reconnect_backoff_ms", 100)]
        options += [("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
        options += [("grpc.use_local_subchannel_pool", 1)]
        interceptors = [_NamedCall(namespace), _NamedStream(namespace)] if namespace else []
        self.channel = grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
        self.address = address
        self.runs: Any = run_service_pb2_grpc.RunServiceStub(self.channel)
        self.workflows: Any = workflow_service_pb2_grpc.WorkflowServiceStub(self.channel)
        self.schedules: Any = schedule_service_pb2_grpc.ScheduleServiceStub(self.channel)
        self.workers: Any = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.steps_of_workers: Any = step_service_pb2_grpc.StepServiceStub(self.channel)
        self.approvals: Any = approval_service_pb2_grpc.ApprovalServiceStub(self.channel)
        self.replicas: Any = replica_service_pb2_grpc.ReplicaServiceStub(self.channel)
        self.limits: Any = limit_service_pb2_grpc.LimitServiceStub(self.channel)

    async def close(self) -> None:
        """Closes the connection."""
        await self.channel.close()

    async def register(self, worker: str, address: str, **fields: Any) -> worker_pb2.Worker:
        """Registers a worker's address."""
        request = worker_service_pb2.RegisterWorkerRequest(worker=worker, address=address, **fields)
        return (await self.workers.RegisterWorker(request, timeout=20, wait_for_ready=True)).worker

    async def forget_workers(self) -> None:
        """Deletes every worker that is registered."""
        listed = await self.workers.ListWorkers(worker_service_pb2.ListWorkersRequest(page_size=1_000), timeout=20)
        assert not listed.next_page_token
        for worker in listed.workers:
            try:
                await self.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker=worker.name), timeout=20)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:  # One that was attached may just have left.
                    raise

    async def worker(self, name: str) -> worker_pb2.Worker:
        """Reads a worker."""
        return (await self.workers.GetWorker(worker_service_pb2.GetWorkerRequest(worker=name), timeout=20)).worker

    async def apply(self, definition: dict[str, Any]) -> workflow_pb2.WorkflowRevision:
        """Applies a workflow."""
        request = workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition))
        return (await self.workflows.ApplyWorkflow(request, timeout=20, wait_for_ready=True)).revision

    async def limit(self, name: str, scope: str, target: str = "", **fields: Any) -> limit_pb2.Limit:
        """Applies a limit; `scope` is KEY, METHOD, WORKER or NAMESPACE."""
        limit = limit_pb2.Limit(name=name, scope=limit_pb2.LimitScope.Value(f"LIMIT_SCOPE_{scope}"), target=target)
        json_format.ParseDict(fields, limit)
        request = limit_service_pb2.ApplyLimitRequest(limit=limit)
        return (await self.limits.ApplyLimit(request, timeout=20, wait_for_ready=True)).limit

    async def limit_use(self, name: str) -> limit_pb2.LimitUse:
        """Reads how much of a limit is in use."""
        return (await self.limits.GetLimit(limit_service_pb2.GetLimitRequest(limit=name), timeout=20)).use

    async def submit(
        self,
        definition: dict[str, Any],
        given: AnyMessage | None = None,
        *,
        wait_seconds: float = 0,
        **fields: Any,
    ) -> run_pb2.Run:
        """Submits an inline workflow; with `wait_seconds`, waits for its end."""
        request = submission(definition, given, wait_seconds=wait_seconds, **fields)
        answer = await self.runs.SubmitRun(request, timeout=wait_seconds + 30, wait_for_ready=True)
        return answer.run

    async def run(self, definition: dict[str, Any], given: AnyMessage | None = None, **fields: Any) -> run_pb2.Run:
        """Submits an inline workflow and waits until it has ended."""
        run = await self.submit(definition, given, wait_seconds=30, **fields)
        assert run.state in ENDED, f"it has not ended: {run}"
        return run

    async def get(self, run_id: str, view: Any = FULL) -> run_pb2.Run:
        """Reads a run."""
        request = run_service_pb2.GetRunRequest(run_id=run_id, view=view)
        return (await self.runs.GetRun(request, timeout=20, wait_for_ready=True)).run

    async def end(self, run_id: str, wait_seconds: float = 30) -> run_pb2.Run:
        """Waits until a run has ended."""
        request = run_service_pb2.WaitRunRequest(run_id=run_id)
        request.wait_timeout.FromMilliseconds(int(wait_seconds * 1000))
        run = (await self.runs.WaitRun(request, timeout=wait_seconds + 10, wait_for_ready=True)).run
        assert run.state in ENDED, f"it has not ended: {run}"
        return run

    async def cancel(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Cancels a run."""
        request = run_service_pb2.CancelRunRequest(run_id=run_id, reason=reason)
        return (await self.runs.CancelRun(request, timeout=20)).run

    async def events(self, run_id: str, view: Any = BASIC, page_size: int = 0) -> list[event_pb2.RunEvent]:
        """Reads the whole journal of a run, page by page."""
        events: list[event_pb2.RunEvent] = []
        request = run_service_pb2.ListRunEventsRequest(run_id=run_id, view=view, page_size=page_size)
        while True:
            page = await self.runs.ListRunEvents(request, timeout=20, wait_for_ready=True)
            assert not page_size or len(page.events) <= page_size
            events.extend(page.events)
            request.page_token = page.next_page_token
            if not request.page_token:
                return events

    async def steps(self, run_id: str, view: Any = BASIC, page_size: int = 0) -> list[run_pb2.RunStep]:
        """Reads all steps of a run, page by page."""
        steps: list[run_pb2.RunStep] = []
        request = run_service_pb2.ListRunStepsRequest(run_id=run_id, view=view, page_size=page_size)
        while True:
            page = await self.runs.ListRunSteps(request, timeout=20, wait_for_ready=True)
            assert page.ByteSize() < 4 << 20
            steps.extend(page.steps)
            request.page_token = page.next_page_token
            if not request.page_token:
                return steps

    async def delegate(
        self, token: str, key: str, method: str, request: Message, *, wait_seconds: float = 0, **fields: Any
    ) -> step_service_pb2.DelegateResponse:
        """Delegates a step on behalf of an attempt, as its worker would."""
        asked = step_service_pb2.DelegateRequest(step_token=token, key=key, method=method, **fields)
        asked.request.Pack(request)
        if wait_seconds:
            asked.wait_timeout.FromMilliseconds(int(wait_seconds * 1000))
        answer = await self.steps_of_workers.Delegate(asked, timeout=wait_seconds + 20, wait_for_ready=True)
        assert isinstance(answer, step_service_pb2.DelegateResponse)
        return answer

    async def signal(
        self, run_id: str, signal: str, payload: AnyMessage | None = None, request_id: str = ""
    ) -> run_service_pb2.SignalRunResponse:
        """Sends a signal to a run."""
        request = run_service_pb2.SignalRunRequest(run_id=run_id, signal=signal, request_id=request_id)
        if payload is not None:
            request.payload.CopyFrom(payload)
        answer = await self.runs.SignalRun(request, timeout=20, wait_for_ready=True)
        assert isinstance(answer, run_service_pb2.SignalRunResponse)
        return answer

    async def asked(self, run_id: str = "", page_size: int = 0) -> list[approval_pb2.Approval]:
        """Lists what waits for a person, page by page."""
        approvals: list[approval_pb2.Approval] = []
        request = approval_service_pb2.ListApprovalsRequest(run_id=run_id, page_size=page_size)
        while True:
            page = await self.approvals.ListApprovals(request, timeout=20, wait_for_ready=True)
            assert not page_size or len(page.approvals) <= page_size
            approvals.extend(page.approvals)
            request.page_token = page.next_page_token
            if not request.page_token:
                return approvals

    async def asks(self, run_id: str, step: str) -> approval_pb2.Approval:
        """Waits until a step waits for a person; returns what it asks."""

        async def look() -> approval_pb2.Approval | None:
            return next((each for each in await self.asked(run_id) if each.step == step), None)

        approval = await eventually(look)
        assert approval is not None
        return approval

    async def decide(
        self, approval: approval_pb2.Approval, approved: bool = True, *, by: str = "", **fields: Any
    ) -> run_pb2.RunStep:
        """Decides on a request, as a principal where one is given; `fields` replace those of the approval."""
        given = {"run_id": approval.run_id, "step": approval.step, "request_hash": approval.request_hash} | fields
        request = approval_service_pb2.DecideApprovalRequest(**given, approved=approved)
        metadata = (("baton-principal", by),) if by else ()
        answer = await self.approvals.DecideApproval(request, timeout=20, wait_for_ready=True, metadata=metadata)
        assert isinstance(answer.step, run_pb2.RunStep)
        return answer.step

    def watch(self, run_id: str, cursor: str = "", view: Any = BASIC, batch: bool = False) -> Any:
        """Opens a watch."""
        request = run_service_pb2.WatchRunRequest(run_id=run_id, cursor=cursor, view=view, batch=batch)
        return self.runs.WatchRun(request, timeout=120, wait_for_ready=True)

    async def waiting(self, run_id: str, step: str, kind: Any) -> run_pb2.WaitReason:
        """Waits until a step says that it waits for `kind`; returns what it says."""

        async def look() -> run_pb2.WaitReason | None:
            run = await self.get(run_id)
            found = next(each for each in run.steps if each.step == step)
            return found.wait_reason if found.wait_reason.kind == kind else None

        reason = await eventually(look)
        assert reason is not None
        return reason


def submission(
    definition: dict[str, Any] | str, given: AnyMessage | None = None, *, wait_seconds: float = 0, **fields: Any
) -> run_service_pb2.SubmitRunRequest:
    """A request to run an inline workflow, or one by name."""
    request = run_service_pb2.SubmitRunRequest(**fields)
    if isinstance(definition, str):
        request.workflow = definition
    else:
        request.inline_workflow.CopyFrom(workflow(definition))
    if given is not None:
        request.input.CopyFrom(given)
    if wait_seconds:
        request.wait_timeout.FromMilliseconds(int(wait_seconds * 1000))
    return request


def kinds(events: list[event_pb2.RunEvent]) -> list[str]:
    """What the events are, in order, with their steps: `step_succeeded a`."""
    return [f"{event.WhichOneof('kind')} {event.step}".strip() for event in events]


def step_of(run: run_pb2.Run, name: str) -> run_pb2.RunStep:
    """One step of a run."""
    return next(step for step in run.steps if step.step == name)


class Refusal:
    """What a call was refused with."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.text = error.code(), error.details() or ""
        self.reason, self.retry_seconds = "", None
        self.paths: dict[str, str] = {}
        status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
        for detail in status.details if status is not None else ():
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(info):
                self.reason, self.domain, self.metadata = info.reason, info.domain, dict(info.metadata)
            elif detail.Unpack(bad):
                self.paths = {violation.field: violation.description for violation in bad.field_violations}
            elif detail.Unpack(retry):
                self.retry_seconds = retry.retry_delay.ToMilliseconds() / 1000


async def refused(call: Awaitable[Any]) -> Refusal:
    """Awaits a call that must be refused; returns how."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError(f"it was not refused: {answer}")
