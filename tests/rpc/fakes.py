"""The doors of the engine as a fake: it records every call and answers what a test puts in."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import grpc
import pytest
from baton.v1 import (
    approval_pb2,
    approval_service_pb2,
    event_pb2,
    limit_pb2,
    replica_pb2,
    run_pb2,
    run_service_pb2,
    schedule_pb2,
    step_service_pb2,
    worker_pb2,
    worker_service_pb2,
    workflow_pb2,
    workflow_service_pb2,
)
from baton.worker.v1 import work_pb2
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from orchestrator.domain.caller import Caller
from orchestrator.engine.api import Backfilled
from orchestrator.engine.approval_ports import ApprovalPosition
from orchestrator.engine.mend_many import MendedMany
from orchestrator.engine.ports import FilterTerm
from orchestrator.engine.worker_ports import ReadFrame, WriteFrame

NOBODY = Caller("", "", "")
"""Stands for the caller of what says by a token who it is."""


class FakeEngine:
    """Runs, Workflows, Workers and Schedules by its attributes of these names."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Caller, tuple[Any, ...]]] = []
        self.error: BaseException | None = None
        self.hold: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.ended = asyncio.Event()
        self.run_list: list[run_pb2.Run] = []
        self.step_list: list[run_pb2.RunStep] = []
        self.event_list: list[event_pb2.RunEvent] = []
        self.streams: list[AsyncIterator[Any]] = []
        self.updates: list[Any] = []
        self.refusals: dict[str, BaseException] = {}
        self.approval_list: list[tuple[approval_pb2.Approval, ApprovalPosition]] = []
        self.more_approvals: ApprovalPosition | None = None
        self.limit_list: list[limit_pb2.Limit] = []
        self.replica_list: list[replica_pb2.Replica] = []
        self.fault_list: list[replica_pb2.FoundFault] = []
        self.worker_list: list[worker_pb2.Worker] = []
        self.revision_list: list[workflow_pb2.WorkflowRevision] = []
        self.schedule_list: list[schedule_pb2.StoredSchedule] = []
        self.backfilled: list[Backfilled] = []
        self.files: list[descriptor_pb2.FileDescriptorProto] = []
        self.runs = FakeRuns(self)
        self.workflows = FakeWorkflows(self)
        self.workers = FakeWorkers(self)
        self.steps = FakeSteps(self)
        self.approvals = FakeApprovals(self)
        self.schedules = FakeSchedules(self)
        self.limits = FakeLimits(self)
        self.permits = object()
        self.replicas = FakeReplicas(self)

    async def record(self, name: str, caller: Caller, *arguments: Any) -> None:
        """Records a call; holds it while `hold` is unset, and fails it with `error`."""
        self.calls.append((name, caller, arguments))
        self.entered.set()
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.ended.set()
        if self.error is not None:
            raise self.error

    def last(self, name: str) -> tuple[Any, ...]:
        """Returns the arguments of the last call, which must be of `name`."""
        assert self.calls[-1][0] == name, self.calls
        return self.calls[-1][2]


class FakeRuns:
    """See engine.api.Runs."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def submit(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest
    ) -> run_service_pb2.SubmitRunResponse:
        await self._engine.record("submit", caller, request)
        return run_service_pb2.SubmitRunResponse(run=run_pb2.Run(run_id="r", workflow=request.workflow), cursor="c")

    async def submit_many(
        self, submissions: Sequence[tuple[Caller, run_service_pb2.SubmitRunRequest]]
    ) -> tuple[Sequence[run_service_pb2.SubmitRunResponse | BaseException], str]:
        for caller, request in submissions:
            await self._engine.record("submit_many", caller, request)
        return [
            self._engine.refusals.get(request.request_id)
            or run_service_pb2.SubmitRunResponse(run=run_pb2.Run(run_id=request.request_id), cursor="c")
            for _, request in submissions
        ], "watch"

    def watch_ends(
        self, caller: Caller, terms: Sequence[FilterTerm], cursor: str, view: int, steps: bool
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        self._engine.calls.append(("watch_ends", caller, (list(terms), cursor, view, steps)))
        self._engine.streams.append(self._updates())
        return self._engine.streams[-1]

    async def get(self, caller: Caller, run_id: UUID, view: int) -> tuple[run_pb2.Run, str]:
        await self._engine.record("get", caller, run_id, view)
        return run_pb2.Run(run_id=str(run_id)), "cursor"

    async def list(
        self, caller: Caller, terms: Sequence[FilterTerm], before: UUID | None, limit: int, view: int
    ) -> builtins.list[run_pb2.Run]:
        await self._engine.record("list", caller, list(terms), before, limit, view)
        known = [run for run in self._engine.run_list if before is None or UUID(run.run_id) < before]
        return known[:limit]

    def watch(
        self, caller: Caller, run_id: UUID, cursor: str, view: int, batch: bool
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        self._engine.calls.append(("watch", caller, (run_id, cursor, view, batch)))
        # Kept, so that a stream ends because it is closed and not because nothing refers to it any more.
        self._engine.streams.append(self._updates())
        return self._engine.streams[-1]

    async def _updates(self) -> AsyncIterator[Any]:
        engine = self._engine
        try:
            for update in engine.updates:
                yield update
            engine.entered.set()
            if engine.hold is not None:
                await engine.hold.wait()
            if engine.error is not None:
                raise engine.error
        finally:
            engine.ended.set()

    async def wait(self, caller: Caller, run_id: UUID, timeout_seconds: float, view: int) -> tuple[run_pb2.Run, str]:
        await self._engine.record("wait", caller, run_id, timeout_seconds, view)
        return run_pb2.Run(run_id=str(run_id)), "cursor"

    async def list_steps(
        self, caller: Caller, run_id: UUID, after: int, limit: int, view: int
    ) -> builtins.list[run_pb2.RunStep]:
        await self._engine.record("list_steps", caller, run_id, after, limit, view)
        return self._engine.step_list[after : after + limit]

    async def list_events(
        self, caller: Caller, run_id: UUID, after_sequence: int, limit: int, view: int
    ) -> builtins.list[event_pb2.RunEvent]:
        await self._engine.record("list_events", caller, run_id, after_sequence, limit, view)
        return [event for event in self._engine.event_list if event.sequence > after_sequence][:limit]

    async def cancel(self, caller: Caller, run_id: UUID, reason: str) -> run_pb2.Run:
        await self._engine.record("cancel", caller, run_id, reason)
        return run_pb2.Run(run_id=str(run_id))

    async def signal(
        self, caller: Caller, request: run_service_pb2.SignalRunRequest
    ) -> run_service_pb2.SignalRunResponse:
        await self._engine.record("signal", caller, request)
        return run_service_pb2.SignalRunResponse()

    async def retry(self, caller: Caller, request: run_service_pb2.RetryRunRequest) -> run_service_pb2.RetryRunResponse:
        await self._engine.record("retry", caller, request)
        return run_service_pb2.RetryRunResponse()

    async def retry_step(
        self, caller: Caller, request: run_service_pb2.RetryStepRequest
    ) -> run_service_pb2.RetryStepResponse:
        await self._engine.record("retry_step", caller, request)
        return run_service_pb2.RetryStepResponse()

    async def skip(self, caller: Caller, request: run_service_pb2.SkipStepRequest) -> run_service_pb2.SkipStepResponse:
        await self._engine.record("skip", caller, request)
        return run_service_pb2.SkipStepResponse()

    async def fork(self, caller: Caller, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.ForkRunResponse:
        await self._engine.record("fork", caller, request)
        return run_service_pb2.ForkRunResponse()

    async def pause(self, caller: Caller, request: run_service_pb2.PauseRunRequest) -> run_service_pb2.PauseRunResponse:
        await self._engine.record("pause", caller, request)
        return run_service_pb2.PauseRunResponse()

    async def resume(
        self, caller: Caller, request: run_service_pb2.ResumeRunRequest
    ) -> run_service_pb2.ResumeRunResponse:
        await self._engine.record("resume", caller, request)
        return run_service_pb2.ResumeRunResponse()

    async def mend_many(
        self,
        caller: Caller,
        terms: Sequence[FilterTerm],
        before: UUID | None,
        limit: int,
        request: run_service_pb2.MendRunsRequest,
    ) -> MendedMany:
        await self._engine.record("mend_many", caller, terms, before, limit)
        return MendedMany()


class FakeSteps:
    """See engine.api.Steps."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def delegate(self, request: step_service_pb2.DelegateRequest) -> step_service_pb2.DelegateResponse:
        await self._engine.record("delegate", NOBODY, request)
        return step_service_pb2.DelegateResponse()

    async def heartbeat(self, request: step_service_pb2.HeartbeatRequest) -> step_service_pb2.HeartbeatResponse:
        await self._engine.record("heartbeat", NOBODY, request)
        return step_service_pb2.HeartbeatResponse()


class FakeApprovals:
    """See engine.api.Approvals."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def list(
        self, caller: Caller, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> tuple[builtins.list[tuple[approval_pb2.Approval, ApprovalPosition]], ApprovalPosition | None]:
        await self._engine.record("list_approvals", caller, run_id, after, limit)
        return self._engine.approval_list, self._engine.more_approvals

    async def decide(
        self, caller: Caller, request: approval_service_pb2.DecideApprovalRequest
    ) -> approval_service_pb2.DecideApprovalResponse:
        await self._engine.record("decide", caller, request)
        return approval_service_pb2.DecideApprovalResponse(step=run_pb2.RunStep(step=request.step))


class FakeWorkflows:
    """See engine.api.Workflows."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def apply(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> tuple[workflow_pb2.WorkflowRevision, bool]:
        await self._engine.record("apply", caller, workflow)
        return workflow_pb2.WorkflowRevision(workflow=workflow.name), True

    async def check(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> workflow_service_pb2.CheckWorkflowResponse:
        await self._engine.record("check", caller, workflow)
        return workflow_service_pb2.CheckWorkflowResponse(revision="rev")

    async def get(self, caller: Caller, workflow: str, revision: str) -> workflow_pb2.WorkflowRevision:
        await self._engine.record("get_workflow", caller, workflow, revision)
        return workflow_pb2.WorkflowRevision(workflow=workflow)

    async def list(self, caller: Caller, after: str, limit: int) -> builtins.list[workflow_pb2.WorkflowRevision]:
        await self._engine.record("list_workflows", caller, after, limit)
        return [each for each in self._engine.revision_list if each.workflow > after][:limit]

    async def list_revisions(
        self, caller: Caller, workflow: str, offset: int, limit: int
    ) -> builtins.list[workflow_pb2.WorkflowRevision]:
        await self._engine.record("list_revisions", caller, workflow, offset, limit)
        return self._engine.revision_list[offset : offset + limit]

    async def delete(self, caller: Caller, workflow: str) -> workflow_pb2.WorkflowRevision:
        await self._engine.record("delete_workflow", caller, workflow)
        return workflow_pb2.WorkflowRevision(workflow=workflow)


class FakeWorkers:
    """See engine.api.Workers."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def register(
        self, caller: Caller, request: worker_service_pb2.RegisterWorkerRequest
    ) -> worker_service_pb2.RegisterWorkerResponse:
        await self._engine.record("register", caller, request)
        return worker_service_pb2.RegisterWorkerResponse(worker=worker_pb2.Worker(name=request.worker))

    async def get(self, caller: Caller, worker: str) -> worker_pb2.Worker:
        await self._engine.record("get_worker", caller, worker)
        return worker_pb2.Worker(name=worker)

    async def list(self, caller: Caller, after: str, limit: int) -> builtins.list[worker_pb2.Worker]:
        await self._engine.record("list_workers", caller, after, limit)
        return [each for each in self._engine.worker_list if each.name > after][:limit]

    async def drain(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        await self._engine.record("drain", caller, worker, address)
        return worker_pb2.Worker(name=worker)

    async def delete(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        await self._engine.record("delete_worker", caller, worker, address)
        return worker_pb2.Worker(name=worker)

    async def greet(self, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
        await write(work_pb2.BatonFrame(opening=work_pb2.BatonOpening(replica_id="replica")))
        frame = await read()
        await self._engine.record("greet", Caller("", "", ""))
        return frame if frame is not None else work_pb2.WorkerFrame()

    async def attach(self, caller: Caller, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame) -> None:
        await self._engine.record("attach", caller, first)

    def descriptor_files(self, namespace: str) -> Iterable[descriptor_pb2.FileDescriptorProto]:
        if self._engine.error is not None:
            raise self._engine.error
        return self._engine.files


class FakeSchedules:
    """See engine.api.Schedules."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def apply(
        self, caller: Caller, schedule: schedule_pb2.Schedule, validate_only: bool
    ) -> tuple[schedule_pb2.StoredSchedule, bool]:
        await self._engine.record("apply_schedule", caller, schedule, validate_only)
        return schedule_pb2.StoredSchedule(schedule=schedule), True

    async def get(self, caller: Caller, schedule: str, next_count: int) -> schedule_pb2.StoredSchedule:
        await self._engine.record("get_schedule", caller, schedule, next_count)
        return named(schedule)

    async def list(self, caller: Caller, after: str, limit: int) -> builtins.list[schedule_pb2.StoredSchedule]:
        await self._engine.record("list_schedules", caller, after, limit)
        return [each for each in self._engine.schedule_list if each.schedule.name > after][:limit]

    async def delete(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        await self._engine.record("delete_schedule", caller, schedule)
        return named(schedule)

    async def pause(self, caller: Caller, schedule: str, note: str) -> schedule_pb2.StoredSchedule:
        await self._engine.record("pause", caller, schedule, note)
        return named(schedule)

    async def resume(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        await self._engine.record("resume", caller, schedule)
        return named(schedule)

    async def trigger(self, caller: Caller, schedule: str, request_id: str) -> tuple[UUID, bool]:
        await self._engine.record("trigger", caller, schedule, request_id)
        return UUID(int=7), bool(request_id)

    async def backfill(
        self, caller: Caller, schedule: str, start_time: int, end_time: int, validate_only: bool
    ) -> builtins.list[Backfilled]:
        await self._engine.record("backfill", caller, schedule, start_time, end_time, validate_only)
        return self._engine.backfilled


def named(schedule: str) -> schedule_pb2.StoredSchedule:
    """A stored schedule of this name."""
    return schedule_pb2.StoredSchedule(schedule=schedule_pb2.Schedule(name=schedule))


@dataclass(slots=True)
class Told:
    """All that a caller was told of an error."""

    code: grpc.StatusCode
    text: str
    info: error_details_pb2.ErrorInfo | None = None
    bad_request: error_details_pb2.BadRequest | None = None
    retry: error_details_pb2.RetryInfo | None = None
    raw: str = field(default="")

    @property
    def reason(self) -> str:
        """The reason, which must be there."""
        assert self.info is not None, self
        assert self.info.domain == "baton"
        return str(self.info.reason)

    @property
    def paths(self) -> list[str]:
        """The fields of the BadRequest."""
        return [] if self.bad_request is None else [each.field for each in self.bad_request.field_violations]


def server_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the server has logged in this test."""
    return [record for record in caplog.records if record.name.startswith("orchestrator.")]


def told(error: grpc.aio.AioRpcError) -> Told:
    """Reads an error as a caller does."""
    answer = Told(error.code(), error.details() or "", raw=f"{error!r} {error.trailing_metadata()!r}")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        for name, kind in (
            ("info", error_details_pb2.ErrorInfo),
            ("bad_request", error_details_pb2.BadRequest),
            ("retry", error_details_pb2.RetryInfo),
        ):
            message = kind()
            if detail.Unpack(message):
                setattr(answer, name, message)
    return answer


class FakeLimits:
    """Limits that answer what the engine's attributes hold."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def apply(self, caller: Caller, limit: limit_pb2.Limit) -> limit_pb2.Limit:
        await self._engine.record("apply", caller, limit)
        return limit

    async def get(self, caller: Caller, limit: str) -> tuple[limit_pb2.Limit, limit_pb2.LimitUse]:
        await self._engine.record("get", caller, limit)
        return limit_pb2.Limit(name=limit), limit_pb2.LimitUse(in_flight=3)

    async def list(self, caller: Caller, after: str, size: int) -> Sequence[limit_pb2.Limit]:
        await self._engine.record("list", caller, after, size)
        return [limit for limit in self._engine.limit_list if limit.name > after][:size]

    async def delete(self, caller: Caller, limit: str) -> limit_pb2.Limit:
        await self._engine.record("delete", caller, limit)
        return limit_pb2.Limit(name=limit)


class FakeReplicas:
    """Replicas and faults that the engine's attributes hold."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def list(self, after: UUID | None, limit: int, *, include_ended: bool) -> Sequence[replica_pb2.Replica]:
        await self._engine.record("list", NOBODY, after, limit, include_ended)
        above = str(after or "")
        return [replica for replica in self._engine.replica_list if replica.replica_id > above][:limit]

    async def list_faults(self, offset: int, limit: int) -> Sequence[replica_pb2.FoundFault]:
        await self._engine.record("list_faults", NOBODY, offset, limit)
        return self._engine.fault_list[offset : offset + limit]

    def look_for_runs(self, token: str) -> None:
        raise AssertionError(token)
