"""RunService: requests of the wire to calls of the engine, and back."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast
from uuid import UUID

from baton.v1 import run_service_pb2, run_service_pb2_grpc
from baton.v1.run_service_pb2 import RUN_VIEW_BASIC, RUN_VIEW_FULL, RUN_VIEW_RESULT, RUN_VIEW_UNSPECIFIED, RunView

from orchestrator.engine.api import Runs
from orchestrator.rpc.filters import parse_filter, require_ends
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.mending import Mending
from orchestrator.rpc.paging import EVENT_PAGE_SIZE, Listing, cut_page, page_size
from orchestrator.rpc.submissions import Submissions, require_input_size
from orchestrator.rpc.watches import Watches

WAIT_SECONDS = 60.0
"""How long WaitRun waits where the request does not say."""


class RunService(run_service_pb2_grpc.RunServiceServicer):
    """Serves RunService by `runs`. Requests have been validated, and the caller is known."""

    def __init__(self, runs: Runs, watches: Watches, submissions: Submissions) -> None:
        self._runs = runs
        self._watches = watches
        self._submissions = submissions
        self._mending = Mending(runs)

    async def SubmitRun(
        self, request: run_service_pb2.SubmitRunRequest, context: object
    ) -> run_service_pb2.SubmitRunResponse:
        """Submits a run."""
        require_input_size(request)
        request.view = _view_of_one(request.view)
        return await self._runs.submit(current_caller(), request)

    async def SubmitRuns(
        self, request: run_service_pb2.SubmitRunsRequest, context: object
    ) -> run_service_pb2.SubmitRunsResponse:
        """Submits many runs."""
        return await self._submissions.submit(current_caller(), request.requests)

    async def GetRun(self, request: run_service_pb2.GetRunRequest, context: object) -> run_service_pb2.GetRunResponse:
        """Reads a run."""
        run, cursor = await self._runs.get(current_caller(), UUID(request.run_id), _view_of_one(request.view))
        return run_service_pb2.GetRunResponse(run=run, cursor=cursor)

    async def ListRuns(
        self, request: run_service_pb2.ListRunsRequest, context: object
    ) -> run_service_pb2.ListRunsResponse:
        """Lists runs."""
        caller = current_caller()
        listing = Listing("ListRuns", caller.namespace, request.filter)
        before = listing.id_position(request.page_token)
        size = page_size(request.page_size)
        found = await self._runs.list(
            caller, parse_filter(request.filter), before, size + 1, _view_of_many(request.view)
        )
        runs, more = cut_page(found, size)
        return run_service_pb2.ListRunsResponse(
            runs=runs, next_page_token=listing.token(runs[-1].run_id) if more else ""
        )

    def WatchRun(
        self, request: run_service_pb2.WatchRunRequest, context: object
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """Streams a run."""
        view = _view_of_many(request.view)
        updates = self._runs.watch(current_caller(), UUID(request.run_id), request.cursor, view, request.batch)
        # What is encoded already passes through the serializer (layers.py), which the generated types do not know.
        messages = cast(AsyncGenerator[run_service_pb2.WatchRunResponse, None], updates)
        return self._watches.follow(messages, run_service_pb2.WatchRunResponse, request.cursor)

    def WatchRuns(
        self, request: run_service_pb2.WatchRunsRequest, context: object
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """Streams runs as they end."""
        terms, view = parse_filter(request.filter), _view_of_many(request.view)
        require_ends(terms)
        steps = request.steps and view != RUN_VIEW_RESULT
        updates = self._runs.watch_ends(current_caller(), terms, request.cursor, view, steps)
        messages = cast(AsyncGenerator[run_service_pb2.WatchRunsResponse, None], updates)  # As above.
        return self._watches.follow(messages, run_service_pb2.WatchRunsResponse, request.cursor)

    async def WaitRun(
        self, request: run_service_pb2.WaitRunRequest, context: object
    ) -> run_service_pb2.WaitRunResponse:
        """Waits for the end of a run."""
        seconds = WAIT_SECONDS
        if request.HasField("wait_timeout"):
            seconds = request.wait_timeout.ToNanoseconds() / 1_000_000_000
        run, cursor = await self._runs.wait(current_caller(), UUID(request.run_id), seconds, _view_of_one(request.view))
        return run_service_pb2.WaitRunResponse(run=run, cursor=cursor)

    async def ListRunSteps(
        self, request: run_service_pb2.ListRunStepsRequest, context: object
    ) -> run_service_pb2.ListRunStepsResponse:
        """Lists the steps of a run."""
        caller, run_id = current_caller(), UUID(request.run_id)
        listing = Listing("ListRunSteps", caller.namespace, str(run_id))
        after = listing.number_position(request.page_token)
        size = page_size(request.page_size, EVENT_PAGE_SIZE)
        found = await self._runs.list_steps(caller, run_id, after, size + 1, _view_of_parts(request.view))
        steps, more = cut_page(found, size)
        return run_service_pb2.ListRunStepsResponse(
            steps=steps, next_page_token=listing.token(str(after + len(steps))) if more else ""
        )

    async def ListRunEvents(
        self, request: run_service_pb2.ListRunEventsRequest, context: object
    ) -> run_service_pb2.ListRunEventsResponse:
        """Lists the journal of a run."""
        caller, run_id = current_caller(), UUID(request.run_id)
        listing = Listing("ListRunEvents", caller.namespace, str(run_id))
        after = listing.number_position(request.page_token)
        size = page_size(request.page_size, EVENT_PAGE_SIZE)
        found = await self._runs.list_events(caller, run_id, after, size + 1, _view_of_parts(request.view))
        events, more = cut_page(found, size)
        return run_service_pb2.ListRunEventsResponse(
            events=events, next_page_token=listing.token(str(events[-1].sequence)) if more else ""
        )

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, context: object
    ) -> run_service_pb2.CancelRunResponse:
        """Cancels a run."""
        run = await self._runs.cancel(current_caller(), UUID(request.run_id), request.reason)
        return run_service_pb2.CancelRunResponse(run=run)

    async def SignalRun(
        self, request: run_service_pb2.SignalRunRequest, context: object
    ) -> run_service_pb2.SignalRunResponse:
        """Sends a signal to a run."""
        return await self._runs.signal(current_caller(), request)

    async def RetryRun(
        self, request: run_service_pb2.RetryRunRequest, context: object
    ) -> run_service_pb2.RetryRunResponse:
        """Reopens a run."""
        return await self._runs.retry(current_caller(), request)

    async def RetryStep(
        self, request: run_service_pb2.RetryStepRequest, context: object
    ) -> run_service_pb2.RetryStepResponse:
        """Runs a step again."""
        return await self._runs.retry_step(current_caller(), request)

    async def SkipStep(
        self, request: run_service_pb2.SkipStepRequest, context: object
    ) -> run_service_pb2.SkipStepResponse:
        """Ends a step in its place."""
        return await self._runs.skip(current_caller(), request)

    async def ForkRun(
        self, request: run_service_pb2.ForkRunRequest, context: object
    ) -> run_service_pb2.ForkRunResponse:
        """Submits a run that begins at a step of another."""
        return await self._runs.fork(current_caller(), request)

    async def MendRuns(
        self, request: run_service_pb2.MendRunsRequest, context: object
    ) -> run_service_pb2.MendRunsResponse:
        """Mends many runs."""
        return await self._mending.mend(current_caller(), request)

    async def PauseRun(
        self, request: run_service_pb2.PauseRunRequest, context: object
    ) -> run_service_pb2.PauseRunResponse:
        """Pauses a run."""
        return await self._runs.pause(current_caller(), request)

    async def ResumeRun(
        self, request: run_service_pb2.ResumeRunRequest, context: object
    ) -> run_service_pb2.ResumeRunResponse:
        """Resumes a run."""
        return await self._runs.resume(current_caller(), request)


def _view_of_one(view: RunView.ValueType) -> RunView.ValueType:
    return RUN_VIEW_FULL if view == RUN_VIEW_UNSPECIFIED else view


def _view_of_many(view: RunView.ValueType) -> RunView.ValueType:
    return RUN_VIEW_BASIC if view == RUN_VIEW_UNSPECIFIED else view


def _view_of_parts(view: RunView.ValueType) -> RunView.ValueType:
    """The view of steps or events by themselves."""
    return RUN_VIEW_FULL if view == RUN_VIEW_FULL else RUN_VIEW_BASIC
