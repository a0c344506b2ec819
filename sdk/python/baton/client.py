"""The client: submits runs and reads them. How calls are made is in connection.py, what one run can do in runs.py."""
# ruff: noqa: ASYNC109 - these times go over the wire: the server waits that long too

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from google.protobuf.message import Message

from baton.catalogue import Catalogue, message_of, pages
from baton.connection import Connection, Lost, span
from baton.definitions import WorkflowDefinition
from baton.descriptors import descriptor_of
from baton.ends import Ends, watch_ends
from baton.errors import CallTimeout, Unavailable, WaitTimeout
from baton.limits import Limits
from baton.mending import Mending
from baton.payloads import pack
from baton.policies import Seconds
from baton.replicas import ReplicaCalls
from baton.runs import LATE_SECONDS, RunHandle, Told
from baton.schedules import ScheduleCalls
from baton.submissions import Submissions
from baton.v1 import approval_pb2, approval_service_pb2, event_pb2, run_pb2, run_service_pb2

if TYPE_CHECKING:
    import grpc

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)

_CALL_SECONDS = 30.0
_RETRY_SECONDS = 10.0
_EXECUTE_WAIT_SECONDS = 60.0
_WAIT_LIMIT_SECONDS = 600.0


class Client(Catalogue, ScheduleCalls, Mending, Limits, ReplicaCalls):
    """Talks to Baton: `async with Client() as client: …`.

    `address` is by default BATON_ADDRESS, else 127.0.0.1:7330. `timeout` limits one call, `retry_timeout` how long a
    call is repeated while Baton is unavailable; both in seconds. With `channel` every call takes that one, which the
    caller closes; without, waits and watches have channels of their own. `channel_name` is what runs say of where they
    were submitted from (Run.channel), lower-case; by default `grpc`. `principal` is who calls, and `namespace` in
    which namespace, by default BATON_NAMESPACE, both of which a development server believes.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        channel: grpc.aio.Channel | None = None,
        timeout: float = _CALL_SECONDS,
        retry_timeout: float = _RETRY_SECONDS,
        channel_name: str = "",
        principal: str = "",
        namespace: str | None = None,
    ) -> None:
        self._connection = Connection(address, channel, timeout, retry_timeout, channel_name, principal, namespace)
        self._ends = Ends(self._connection, steps=False)
        self._whole_ends = Ends(self._connection, steps=True)
        self._all_ends = (self._ends, self._whole_ends)
        self._submissions = Submissions(self._connection, self._all_ends)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; waits and watches that are under way end with an error."""
        self._connection.shut()
        await self._submissions.close()
        for ends in self._all_ends:
            await ends.close()
        await self._connection.close()

    @property
    def address(self) -> str:
        """Address of Baton."""
        return self._connection.address

    @overload
    async def submit(
        self,
        workflow: WorkflowDefinition[In, Out],
        input: In,
        *,
        inline: bool = False,
        revision: str = "",
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        workspace: str = "",
        labels: Iterable[str] = (),
        priority: int = 0,
        run_timeout: Seconds | None = None,
        wait_timeout: Seconds | None = None,
    ) -> RunHandle[Out]: ...

    @overload
    async def submit(
        self,
        workflow: str,
        input: Message | None = None,
        *,
        output: type[Out],
        revision: str = "",
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        workspace: str = "",
        labels: Iterable[str] = (),
        priority: int = 0,
        run_timeout: Seconds | None = None,
        wait_timeout: Seconds | None = None,
    ) -> RunHandle[Out]: ...

    @overload
    async def submit(
        self,
        workflow: str,
        input: Message | None = None,
        *,
        revision: str = "",
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        workspace: str = "",
        labels: Iterable[str] = (),
        priority: int = 0,
        run_timeout: Seconds | None = None,
        wait_timeout: Seconds | None = None,
    ) -> RunHandle[Message]: ...

    async def submit(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        input: Message | None = None,
        *,
        output: type[Message] | None = None,
        inline: bool = False,
        revision: str = "",
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        workspace: str = "",
        labels: Iterable[str] = (),
        priority: int = 0,
        run_timeout: Seconds | None = None,
        wait_timeout: Seconds | None = None,
    ) -> RunHandle[Any]:
        """Submits a run of an applied workflow, or with `inline` of the definition as it is, and returns its handle.

        `request_id` (by default a new one) makes the submission safe to repeat: the same id gives the same run.
        `attributes` can be searched by; `workspace` and `labels` go with the run; `run_timeout` limits it.
        `priority`, from -100 to 100, says which runs' steps come first where steps wait.
        `wait_timeout`, at most 10 minutes, lets this one call also wait for the end of the run. Many submissions at
        once share calls and are waited for by one stream; `run` of their handles shows less until they have ended.

        Raises InvalidRequest, NotFound (WORKFLOW_NOT_FOUND), Conflict (REQUEST_ID_REUSED) and Unavailable.
        """
        request, output_class = _submission(
            workflow,
            input,
            output=output,
            inline=inline,
            revision=revision,
            request_id=request_id,
            attributes=attributes,
            workspace=workspace,
            labels=labels,
            priority=priority,
            run_timeout=run_timeout,
        )
        wait_seconds = min(_seconds(wait_timeout or 0.0), _WAIT_LIMIT_SECONDS)
        end_time = time.monotonic() + wait_seconds
        run, together = await self._submit(request, output_class, wait_seconds)
        # Where it went alone it was waited for, but not for long by a replica that shuts down.
        left = wait_seconds if together else end_time - time.monotonic()
        if left > 0:
            with suppress(WaitTimeout, Unavailable):  # the run was taken: its handle can be waited by again
                await run.wait_for_end(left, steps=True)
        return run

    async def _submit(
        self,
        request: run_service_pb2.SubmitRunRequest,
        output_class: type[Message] | None,
        wait_seconds: float,
        retry_seconds: float = math.inf,
    ) -> tuple[RunHandle[Any], bool]:
        """Submits a run, and returns whether it went together with others; one that goes alone also waits for its end.
        While Baton is away it is tried again for `retry_seconds`, or for as long as other calls where that is less."""
        submitted = await self._submissions.submit(request, wait_seconds, retry_seconds)
        answer, ticket = submitted.answer, submitted.ticket
        run: RunHandle[Any] = RunHandle(
            self._connection,
            answer.run.run_id,
            output_class,
            run=answer.run,
            cursor=answer.cursor,
            existing=answer.existing,
            told=Told(ticket, self._ends, self._whole_ends) if ticket is not None else None,
        )
        if run.ended and submitted.together:
            await run.refresh()  # what was there already comes without its output
        return run, submitted.together

    @overload
    async def execute(
        self,
        workflow: WorkflowDefinition[In, Out],
        input: In,
        *,
        timeout: float | None = None,
        inline: bool = False,
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Out: ...

    @overload
    async def execute(
        self,
        workflow: str,
        input: Message | None = None,
        *,
        output: type[Out],
        timeout: float | None = None,
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Out: ...

    @overload
    async def execute(
        self,
        workflow: str,
        input: Message | None = None,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Message: ...

    async def execute(self, workflow: Any, input: Any = None, *, timeout: float | None = None, **options: Any) -> Any:
        """Submits a run, waits for its end in the same call, and returns its output; takes the options of submit.

        Raises what submit raises, RunFailed, RunCancelled, WaitTimeout after `timeout` seconds, and CallTimeout where
        the submission itself was not answered by then.
        """
        request, output_class = _submission(workflow, input, **options)
        if timeout is None:
            run, _ = await self._submit(request, output_class, _EXECUTE_WAIT_SECONDS)
            return await run.result()
        end_time = time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout + LATE_SECONDS) as scope:
                run, _ = await self._submit(request, output_class, min(timeout, _EXECUTE_WAIT_SECONDS), timeout)
        except TimeoutError:
            if not scope.expired():
                raise
            raise _unanswered(request, timeout) from None
        try:
            return await run.result(max(0.0, end_time - time.monotonic()))
        except WaitTimeout:
            raise WaitTimeout(run.id, timeout) from None  # the whole time, not what was left of it

    @overload
    def run(self, run_id: str, *, cursor: str = "") -> RunHandle[Message]: ...

    @overload
    def run(self, run_id: str, *, output: type[Out], cursor: str = "") -> RunHandle[Out]: ...

    def run(self, run_id: str, *, output: type[Message] | None = None, cursor: str = "") -> RunHandle[Any]:
        """Returns a handle of a run by its id, without a call; `cursor` is where its watch goes on."""
        return RunHandle(self._connection, run_id, output, cursor=cursor)

    async def get_run(self, run_id: str, *, full: bool = True, all_steps: bool = True) -> run_pb2.Run:
        """Returns a run with all its steps, with `full` also inputs and outputs.

        The steps of a large run take several calls; each is as it was at its call. Without `all_steps` there is one
        call, and `step_count` of the run tells how many steps there are.
        """
        request = run_service_pb2.GetRunRequest(run_id=run_id, view=_view(full))
        run = (await self._connection.call(lambda link: link.runs.GetRun, request)).run
        if all_steps and len(run.steps) < run.step_count:
            del run.steps[:]
            run.steps.extend([step async for step in self.list_steps(run_id, page_size=1000, full=full)])
        return run

    async def list_steps(
        self, run_id: str, *, page_size: int = 0, full: bool = False
    ) -> AsyncIterator[run_pb2.RunStep]:
        """Yields the steps of a run in the order of the workflow, over all pages."""
        request = run_service_pb2.ListRunStepsRequest(run_id=run_id, page_size=page_size, view=_view(full))
        async for page in pages(self._connection, lambda link: link.runs.ListRunSteps, request):
            for step in page.steps:
                yield step

    async def list_runs(
        self, filter: str = "", *, page_size: int = 0, full: bool = False
    ) -> AsyncIterator[run_pb2.Run]:
        """Yields runs without their steps, newest first, over all pages.

        `filter` holds terms joined by AND, such as `state = FAILED AND attributes.team = "pay"`.
        """
        request = run_service_pb2.ListRunsRequest(filter=filter, page_size=page_size, view=_view(full))
        async for page in pages(self._connection, lambda link: link.runs.ListRuns, request):
            for run in page.runs:
                yield run

    async def watch_runs(
        self,
        filter: str = "",
        *,
        cursor: str = "",
        full: bool = False,
        lost: Lost | None = None,
    ) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """Yields messages with the runs that have ended (`runs`), from now on or after `cursor`, for ever.

        `filter` is as for list_runs. No end is left out over lost connections; some may come again. `cursor` of a
        message takes the watch up elsewhere. `full` adds inputs and outputs. `lost` is called with the cause when a
        connection is lost and the watch tries for 5 minutes to go on, once until something is heard again. Raises
        BatonError.
        """
        request = run_service_pb2.WatchRunsRequest(filter=filter, cursor=cursor, view=_view(full))
        async with aclosing(watch_ends(self._connection, request, lost)) as messages:
            async for message in messages:
                yield message

    async def list_events(
        self, run_id: str, *, page_size: int = 0, full: bool = False
    ) -> AsyncIterator[event_pb2.RunEvent]:
        """Yields the journal of a run up to now, oldest first, over all pages."""
        request = run_service_pb2.ListRunEventsRequest(run_id=run_id, page_size=page_size, view=_view(full))
        async for page in pages(self._connection, lambda link: link.runs.ListRunEvents, request):
            for event in page.events:
                yield event

    async def cancel_run(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Cancels a run; raises Conflict (RUN_ENDED) where it has ended otherwise."""
        return await self.run(run_id).cancel(reason)

    async def signal(
        self, run_id: str, signal: str, message: Message | None = None, *, request_id: str | None = None
    ) -> bool:
        """Sends a signal to a run; see RunHandle.signal."""
        return await self.run(run_id).signal(signal, message, request_id=request_id)

    async def list_approvals(self, run_id: str = "", *, page_size: int = 0) -> AsyncIterator[approval_pb2.Approval]:
        """Yields the requests that wait for a person's decision, of one run or of all, oldest first, over all pages."""
        request = approval_service_pb2.ListApprovalsRequest(run_id=run_id, page_size=page_size)
        async for page in pages(self._connection, lambda link: link.approvals.ListApprovals, request):
            for approval in page.approvals:
                yield approval

    async def approve(self, approval: approval_pb2.Approval, reason: str = "") -> run_pb2.RunStep:
        """Approves exactly the request that `approval` shows; the step is then called with it. Returns the step.

        Raises NotFound (APPROVAL_NOT_FOUND) where the step waits no longer, Conflict (APPROVAL_CHANGED) where another
        request waits by now, and BatonError (APPROVER_NOT_ALLOWED) where this principal may not decide.
        """
        return await self._decide(approval, True, reason)

    async def deny(self, approval: approval_pb2.Approval, reason: str = "") -> run_pb2.RunStep:
        """Denies the request that `approval` shows: the step fails (APPROVAL_DENIED). Raises what `approve` raises."""
        return await self._decide(approval, False, reason)

    async def _decide(self, approval: approval_pb2.Approval, approved: bool, reason: str) -> run_pb2.RunStep:
        request = approval_service_pb2.DecideApprovalRequest(
            run_id=approval.run_id,
            step=approval.step,
            request_hash=approval.request_hash,
            approved=approved,
            reason=reason,
        )
        return (await self._connection.call(lambda link: link.approvals.DecideApproval, request)).step


def _submission(
    workflow: WorkflowDefinition[Any, Any] | str,
    given: Message | None,
    *,
    output: type[Message] | None = None,
    inline: bool = False,
    revision: str = "",
    request_id: str | None = None,
    attributes: Mapping[str, str] | None = None,
    workspace: str = "",
    labels: Iterable[str] = (),
    priority: int = 0,
    run_timeout: Seconds | None = None,
) -> tuple[run_service_pb2.SubmitRunRequest, type[Message] | None]:
    """Makes a submission, and tells the class of its output where that is known."""
    _check_input(workflow, given)
    request = run_service_pb2.SubmitRunRequest(
        revision=revision,
        request_id=request_id or str(uuid.uuid4()),
        attributes=attributes,
        workspace=workspace,
        labels=labels,
        priority=priority,
    )
    if isinstance(workflow, str):
        request.workflow = workflow
    else:
        output = workflow.output_class
        if inline:
            request.inline_workflow.CopyFrom(message_of(workflow))
        else:
            request.workflow = workflow.name
    if given is not None:
        request.input.CopyFrom(pack(given))
    if run_timeout is not None:
        request.run_timeout.CopyFrom(span(_seconds(run_timeout)))
    return request, output


def _unanswered(request: run_service_pb2.SubmitRunRequest, timeout_seconds: float) -> CallTimeout:
    text = (
        f"the submission was not answered within {timeout_seconds:g} s, and may have been taken; "
        f"submit it again with request_id={request.request_id!r} to have it once"
    )
    return CallTimeout("DEADLINE_EXCEEDED", "", text)


def _check_input(workflow: WorkflowDefinition[Any, Any] | str, given: object) -> None:
    if isinstance(workflow, str):
        name, wanted = workflow, "a message"
        fits = given is None or isinstance(given, Message)
    else:
        name, wanted = workflow.name, workflow.definition.input_type
        fits = isinstance(given, Message) and descriptor_of(given).full_name == wanted
    if not fits:
        got = "nothing" if given is None else f"a {type(given).__name__}"
        if isinstance(given, Message):
            got = descriptor_of(given).full_name
        raise TypeError(f"input: the workflow {name!r} takes {wanted}, not {got}")


def _seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def _view(full: bool) -> run_service_pb2.RunView.ValueType:
    return run_service_pb2.RUN_VIEW_FULL if full else run_service_pb2.RUN_VIEW_BASIC
