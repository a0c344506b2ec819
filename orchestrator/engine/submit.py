"""Submit: accepts a run. The accepting replica becomes its owner, and answers once the submission is durable."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from baton.v1 import run_service_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.packed import PackedInvalid
from orchestrator.contracts.scope import Scope
from orchestrator.domain import errors
from orchestrator.domain.caller import Caller
from orchestrator.domain.events import JOURNAL_FORMAT, Payload
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.inputs import Submission
from orchestrator.domain.plan import NEVER
from orchestrator.engine import machine
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.ends import Ends
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES, EngineLimits
from orchestrator.engine.live import Acceptance, LiveRun
from orchestrator.engine.ports import Clock, NewRun, WriteResult, WriteState
from orchestrator.engine.updates import encode_cursor
from orchestrator.engine.view import render_new
from orchestrator.engine.workflows import WorkflowCatalogue

SUBMISSIONS_A_TICK = 200
"""Submissions of one batch that are checked before others have their turn."""

NOT_IN_BODY = ("request_id", "wait_timeout", "view", "validate_only", "client_id", "traceparent")
"""Fields that two submissions of the same run may differ in."""


def body_hash(request: run_service_pb2.SubmitRunRequest) -> bytes:
    """Hashes what makes a submission the same submission."""
    body = run_service_pb2.SubmitRunRequest()
    body.CopyFrom(request)
    for field in NOT_IN_BODY:
        body.ClearField(field)  # type: ignore[arg-type]
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def _hash_of(request: run_service_pb2.SubmitRunRequest, fork: Fork | None) -> bytes:
    if not request.request_id:
        return b"\0" * 32
    return body_hash(request) if fork is None else fork.body_hash


def _require_storable(request: run_service_pb2.SubmitRunRequest) -> None:
    """Refuses text that no database row can hold. Errors: InvalidRequest."""
    texts = [("request_id", request.request_id), ("workspace", request.workspace), ("client_id", request.client_id)]
    texts += [(f'attributes["{key}"]', value) for key, value in request.attributes.items()]
    faults = [
        errors.FieldFault(path, "INVALID_REQUEST", "holds the character U+0000; leave it out")
        for path, text in texts
        if "\0" in text
    ]
    if faults:
        raise errors.InvalidRequest(f"{faults[0].path}: {faults[0].message}", faults=faults)


@dataclass(frozen=True, slots=True)
class Child:
    """What sets the run of a step apart: its id was given by the step, and its time ends with the step's."""

    run_id: UUID | None = None
    parent_run_id: str = ""
    parent_step: str = ""
    depth: int = 0
    expire_time: int = NEVER


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a run is forked: what it takes over, by the indexes of steps, and what makes it the same request."""

    run_id: str
    step: str
    kept: tuple[tuple[int, Payload], ...]
    body_hash: bytes


NO_CHILD = Child()


async def _told(accepted: asyncio.Future[WriteResult]) -> WriteResult | None:
    """Waits for what became of a submission; None where that is not known."""
    if not accepted.done():
        await asyncio.wait((accepted,))
    return None if accepted.cancelled() else accepted.result()


class _Batch:
    """What became of submissions that wait for their commits together: one future for all of them."""

    def __init__(self) -> None:
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.left = 1  # for those that are yet to come

    async def wait(self) -> None:
        """Waits until everything was told; nothing may come after this."""
        self.one_told()
        await self.told

    def one_told(self) -> None:
        """One was told."""
        self.left -= 1
        if not self.left and not self.told.done():
            self.told.set_result(None)


class _Place:
    """The place of one submission in a batch; see live.Acceptance."""

    __slots__ = ("_batch", "_done", "result")

    def __init__(self, batch: _Batch) -> None:
        self._batch, self._done = batch, False
        self.result: WriteResult | None = None
        batch.left += 1

    def done(self) -> bool:
        return self._done

    def set_result(self, result: WriteResult, /) -> None:
        self.result = result
        self.cancel()

    def cancel(self) -> None:
        self._done = True
        self._batch.one_told()


class Submitter:
    """Accepts runs for the caller's namespace."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        workflows: WorkflowCatalogue,
        reader: RunReader,
        ends: Ends,
        clock: Clock,
        limits: EngineLimits,
        trace: Callable[[], str],
    ) -> None:
        self._driver, self._catalogue, self._workflows, self._reader = driver, catalogue, workflows, reader
        self._ends, self._clock, self._limits, self._trace = ends, clock, limits, trace
        self.accepting = False

    async def submit(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest
    ) -> run_service_pb2.SubmitRunResponse:
        """See SubmitRun."""
        accepted: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        live = await self._begin(caller, request, lambda: accepted)
        if live is None:
            return run_service_pb2.SubmitRunResponse()
        loop = asyncio.get_running_loop()
        wait_seconds = request.wait_timeout.seconds + request.wait_timeout.nanos / 1e9
        end_seconds = loop.time() + wait_seconds
        if wait_seconds > 0 and not live.forgotten:
            # First for the end, which most runs reach in time: it comes after the acceptance, and to be woken for each
            # costs twice as much. A run that is not accepted is left too.
            await live.left(wait_seconds)
        result = await _told(accepted)
        key = self._key(live, request, result)
        return await self._answer(live, key, request, end_seconds - loop.time())

    async def submit_many(
        self, submissions: Sequence[tuple[Caller, run_service_pb2.SubmitRunRequest]]
    ) -> tuple[Sequence[run_service_pb2.SubmitRunResponse | BaseException], str]:
        """See SubmitRuns. Everything goes into the journal's queue in one tick, but where a revision must be read."""
        watch_cursor = await self._ends.position()
        batch = _Batch()
        begun: list[LiveRun | Exception | None] = []
        away: errors.DatabaseUnavailable | None = None
        for number, (caller, request) in enumerate(submissions, 1):
            if away is not None:
                begun.append(away)  # Each would wait for the database as long as the one before, one after the other.
                continue
            if number % SUBMISSIONS_A_TICK == 0:
                await asyncio.sleep(0)
            try:
                begun.append(await self._begin(caller, request, lambda: _Place(batch)))
            except errors.DatabaseUnavailable as error:
                begun.append(error)
                away = error
            except Exception as error:  # told to its own submitter; the others go on
                begun.append(error)
        await batch.wait()
        answers: list[run_service_pb2.SubmitRunResponse | BaseException] = []
        for (_, request), live in zip(submissions, begun, strict=True):
            try:
                answers.append(await self._accepted(request, live))
            except Exception as error:  # as above
                answers.append(error)
        return answers, watch_cursor

    async def _accepted(
        self, request: run_service_pb2.SubmitRunRequest, live: LiveRun | Exception | None
    ) -> run_service_pb2.SubmitRunResponse:
        """Answers one submission of a batch: a new run as it was accepted, one that was there as its row tells."""
        if live is None:
            return run_service_pb2.SubmitRunResponse()
        if isinstance(live, Exception):
            raise live
        assert isinstance(live.accepted, _Place)
        key = self._key(live, request, live.accepted.result)
        assert live.new is not None
        run = (
            render_new(key.run_id, live.new, live.run.traceparent, live.run.priority)
            if key == live.key
            else await self._reader.read_row(key)
        )
        return run_service_pb2.SubmitRunResponse(
            run=run, existing=key != live.key, cursor=encode_cursor(key.run_id, run.last_sequence)
        )

    async def _begin(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest, acceptance: Callable[[], Acceptance]
    ) -> LiveRun | None:
        """Checks a submission and stages its run; None where it was to be checked alone."""
        _require_storable(request)
        self.require_room()
        self._require_room_of(caller.namespace)
        revision, compiled = await self._revision(caller, request)
        run_input = self._input(compiled, request)
        if request.validate_only:
            return None
        # Again: thousands may have waited there for the database, and go on together.
        self.require_room()
        self._require_room_of(caller.namespace)
        accepted = acceptance()
        try:
            return self._start(caller, request, revision, compiled, run_input, accepted)
        except BaseException:
            if not accepted.done():
                accepted.cancel()  # Others may wait until all of their batch are told.
            raise

    @staticmethod
    def _key(live: LiveRun, request: run_service_pb2.SubmitRunRequest, result: WriteResult | None) -> RunKey:
        """Returns the run that a submission led to. Errors: RequestIdReused, DatabaseUnavailable."""
        if result is None:
            raise errors.DatabaseUnavailable(
                "the run could not be stored; submit it again with the same request_id", retry_delay_seconds=1.0
            )
        if result.state is WriteState.WRITTEN:
            return live.key
        if result.state is not WriteState.REQUEST_TAKEN:
            raise errors.DatabaseUnavailable(
                "the replica lost its lease; submit again with the same request_id", retry_delay_seconds=1.0
            )
        if not result.same_body or result.winner is None:
            raise errors.RequestIdReused(
                f"request_id: {request.request_id!r} was used for another request; take a new one for a new run",
                metadata={"request_id": request.request_id},
            )
        return RunKey(live.key.namespace, result.winner)

    def require_room(self) -> None:
        """Refuses what would begin another run. Errors: ShuttingDown, DatabaseUnavailable, TooManyRuns."""
        if not self.accepting:
            raise errors.ShuttingDown("this replica takes no new runs; try another", retry_delay_seconds=1.0)
        fault = self._driver.journal.fault
        if fault is not None:
            raise errors.DatabaseUnavailable(
                fault.message, metadata=fault.metadata, retry_delay_seconds=fault.retry_delay_seconds
            )
        if not self._driver.holds_lease:
            text = "this replica has yet to renew its lease, and may not know what has changed; try again"
            raise errors.DatabaseUnavailable(text, retry_delay_seconds=0.5)
        if self._driver.journal.queued_events + self._driver.unsettled_steps >= self._limits.max_queued_events:
            self._driver.settle()
        active, queued = len(self._driver.runs), self._driver.journal.queued_events
        held_bytes = self._driver.active_bytes
        if active >= self._limits.max_active_runs:
            raise errors.TooManyRuns(
                f"{active} runs are active; the replica takes {self._limits.max_active_runs}", retry_delay_seconds=0.5
            )
        if held_bytes >= self._limits.max_active_bytes:
            raise errors.TooManyRuns(
                f"the active runs hold {held_bytes} bytes; the replica lets them hold {self._limits.max_active_bytes}",
                retry_delay_seconds=0.5,
            )
        if queued >= self._limits.max_queued_events:
            raise errors.TooManyRuns(
                f"{queued} events wait for the database; the replica lets {self._limits.max_queued_events} wait",
                retry_delay_seconds=0.5,
            )
        if self._driver.journal.queued_bytes >= self._limits.max_queued_bytes:
            raise errors.TooManyRuns(
                f"{self._driver.journal.queued_bytes} bytes wait for the database; "
                f"the replica lets {self._limits.max_queued_bytes} wait",
                retry_delay_seconds=0.5,
            )

    def _require_room_of(self, namespace: str) -> None:
        """Holds one namespace to its part, so that others find room. Errors: NamespaceQueueFull."""
        share, waiting = self._driver.runs.share(namespace), self._driver.admission.queued_steps(namespace)
        if waiting + self._driver.unsettled_steps >= self._limits.namespace_max_queued_steps:
            self._driver.settle()
            waiting = self._driver.admission.queued_steps(namespace)
        if share.runs >= self._limits.namespace_max_active_runs:
            most = self._limits.namespace_max_active_runs
            text = f"the namespace has {share.runs} active runs here; the replica takes {most} of one namespace"
        elif share.held_bytes >= self._limits.namespace_max_active_bytes:
            most = self._limits.namespace_max_active_bytes
            text = f"the active runs of the namespace hold {share.held_bytes} bytes; the replica lets them hold {most}"
        elif waiting >= self._limits.namespace_max_queued_steps:
            most = self._limits.namespace_max_queued_steps
            text = f"{waiting} steps of the namespace wait here; the replica lets {most} of one namespace wait"
        else:
            return
        raise errors.NamespaceQueueFull(text, metadata={"limit": str(most)}, retry_delay_seconds=0.5)

    async def _revision(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest
    ) -> tuple[RevisionKey, CompiledWorkflow]:
        if request.HasField("inline_workflow"):
            return await self._workflows.inline(caller, request.inline_workflow, not request.validate_only)
        key = RevisionKey(caller.namespace, request.workflow, "")
        compiled = await self._catalogue.compiled(key)
        if request.revision and request.revision != compiled.revision:
            # Only now, so that a deleted name is refused whatever the revision.
            compiled = await self._catalogue.compiled(key._replace(revision=request.revision))
        return key._replace(revision=compiled.revision), compiled

    @staticmethod
    def _input(compiled: CompiledWorkflow, request: run_service_pb2.SubmitRunRequest) -> Message | None:
        if len(request.input.value) > MAX_PAYLOAD_BYTES:
            raise errors.PayloadTooLarge(
                f"input: {len(request.input.value)} bytes; the limit is {MAX_PAYLOAD_BYTES}. Pass a reference instead"
            )
        try:
            return compiled.parse_input(request.input)
        except PackedInvalid as error:
            path = f"input.{error.field}" if error.field else "input"
            raise errors.InputInvalid(
                f"{path}: {error.message}", faults=[errors.FieldFault(path, "INPUT_INVALID", error.message)]
            ) from None

    def expire_time(
        self, compiled: CompiledWorkflow, timeout: duration_pb2.Duration | None, now: int | None = None
    ) -> int:
        """Returns when the time of a run is over that begins now: the workflow's, or `timeout` where that is less."""
        timeout_us = compiled.run_timeout_us or int(self._limits.default_run_timeout_seconds * 1_000_000)
        if timeout is not None:
            timeout_us = min(timeout_us, timeout.ToMicroseconds())
        return (self._clock.now() if now is None else now) + timeout_us

    async def submit_child(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest, child: Child
    ) -> WriteState | None:
        """Submits the run of a step, and tells what became of that; None where it is not known.

        Errors: those of SubmitRun.
        """
        self.require_room()
        revision = RevisionKey(caller.namespace, request.workflow, request.revision)
        compiled = await self._catalogue.compiled(revision)
        run_input = self._input(compiled, request)
        accepted: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        self._start(caller, request, revision, compiled, run_input, accepted, child)
        result = await _told(accepted)
        return result.state if result is not None else None

    async def submit_fork(
        self, caller: Caller, request: run_service_pb2.SubmitRunRequest, fork: Fork
    ) -> run_service_pb2.SubmitRunResponse:
        """Submits a run that takes over what another has done. Errors: those of SubmitRun."""
        _require_storable(request)
        self.require_room()
        revision = RevisionKey(caller.namespace, request.workflow, request.revision)
        compiled = await self._catalogue.compiled(revision)
        run_input = self._input(compiled, request)
        accepted: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        live = self._start(caller, request, revision, compiled, run_input, accepted, fork=fork)
        result = await _told(accepted)
        return await self._answer(live, self._key(live, request, result), request, 0.0)

    def _start(
        self,
        caller: Caller,
        request: run_service_pb2.SubmitRunRequest,
        revision: RevisionKey,
        compiled: CompiledWorkflow,
        run_input: Message | None,
        accepted: Acceptance,
        child: Child = NO_CHILD,
        fork: Fork | None = None,
    ) -> LiveRun:
        now = self._clock.now()
        timeout = request.run_timeout if request.HasField("run_timeout") else None
        expire_time = min(self.expire_time(compiled, timeout, now), child.expire_time)
        labels, attributes = tuple(sorted(request.labels)), dict(request.attributes)
        new = NewRun(
            revision,
            request.request_id,
            _hash_of(request, fork),
            caller.principal,
            caller.channel,
            request.workspace,
            labels,
            attributes,
            now,
            expire_time,
            JOURNAL_FORMAT,
            request.client_id,
        )
        key = RunKey(caller.namespace, child.run_id or machine.new_run_id(now))
        live = LiveRun(key, 1, compiled, Scope(len(compiled.graph.steps), run_input), new)
        live.accepted = accepted
        payload = Payload(compiled.input_type, request.input.value) if run_input is not None else None
        submission = Submission(
            revision.workflow,
            revision.revision,
            expire_time,
            caller.principal,
            caller.channel,
            request.workspace,
            labels,
            attributes,
            caller.traceparent or self._trace(),
            request.request_id,
            payload,
            child.parent_run_id,
            child.parent_step,
            child.depth,
            *((fork.run_id, fork.step, fork.kept) if fork is not None else ("", "", ())),
            request.priority,
        )
        self._driver.runs[key] = live
        self._driver.advance(live, submission, now)
        self._driver.adopt(live)
        return live

    async def _answer(
        self, live: LiveRun, key: RunKey, request: run_service_pb2.SubmitRunRequest, wait_seconds: float
    ) -> run_service_pb2.SubmitRunResponse:
        view = request.view or run_service_pb2.RUN_VIEW_FULL
        if key == live.key and live.run.ended and live.settled:
            run = self._reader.render_ended(live, view, steps=True)
        else:
            try:
                run = await self._reader.wait_for_end(key, wait_seconds, view)
            except (errors.TooManyReads, errors.DatabaseUnavailable, errors.RunUnreadable):
                if key != live.key or live.new is None:
                    raise
                # It was accepted: whoever submitted it without a request_id, and is refused, would make another run.
                run = render_new(key.run_id, live.new, live.run.traceparent, live.run.priority)
        return run_service_pb2.SubmitRunResponse(
            run=run, existing=key != live.key, cursor=encode_cursor(key.run_id, run.last_sequence)
        )
