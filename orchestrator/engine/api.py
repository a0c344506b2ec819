"""What the engine offers to its doors (gRPC now): one class for each service, in messages of baton.v1.

Doors parse, authenticate and validate; everything behind these methods is theirs to rely on. Errors are those of
domain.errors. `after`, `before` and `limit` are paging positions that the door encodes in its tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

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

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError
from orchestrator.engine.approval_ports import ApprovalPosition
from orchestrator.engine.mend_many import MendedMany
from orchestrator.engine.ports import FilterTerm
from orchestrator.engine.replica_ports import ReadAsked, WriteGiven
from orchestrator.engine.updates import Encoded, Update
from orchestrator.engine.worker_ports import ReadBatonFrame, ReadFrame, WriteFrame, WriteWorkerFrame


class Runs(Protocol):
    """Runs of the caller's namespace. `view` is a RunView; unset ones are settled by the door."""

    async def submit(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest
    ) -> run_service_pb2.SubmitRunResponse:
        """Checks and stores a run; see SubmitRun."""
        ...

    async def submit_many(
        self, submissions: Sequence[tuple[Caller, run_service_pb2.SubmitRunRequest]]
    ) -> tuple[Sequence[run_service_pb2.SubmitRunResponse | BaseException], str]:
        """Checks and stores runs; see SubmitRuns. Answers, in their order, what became of each, and the cursor of
        their ends. All are of one namespace. What would fail all of them is raised."""
        ...

    def watch_ends(
        self, caller: Caller, terms: Sequence[FilterTerm], cursor: str, view: int, steps: bool
    ) -> AsyncGenerator[run_service_pb2.WatchRunsResponse | Encoded, None]:
        """Streams runs that meet every term as they end; see WatchRuns."""
        ...

    async def get(self, caller: Caller, run_id: UUID, view: int) -> tuple[run_pb2.Run, str]:
        """Reads a run and its cursor."""
        ...

    async def list(
        self, caller: Caller, terms: Sequence[FilterTerm], before: UUID | None, limit: int, view: int
    ) -> Sequence[run_pb2.Run]:
        """Lists runs that meet every term, newest first, with ids below `before`."""
        ...

    def watch(
        self, caller: Caller, run_id: UUID, cursor: str, view: int, batch: bool
    ) -> AsyncGenerator[run_service_pb2.WatchRunResponse | Update, None]:
        """Streams a run; see WatchRun. Events come as they are sent, encoded once for all who watch."""
        ...

    async def wait(self, caller: Caller, run_id: UUID, timeout_seconds: float, view: int) -> tuple[run_pb2.Run, str]:
        """Waits for the end of a run; see WaitRun."""
        ...

    async def list_steps(
        self, caller: Caller, run_id: UUID, after: int, limit: int, view: int
    ) -> Sequence[run_pb2.RunStep]:
        """Lists the steps of a run from the index `after` on."""
        ...

    async def list_events(
        self, caller: Caller, run_id: UUID, after_sequence: int, limit: int, view: int
    ) -> Sequence[event_pb2.RunEvent]:
        """Lists durable events with a sequence above `after_sequence`."""
        ...

    async def cancel(self, caller: Caller, run_id: UUID, reason: str) -> run_pb2.Run:
        """Cancels a run; see CancelRun."""
        ...

    async def signal(
        self, caller: Caller, request: run_service_pb2.SignalRunRequest
    ) -> run_service_pb2.SignalRunResponse:
        """Sends a signal to a run; see SignalRun."""
        ...

    async def retry(self, caller: Caller, request: run_service_pb2.RetryRunRequest) -> run_service_pb2.RetryRunResponse:
        """Reopens a run; see RetryRun."""
        ...

    async def retry_step(
        self, caller: Caller, request: run_service_pb2.RetryStepRequest
    ) -> run_service_pb2.RetryStepResponse:
        """Runs a step again; see RetryStep."""
        ...

    async def skip(self, caller: Caller, request: run_service_pb2.SkipStepRequest) -> run_service_pb2.SkipStepResponse:
        """Ends a step in its place; see SkipStep."""
        ...

    async def fork(self, caller: Caller, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.ForkRunResponse:
        """Submits a run that begins at a step of another; see ForkRun."""
        ...

    async def mend_many(
        self,
        caller: Caller,
        terms: Sequence[FilterTerm],
        before: UUID | None,
        limit: int,
        request: run_service_pb2.MendRunsRequest,
    ) -> MendedMany:
        """Does what `request` says to at most `limit` runs that meet every term, newest first, with ids below `before`;
        see MendRuns."""
        ...

    async def pause(self, caller: Caller, request: run_service_pb2.PauseRunRequest) -> run_service_pb2.PauseRunResponse:
        """Lets no attempt start; see PauseRun."""
        ...

    async def resume(
        self, caller: Caller, request: run_service_pb2.ResumeRunRequest
    ) -> run_service_pb2.ResumeRunResponse:
        """Lets attempts start again; see ResumeRun."""
        ...


class Steps(Protocol):
    """What workers ask for on behalf of the steps that they were called for."""

    async def delegate(self, request: step_service_pb2.DelegateRequest) -> step_service_pb2.DelegateResponse:
        """Adds a step to the run of the caller's step; see Delegate."""
        ...

    async def heartbeat(self, request: step_service_pb2.HeartbeatRequest) -> step_service_pb2.HeartbeatResponse:
        """Takes a sign of life; see Heartbeat."""
        ...


class Approvals(Protocol):
    """Requests of the caller's namespace that people decide on."""

    async def list(
        self, caller: Caller, run_id: UUID | None, after: ApprovalPosition | None, limit: int
    ) -> tuple[Sequence[tuple[approval_pb2.Approval, ApprovalPosition]], ApprovalPosition | None]:
        """Lists at most `limit` requests that wait, each with its position, and the position of the next page."""
        ...

    async def decide(
        self, caller: Caller, request: approval_service_pb2.DecideApprovalRequest
    ) -> approval_service_pb2.DecideApprovalResponse:
        """Takes a decision; see DecideApproval."""
        ...


class Workflows(Protocol):
    """Workflows of the caller's namespace."""

    async def apply(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> tuple[workflow_pb2.WorkflowRevision, bool]:
        """Checks and stores a revision; answers whether it was the newest already."""
        ...

    async def check(
        self, caller: Caller, workflow: workflow_pb2.Workflow
    ) -> workflow_service_pb2.CheckWorkflowResponse:
        """Makes every check and stores nothing."""
        ...

    async def get(self, caller: Caller, workflow: str, revision: str) -> workflow_pb2.WorkflowRevision:
        """Reads a revision, the newest where `revision` is empty."""
        ...

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[workflow_pb2.WorkflowRevision]:
        """Lists newest revisions of workflows with names above `after`."""
        ...

    async def list_revisions(
        self, caller: Caller, workflow: str, offset: int, limit: int
    ) -> Sequence[workflow_pb2.WorkflowRevision]:
        """Lists the revisions of a workflow, newest first."""
        ...

    async def delete(self, caller: Caller, workflow: str) -> workflow_pb2.WorkflowRevision:
        """Removes the name."""
        ...


class Workers(Protocol):
    """Workers of the caller's namespace."""

    async def register(
        self, caller: Caller, request: worker_service_pb2.RegisterWorkerRequest
    ) -> worker_service_pb2.RegisterWorkerResponse:
        """Reads or takes the contract, checks what it breaks, and stores the endpoint; see RegisterWorker."""
        ...

    async def get(self, caller: Caller, worker: str) -> worker_pb2.Worker:
        """Reads a worker."""
        ...

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[worker_pb2.Worker]:
        """Lists workers with names above `after`."""
        ...

    async def drain(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        """Stops new calls to a worker or to one address."""
        ...

    async def delete(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        """Removes a worker or one address; answers it as it was."""
        ...

    async def greet(self, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
        """Begins the stream of a worker that dials in: says who speaks and hears who answers."""
        ...

    async def attach(self, caller: Caller, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame) -> None:
        """Serves that stream to its end; meanwhile the worker is an endpoint for all replicas. See Attach."""
        ...

    async def relay(self, address: str, token: str, read: ReadBatonFrame, write: WriteWorkerFrame) -> None:
        """Carries the stream of another replica to a worker that is attached to this one."""
        ...

    def descriptor_files(self, namespace: str) -> Iterable[descriptor_pb2.FileDescriptorProto]:
        """Files of every registered contract of the namespace, for server reflection."""
        ...


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What became of one firing of a backfill: its run and whether that was there, or why it was refused."""

    fire_time: int
    run_id: UUID | None = None
    existing: bool = False
    refused: BatonError | None = None


class Schedules(Protocol):
    """Schedules of the caller's namespace."""

    async def apply(
        self, caller: Caller, schedule: schedule_pb2.Schedule, validate_only: bool
    ) -> tuple[schedule_pb2.StoredSchedule, bool]:
        """Checks and stores a schedule; answers whether its content was there already."""
        ...

    async def get(self, caller: Caller, schedule: str, next_count: int) -> schedule_pb2.StoredSchedule:
        """Reads a schedule with so many of its next times; 0 means the usual number."""
        ...

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[schedule_pb2.StoredSchedule]:
        """Lists schedules with names above `after`."""
        ...

    async def delete(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        """Deletes a schedule; answers it as it was."""
        ...

    async def pause(self, caller: Caller, schedule: str, note: str) -> schedule_pb2.StoredSchedule:
        """Stops a schedule from firing."""
        ...

    async def resume(self, caller: Caller, schedule: str) -> schedule_pb2.StoredSchedule:
        """Lets a schedule fire again."""
        ...

    async def trigger(self, caller: Caller, schedule: str, request_id: str) -> tuple[UUID, bool]:
        """Starts a run now; answers it, and whether it was there already."""
        ...

    async def backfill(
        self, caller: Caller, schedule: str, start_time: int, end_time: int, validate_only: bool
    ) -> Sequence[Backfilled]:
        """Starts the runs of times from `start_time` on, before `end_time`."""
        ...


class Limits(Protocol):
    """Limits of the caller's namespace."""

    async def apply(self, caller: Caller, limit: limit_pb2.Limit) -> limit_pb2.Limit:
        """Stores a limit under its name."""
        ...

    async def get(self, caller: Caller, limit: str) -> tuple[limit_pb2.Limit, limit_pb2.LimitUse]:
        """Reads a limit and how much of it is in use."""
        ...

    async def list(self, caller: Caller, after: str, size: int) -> Sequence[limit_pb2.Limit]:
        """Lists limits with names above `after`."""
        ...

    async def delete(self, caller: Caller, limit: str) -> limit_pb2.Limit:
        """Removes a limit; answers it as it was."""
        ...


class Permits(Protocol):
    """What replicas ask each other for; `token` shows that a replica asks."""

    async def exchange(self, token: str, read: ReadAsked, write: WriteGiven) -> None:
        """Carries the stream of another replica to its end."""
        ...

    async def look(self, token: str, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """Tells how much of a limit that is at home here is in use."""
        ...


class Replicas(Protocol):
    """The replicas of the database, whatever their namespaces, and what they let each other know."""

    async def list(self, after: UUID | None, limit: int, *, include_ended: bool) -> Sequence[replica_pb2.Replica]:
        """Lists replicas with ids above `after`."""
        ...

    async def list_faults(self, offset: int, limit: int) -> Sequence[replica_pb2.FoundFault]:
        """Lists what all of them found that should not exist, from the fault number `offset` on."""
        ...

    def look_for_runs(self, token: str) -> None:
        """Lets this replica look at once for runs that nobody drives; `token` shows that a replica says it. Errors:
        WorkerNotFound, ShuttingDown."""
        ...


class Doors(Protocol):
    """All that the engine offers, a class for each service."""

    @property
    def runs(self) -> Runs:
        """For RunService."""
        ...

    @property
    def steps(self) -> Steps:
        """For StepService."""
        ...

    @property
    def approvals(self) -> Approvals:
        """For ApprovalService."""
        ...

    @property
    def workflows(self) -> Workflows:
        """For WorkflowService."""
        ...

    @property
    def workers(self) -> Workers:
        """For WorkerService, AttachService and reflection."""
        ...

    @property
    def schedules(self) -> Schedules:
        """For ScheduleService."""
        ...

    @property
    def limits(self) -> Limits:
        """For LimitService."""
        ...

    @property
    def permits(self) -> Permits:
        """For PermitService."""
        ...

    @property
    def replicas(self) -> Replicas:
        """For ReplicaService."""
        ...
