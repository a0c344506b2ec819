"""A small Baton for tests: in memory, driven by the test, true to the comments of the protos.

A run is a list of events; `finish` ends it. `fail_next` makes the next calls of a method fail, `refuse_next` the next
submissions of a batch; of so many as `untold_results` the answer of a batch tells nothing. Watches can be cut. Calls of
`silent` methods are not answered, and the next `early` waits are, before their time.
"""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from baton.v1 import (
    event_pb2,
    failure_pb2,
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
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

Watch = AsyncIterator[run_service_pb2.WatchRunResponse]


def rich(code: grpc.StatusCode, reason: str, message: str, *details: Message, delay: float | None = None) -> Any:
    """A status with ErrorInfo, further details, and RetryInfo where a delay is given."""
    parts: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain="baton", metadata={"key": "value"}),
        *details,
    ]
    if delay is not None:
        span = duration_pb2.Duration()
        span.FromNanoseconds(int(delay * 1e9))
        parts.append(error_details_pb2.RetryInfo(retry_delay=span))
    packed = []
    for part in parts:
        packed.append(any_pb2.Any())
        packed[-1].Pack(part)
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))


STREAMS_LIMIT = 100
"""Calls that one connection carries at a time; more of them wait, as behind common proxies."""

MORE_EVENTS = 2
"""Most events that follow the first in one message of a watch."""

NAMED_RUNS = 2
"""Most runs that an answer of MendRuns names."""

UNAVAILABLE = rich(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "this replica is draining", delay=0.01)


@dataclass(eq=False)
class Held:
    """One run, with its journal and a condition that tells of changes."""

    run: run_pb2.Run
    client_id: str = ""
    events: list[event_pb2.RunEvent] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Double(
    run_service_pb2_grpc.RunServiceServicer,
    workflow_service_pb2_grpc.WorkflowServiceServicer,
    worker_service_pb2_grpc.WorkerServiceServicer,
):
    """The three services of Baton."""

    def __init__(self) -> None:
        self.address = ""
        self.held: dict[str, Held] = {}
        self.by_request_id: dict[str, str] = {}
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.peers: dict[str, list[str]] = defaultdict(list)
        self.fail_next: dict[str, list[Any]] = defaultdict(list)
        self.refuse_next: list[status_pb2.Status] = []
        self.untold_results = 0
        self.silent: set[str] = set()
        self.early = 0
        self.ended: list[str] = []
        self.ends_changed = asyncio.Condition()
        self.knows_batches = True
        self.violations: list[workflow_service_pb2.Violation] = []
        self.applied: dict[str, workflow_pb2.WorkflowRevision] = {}
        self.workers: dict[str, set[str]] = defaultdict(set)
        self.journal: list[str] = []
        self.cursors_expired = False
        self.cuts: list[str] = []
        self.draining = 0
        """Watches that are told to reconnect and nothing else."""
        self.waiting = 0
        self.called = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Serves, at the same address again after a stop."""
        self._server = grpc.aio.server(options=(("grpc.max_concurrent_streams", STREAMS_LIMIT),))
        run_service_pb2_grpc.add_RunServiceServicer_to_server(self, self._server)
        workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(self, self._server)
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Stops at once: every call that is under way is lost."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def until(self, method: str, count: int) -> None:
        """Waits until a method was called so often."""
        async with asyncio.timeout(10), self.called:
            await self.called.wait_for(lambda: len(self.requests[method]) >= count)

    async def until_held(self, count: int) -> None:
        """Waits until so many runs were submitted."""
        async with asyncio.timeout(10):
            while len(self.held) < count:  # noqa: ASYNC110 (several methods add runs, and none tells)
                await asyncio.sleep(0)

    async def add(self, run_id: str, **kind: Message) -> None:
        """Journals one event of a run."""
        held = self.held[run_id]
        async with held.changed:
            held.events.append(event_pb2.RunEvent(sequence=len(held.events) + 1, **kind))  # type: ignore[arg-type]
            held.run.last_sequence = len(held.events)
            held.changed.notify_all()

    async def finish(
        self, run_id: str, output: Message | None = None, failure: failure_pb2.Failure | None = None
    ) -> None:
        """Ends a run with an output or a failure."""
        run = self.held[run_id].run
        if failure is not None:
            run.state = run_pb2.RUN_STATE_FAILED
            run.failure.CopyFrom(failure)
            await self.add(run_id, run_failed=event_pb2.RunFailed(failure=failure))
            await self._tell_end(run_id)
            return
        run.state = run_pb2.RUN_STATE_SUCCEEDED
        if output is not None:
            run.output.Pack(output)
        await self.add(run_id, run_succeeded=event_pb2.RunSucceeded())
        await self._tell_end(run_id)

    async def reopen(self, run_id: str) -> run_pb2.Run:
        """Begins another round of a run that has ended; returns what calls that mend answer with."""
        run = self.held[run_id].run
        run.state = run_pb2.RUN_STATE_RUNNING
        run.round += 1
        run.ClearField("failure")
        await self.add(run_id, run_reopened=event_pb2.RunReopened(round=run.round))
        return run

    async def _tell_end(self, run_id: str) -> None:
        async with self.ends_changed:
            self.ended.append(run_id)
            self.ends_changed.notify_all()

    async def _enter(self, request: Any, context: Any) -> None:
        method = type(request).__name__.removesuffix("Request")
        async with self.called:
            self.requests[method].append(request)
            self.metadata[method].append(dict(context.invocation_metadata()))
            self.peers[method].append(context.peer())
            self.called.notify_all()
        if self.fail_next[method]:
            await context.abort_with_status(self.fail_next[method].pop(0))
        if method in self.silent:
            await asyncio.Event().wait()

    async def _find(self, run_id: str, context: Any) -> Held:
        held = self.held.get(run_id)
        if held is None:
            await context.abort_with_status(rich(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", f"no run {run_id}"))
        assert held is not None
        return held

    async def _wait(self, held: Held, seconds: float) -> None:
        if self.early:
            self.early -= 1
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds), held.changed:
                await held.changed.wait_for(lambda: _ended(held.run))
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1

    async def SubmitRun(
        self, request: run_service_pb2.SubmitRunRequest, context: Any
    ) -> run_service_pb2.SubmitRunResponse:
        held, existing = await self._accept(request)
        await self._enter(request, context)  # after the run is durable: an answer may be lost
        if request.HasField("wait_timeout"):
            await self._wait(held, request.wait_timeout.ToTimedelta().total_seconds())
        return run_service_pb2.SubmitRunResponse(
            run=held.run, existing=existing, cursor=_cursor(held.run.last_sequence)
        )

    async def SubmitRuns(
        self, request: run_service_pb2.SubmitRunsRequest, context: Any
    ) -> run_service_pb2.SubmitRunsResponse:
        if not self.knows_batches:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        answer = run_service_pb2.SubmitRunsResponse(watch_cursor=f"w{len(self.ended)}")
        for each in request.requests:
            if self.refuse_next:
                answer.results.add(refused=self.refuse_next.pop(0))
                continue
            held, existing = await self._accept(each)
            run = run_pb2.Run(run_id=held.run.run_id, state=held.run.state, last_sequence=1)
            answer.results.add().accepted.MergeFrom(
                run_service_pb2.SubmitRunResponse(run=run, existing=existing, cursor=_cursor(1))
            )
        await self._enter(request, context)
        if self.untold_results:
            del answer.results[-self.untold_results :]
        return answer

    async def WatchRuns(
        self, request: run_service_pb2.WatchRunsRequest, context: Any
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        if not self.knows_batches:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        await self._enter(request, context)
        client_id = request.filter.removeprefix('client_id = "').removesuffix('"')
        position = int(request.cursor.removeprefix("w") or len(self.ended))
        progress = run_service_pb2.Progress(reconnect=self._drains())
        yield run_service_pb2.WatchRunsResponse(cursor=f"w{position}", progress=progress)
        if progress.reconnect:
            return
        while True:
            async with self.ends_changed:
                while len(self.ended) <= position:
                    await self.ends_changed.wait()
            runs = [self.held[run_id] for run_id in self.ended[position:]]
            position = len(self.ended)
            message = run_service_pb2.WatchRunsResponse(cursor=f"w{position}")
            for held in runs:
                if held.client_id == client_id:
                    message.runs.append(held.run)
                    if not request.steps:
                        message.runs[-1].ClearField("steps")
            yield message
            if self.cuts and self.cuts.pop(0) == "unavailable":
                await context.abort_with_status(UNAVAILABLE)

    def _drains(self) -> bool:
        self.draining -= 1
        return self.draining >= 0

    async def _accept(self, request: run_service_pb2.SubmitRunRequest) -> tuple[Held, bool]:
        existing = request.request_id in self.by_request_id
        if not existing:
            run_id = str(uuid.uuid4())
            self.by_request_id[request.request_id] = run_id
            run = run_pb2.Run(
                run_id=run_id, workflow=request.workflow, state=run_pb2.RUN_STATE_PENDING, trace_id="ab" * 16
            )
            run.input.CopyFrom(request.input)
            run.steps.add(step="charge")
            self.held[run_id] = Held(run, request.client_id)
            await self.add(run_id, run_submitted=event_pb2.RunSubmitted(workflow=request.workflow))
        return self.held[self.by_request_id[request.request_id]], existing

    async def GetRun(self, request: run_service_pb2.GetRunRequest, context: Any) -> run_service_pb2.GetRunResponse:
        await self._enter(request, context)
        held = await self._find(request.run_id, context)
        return run_service_pb2.GetRunResponse(run=held.run, cursor=_cursor(held.run.last_sequence))

    async def WaitRun(self, request: run_service_pb2.WaitRunRequest, context: Any) -> run_service_pb2.WaitRunResponse:
        await self._enter(request, context)
        held = await self._find(request.run_id, context)
        await self._wait(held, request.wait_timeout.ToTimedelta().total_seconds())
        return run_service_pb2.WaitRunResponse(run=held.run, cursor=_cursor(held.run.last_sequence))

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, context: Any
    ) -> run_service_pb2.CancelRunResponse:
        await self._enter(request, context)
        held = await self._find(request.run_id, context)
        held.run.state = run_pb2.RUN_STATE_CANCELLED
        held.run.failure.CopyFrom(failure_pb2.Failure(code=1, reason="CANCELLED", message=request.reason))
        await self.add(request.run_id, run_cancelled=event_pb2.RunCancelled(reason=request.reason))
        await self._tell_end(request.run_id)
        answer = run_service_pb2.CancelRunResponse(run=held.run)
        for payload in ("input", "output", "steps"):
            answer.run.ClearField(payload)  # type: ignore[arg-type]
        return answer

    async def RetryRun(
        self, request: run_service_pb2.RetryRunRequest, context: Any
    ) -> run_service_pb2.RetryRunResponse:
        return run_service_pb2.RetryRunResponse(run=await self.reopen(request.run_id))

    async def RetryStep(
        self, request: run_service_pb2.RetryStepRequest, context: Any
    ) -> run_service_pb2.RetryStepResponse:
        return run_service_pb2.RetryStepResponse(run=await self.reopen(request.run_id))

    async def SkipStep(
        self, request: run_service_pb2.SkipStepRequest, context: Any
    ) -> run_service_pb2.SkipStepResponse:
        return run_service_pb2.SkipStepResponse(run=await self.reopen(request.run_id))

    async def MendRuns(
        self, request: run_service_pb2.MendRunsRequest, context: Any
    ) -> run_service_pb2.MendRunsResponse:
        failed = [held.run.run_id for held in self.held.values() if held.run.state == run_pb2.RUN_STATE_FAILED]
        for run_id in failed:
            await self.reopen(run_id)
        return run_service_pb2.MendRunsResponse(mended=len(failed), mended_run_ids=failed[:NAMED_RUNS])

    async def ListRuns(
        self, request: run_service_pb2.ListRunsRequest, context: Any
    ) -> run_service_pb2.ListRunsResponse:
        await self._enter(request, context)
        runs, token = _page([held.run for held in self.held.values()], request)
        return run_service_pb2.ListRunsResponse(runs=runs, next_page_token=token)

    async def ListRunEvents(
        self, request: run_service_pb2.ListRunEventsRequest, context: Any
    ) -> run_service_pb2.ListRunEventsResponse:
        await self._enter(request, context)
        return run_service_pb2.ListRunEventsResponse(events=(await self._find(request.run_id, context)).events)

    async def WatchRun(self, request: run_service_pb2.WatchRunRequest, context: Any) -> Watch:
        await self._enter(request, context)
        held = await self._find(request.run_id, context)
        if request.cursor and self.cursors_expired:
            self.cursors_expired = False
            await context.abort_with_status(rich(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED", "the events are gone"))
        position = int(request.cursor.removeprefix("c") or 0)
        progress = run_service_pb2.Progress(reconnect=self._drains())
        if progress.reconnect:
            yield run_service_pb2.WatchRunResponse(cursor=request.cursor, progress=progress)
            return
        if not request.cursor:
            position = held.run.last_sequence
            yield run_service_pb2.WatchRunResponse(cursor=_cursor(position), snapshot=held.run)
        while True:
            cut = self.cuts.pop(0) if self.cuts else ""
            async with held.changed:
                while len(held.events) <= position and not _ended(held.run):
                    await held.changed.wait()
            if position >= len(held.events):
                return
            event = held.events[position]
            if cut == "repeat" and position:
                yield run_service_pb2.WatchRunResponse(cursor=_cursor(position), event=held.events[position - 1])
            if cut == "gap" and position + 1 < len(held.events):
                event = held.events[position + 1]
            message = run_service_pb2.WatchRunResponse(cursor=_cursor(event.sequence), event=event)
            position = event.sequence
            if request.batch and not cut:
                for following in held.events[position : position + MORE_EVENTS]:
                    position = following.sequence
                    message.more.add(cursor=_cursor(position), event=following)
            yield message
            if cut == "unavailable":
                await context.abort_with_status(UNAVAILABLE)
            if cut == "internal":
                await context.abort(grpc.StatusCode.INTERNAL, "lost")
            if cut == "end":
                return
            if cut == "reconnect":
                progress = run_service_pb2.Progress(reconnect=True)
                yield run_service_pb2.WatchRunResponse(cursor=_cursor(position), progress=progress)
                await asyncio.Event().wait()

    async def ApplyWorkflow(
        self, request: workflow_service_pb2.ApplyWorkflowRequest, context: Any
    ) -> workflow_service_pb2.ApplyWorkflowResponse:
        await self._enter(request, context)
        revision = workflow_pb2.WorkflowRevision(
            workflow=request.workflow.name, revision="0123456789abcdef", definition=request.workflow
        )
        existing = self.applied.get(request.workflow.name) == revision
        self.applied[request.workflow.name] = revision
        return workflow_service_pb2.ApplyWorkflowResponse(revision=revision, existing=existing)

    async def CheckWorkflow(
        self, request: workflow_service_pb2.CheckWorkflowRequest, context: Any
    ) -> workflow_service_pb2.CheckWorkflowResponse:
        await self._enter(request, context)
        return workflow_service_pb2.CheckWorkflowResponse(violations=self.violations)

    async def GetWorkflow(
        self, request: workflow_service_pb2.GetWorkflowRequest, context: Any
    ) -> workflow_service_pb2.GetWorkflowResponse:
        await self._enter(request, context)
        return workflow_service_pb2.GetWorkflowResponse(revision=self.applied[request.workflow])

    async def ListWorkflows(
        self, request: workflow_service_pb2.ListWorkflowsRequest, context: Any
    ) -> workflow_service_pb2.ListWorkflowsResponse:
        await self._enter(request, context)
        found, token = _page(list(self.applied.values()), request)
        return workflow_service_pb2.ListWorkflowsResponse(workflows=found, next_page_token=token)

    async def ListWorkflowRevisions(
        self, request: workflow_service_pb2.ListWorkflowRevisionsRequest, context: Any
    ) -> workflow_service_pb2.ListWorkflowRevisionsResponse:
        await self._enter(request, context)
        found, token = _page([self.applied[request.workflow]] * 3, request)
        return workflow_service_pb2.ListWorkflowRevisionsResponse(revisions=found, next_page_token=token)

    async def DeleteWorkflow(
        self, request: workflow_service_pb2.DeleteWorkflowRequest, context: Any
    ) -> workflow_service_pb2.DeleteWorkflowResponse:
        await self._enter(request, context)
        return workflow_service_pb2.DeleteWorkflowResponse(revision=self.applied.pop(request.workflow))

    async def GetWorker(
        self, request: worker_service_pb2.GetWorkerRequest, context: Any
    ) -> worker_service_pb2.GetWorkerResponse:
        await self._enter(request, context)
        return worker_service_pb2.GetWorkerResponse(worker=worker_pb2.Worker(name=request.worker))

    async def ListWorkers(
        self, request: worker_service_pb2.ListWorkersRequest, context: Any
    ) -> worker_service_pb2.ListWorkersResponse:
        await self._enter(request, context)
        found, token = _page([worker_pb2.Worker(name=name) for name in sorted(self.workers)], request)
        return worker_service_pb2.ListWorkersResponse(workers=found, next_page_token=token)

    async def RegisterWorker(
        self, request: worker_service_pb2.RegisterWorkerRequest, context: Any
    ) -> worker_service_pb2.RegisterWorkerResponse:
        await self._enter(request, context)
        self.workers[request.worker].add(request.address)
        self.journal.append(f"register {request.worker} {request.address}")
        return worker_service_pb2.RegisterWorkerResponse(worker=worker_pb2.Worker(name=request.worker))

    async def DrainWorker(
        self, request: worker_service_pb2.DrainWorkerRequest, context: Any
    ) -> worker_service_pb2.DrainWorkerResponse:
        await self._enter(request, context)
        self.journal.append(f"drain {request.worker} {request.address}")
        return worker_service_pb2.DrainWorkerResponse(worker=worker_pb2.Worker(name=request.worker))

    async def DeleteWorker(
        self, request: worker_service_pb2.DeleteWorkerRequest, context: Any
    ) -> worker_service_pb2.DeleteWorkerResponse:
        await self._enter(request, context)
        self.workers[request.worker].discard(request.address)
        self.journal.append(f"delete {request.worker} {request.address}")
        return worker_service_pb2.DeleteWorkerResponse(worker=worker_pb2.Worker(name=request.worker))


def _page(items: list[Any], request: Any) -> tuple[list[Any], str]:
    start = int(request.page_token or 0)
    end = start + (request.page_size or 50)
    return items[start:end], str(end) if end < len(items) else ""


def _cursor(sequence: int) -> str:
    return f"c{sequence}"


def _ended(run: run_pb2.Run) -> bool:
    return run.state in (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED)
