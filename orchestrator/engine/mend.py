"""Mend: opens another round of a run that has ended, and retries, ends or holds steps of one that goes on.

An ended run has no owner, and no claim of its own: its first events of the new round and the change of its row are
written by one transaction, under the epoch and the sequence that it ended with. So whoever is first reopens it, a
replica that dies in between leaves it as it was, and any replica can do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from baton.v1 import run_pb2, run_service_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.domain import errors
from orchestrator.domain.caller import Caller
from orchestrator.domain.events import JOURNAL_FORMAT, Payload
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.inputs import PauseRequest, Reopening, ResumeRequest, StepRetry, Substitution
from orchestrator.domain.plan import steps_begun_anew, steps_retried
from orchestrator.domain.retrying import waiting_for_their_time
from orchestrator.domain.states import ENDED_RUN, ENDED_STEP, RunState, StepState
from orchestrator.domain.waits import RunAwaited
from orchestrator.domain.workflow import StepRole
from orchestrator.engine import mend_checks
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ownership import Ownership
from orchestrator.engine.ports import Clock, JournalStore, ReopenedRun, RunStore, WriteResult, WriteState
from orchestrator.engine.rebuild import load_run
from orchestrator.engine.submit import Submitter
from orchestrator.engine.transit import Transit
from orchestrator.engine.unreadable import told_if_unreadable

TRIES = 5
"""How often a run is looked at anew that others mend, or that ends, at the same time."""

END_SECONDS = 10.0
"""How long the end of a run may take to be durable."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of a run. `step` is begun anew or, with `skip`, ended with `output` or without."""

    run_timeout: duration_pb2.Duration | None = None
    reason: str = ""
    round: int = 0
    validate_only: bool = False
    revision: str = ""
    input: any_pb2.Any | None = None
    step: str = ""
    skip: bool = False
    output: any_pb2.Any | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """The run after it was mended, its cursor, and the steps that begin anew."""

    run: run_pb2.Run
    cursor: str
    reset: Sequence[str] = ()


class Mender:
    """Mends runs of the caller's namespace."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        reader: RunReader,
        ownership: Ownership,
        submitter: Submitter,
        transit: Transit,
        runs: RunStore,
        journal: JournalStore,
        clock: Clock,
    ) -> None:
        self._driver, self._catalogue, self._reader, self._ownership = driver, catalogue, reader, ownership
        self._submitter, self._transit, self._runs, self._journal = submitter, transit, runs, journal
        self._clock = clock

    async def retry(self, caller: Caller, request: run_service_pb2.RetryRunRequest) -> run_service_pb2.RetryRunResponse:
        """See RetryRun."""
        wish = Wish(
            _timeout(request),
            request.reason,
            request.round,
            request.validate_only,
            request.revision,
            request.input if request.HasField("input") else None,
        )
        mended = await self._mend_ended(caller, UUID(request.run_id), wish)
        return run_service_pb2.RetryRunResponse(run=mended.run, reset=mended.reset, cursor=mended.cursor)

    async def retry_step(
        self, caller: Caller, request: run_service_pb2.RetryStepRequest
    ) -> run_service_pb2.RetryStepResponse:
        """See RetryStep."""
        wish = Wish(_timeout(request), request.reason, request.round, request.validate_only, step=request.step)
        mended = await self._mend_ended(caller, UUID(request.run_id), wish)
        return run_service_pb2.RetryStepResponse(run=mended.run, reset=mended.reset, cursor=mended.cursor)

    async def skip(self, caller: Caller, request: run_service_pb2.SkipStepRequest) -> run_service_pb2.SkipStepResponse:
        """See SkipStep."""
        wish = Wish(
            _timeout(request),
            request.reason,
            request.round,
            request.validate_only,
            step=request.step,
            skip=True,
            output=request.output if request.HasField("output") else None,
        )
        mended = await self._mend_ended(caller, UUID(request.run_id), wish)
        return run_service_pb2.SkipStepResponse(run=mended.run, reset=mended.reset, cursor=mended.cursor)

    async def pause(self, caller: Caller, request: run_service_pb2.PauseRunRequest) -> run_service_pb2.PauseRunResponse:
        """See PauseRun."""
        given = PauseRequest(caller.principal, request.reason)
        run = await self._hold(caller, UUID(request.run_id), given, request.validate_only)
        return run_service_pb2.PauseRunResponse(run=run)

    async def resume(
        self, caller: Caller, request: run_service_pb2.ResumeRunRequest
    ) -> run_service_pb2.ResumeRunResponse:
        """See ResumeRun."""
        run = await self._hold(caller, UUID(request.run_id), ResumeRequest(caller.principal), request.validate_only)
        return run_service_pb2.ResumeRunResponse(run=run)

    # --- runs that go on

    async def _hold(
        self, caller: Caller, run_id: UUID, given: PauseRequest | ResumeRequest, validate_only: bool
    ) -> run_pb2.Run:
        live = await self._ownership.find(RunKey(caller.namespace, run_id))
        if live is None or live.run.ended:
            raise errors.RunEnded("the run has ended: no attempt starts any more", metadata={"run_id": str(run_id)})
        pause = isinstance(given, PauseRequest)
        if not validate_only:
            if live.run.paused is not pause and not self._driver.advance(live, given).events:
                raise _no_room()
            await self._durable(live)  # Where it is so already, that may be the wish of another, on its way.
        run, _ = await self._reader.get_after(caller, run_id)
        return run

    async def _mend_live(self, caller: Caller, live: LiveRun, wish: Wish) -> Mended | None:
        """Mends a run that goes on; None where it is to be looked at anew."""
        if not wish.step:
            reset: Sequence[str] | None = await self._retry_all_live(caller, live, wish)
        else:
            index = mend_checks.find_step(live, wish.step)
            if wish.skip:
                reset = await self._skip_live(caller, live, index, wish)
            elif live.run.steps[index].state in ENDED_STEP:
                reset = await self._begin_anew(caller, live, index, wish, None)
            else:
                reset = await self._try_now(caller, live, index, wish)
        if reset is None:
            return None
        run, cursor = await self._reader.get_after(caller, live.key.run_id)
        return Mended(run, cursor, reset)

    async def _retry_all_live(self, caller: Caller, live: LiveRun, wish: Wish) -> Sequence[str]:
        """Lets all that waits for its next attempt be tried now. Failures in a run that goes on were foreseen."""
        run, told = live.run, {"run_id": live.run_id}
        if wish.input is not None or wish.revision not in ("", run.revision):
            raise errors.RunActive(
                "the run has not ended: it goes on with what it has; cancel it, and retry it then", metadata=told
            )
        now = self._now(live)
        steps = list[int]()
        for index in range(len(run.graph.steps)):
            waiting = waiting_for_their_time(run, index, now)
            # What a step has handed over may wait after the step's own end.
            steps += waiting if run.steps[index].state in ENDED_STEP else [index][: len(waiting)]
        if not steps or run.state is RunState.UNDOING:
            raise errors.RunActive(
                "the run has not ended, and no step of it waits for its next attempt: wait for its end, or cancel it",
                metadata=told,
            )
        for index in () if wish.validate_only else steps:
            self._let_be_tried(caller, live, index, wish, now)
        await self._durable(live)
        return ()

    async def _try_now(self, caller: Caller, live: LiveRun, index: int, wish: Wish) -> Sequence[str]:
        """Lets a step that waits for its next attempt be tried now; one that is being tried is left alone."""
        now = self._now(live)
        if not waiting_for_their_time(live.run, index, now):
            mend_checks.require_its_turn(live, index)
        elif not wish.validate_only:
            self._let_be_tried(caller, live, index, wish, now)
        await self._durable(live)
        return ()

    def _let_be_tried(self, caller: Caller, live: LiveRun, index: int, wish: Wish, now: int) -> None:
        if not live.forgotten and waiting_for_their_time(live.run, index, now):
            self._advance(live, StepRetry(index, None, caller.principal, wish.reason), now)

    def _now(self, live: LiveRun) -> int:
        """The time that the next event of a run has: whether a step waits is to be asked, and decided, at the same. Its
        last event may be ahead of this replica's clock."""
        return max(self._clock.now(), live.run.time + 1)

    async def _skip_live(self, caller: Caller, live: LiveRun, index: int, wish: Wish) -> Sequence[str] | None:
        """Ends a step of a run that goes on; None where it is to be looked at anew."""
        await self._check_skip(live, index, wish)
        payload = None if wish.output is None else mend_checks.substitute(live, index, wish.output)
        step, given = live.run.steps[index], Substitution(index, payload, caller.principal)
        if live.forgotten or live.run.ended:
            return None
        if step.state in ENDED_STEP:
            if step.state is StepState.SUCCEEDED and step.spec.role is StepRole.WORKFLOW:
                raise _not_mendable(wish.step, "it has succeeded, and its run goes on; RetryStep runs it again")
            return await self._begin_anew(caller, live, index, wish, given)
        if step.spec.role is StepRole.UNDO and step.state is StepState.BLOCKED:
            raise _not_mendable(wish.step, "its turn has not come")
        if not wish.validate_only:
            self._driver.advance(live, given)
            await self._durable(live)
        return ()

    async def _begin_anew(
        self, caller: Caller, live: LiveRun, index: int, wish: Wish, instead: Substitution | None
    ) -> Sequence[str] | None:
        """Lets an ended step begin anew while its run goes on, or ends it otherwise; None where it is to be looked at
        anew."""
        run, step = live.run, live.run.steps[index]
        mend_checks.require_ended_before(live, index)
        reset = [run.steps[other].spec.id for other in steps_retried(run, index)]
        if wish.validate_only:
            return reset
        # What follows from its end is done when that is durable, such as cancelling its child run.
        if not await live.durable(run.sequence) or run.ended or run.steps[index] is not step:
            return None
        mend_checks.require_ended_before(live, index)
        ended = [other for other, one in enumerate(run.steps) if one.state in ENDED_STEP]
        live.cancel_timers_of({*ended, *steps_retried(run, index)})
        try:
            self._advance(live, StepRetry(index, instead, caller.principal, wish.reason))
        except errors.MendLimit:
            self._driver.queue_again(live, steps_retried(run, index))
            raise
        await self._durable(live)
        return reset

    def _advance(self, live: LiveRun, given: StepRetry, now: int | None = None) -> None:
        if not self._driver.advance(live, given, now).events and not live.forgotten:
            raise _no_room()

    async def _check_skip(self, live: LiveRun, index: int, wish: Wish) -> None:
        if wish.output is None:
            await mend_checks.require_dispensable(self._catalogue, live, index)

    @staticmethod
    async def _durable(live: LiveRun) -> None:
        if not await live.durable(live.run.sequence):
            raise errors.OwnerUnavailable("it is not known whether this was kept; look at the run, and send it again")

    # --- runs that have ended

    async def _mend_ended(self, caller: Caller, run_id: UUID, wish: Wish) -> Mended:
        key = RunKey(caller.namespace, run_id)
        for _ in range(TRIES):
            live = await self._ownership.find(key)
            if live is not None and live.run.ended:
                await live.left(END_SECONDS)  # Until that is durable.
                continue
            if live is not None:
                if wish.round and live.run.round > wish.round:
                    if not await live.durable(live.run.sequence):
                        continue
                    run, cursor = await self._reader.get_after(caller, run_id)
                    return Mended(run, cursor)
                mend_checks.require_round(live.run, wish.round)
                mended = await self._mend_live(caller, live, wish)
            else:
                with self._transit.of((key,)):
                    mended = await self._reopen(caller, key, wish)
            if mended is not None:
                return mended
        raise errors.OwnerUnavailable("others mend the run at the same time; look at it, and try again")

    async def _reopen(self, caller: Caller, key: RunKey, wish: Wish) -> Mended | None:
        """Reopens a run; None where it is to be looked at anew."""
        row = await self._runs.get_run(key)
        if row is None or row.state not in ENDED_RUN:
            return None
        with told_if_unreadable(key):
            live = await load_run(self._journal, row, self._catalogue)
        run = live.run
        if wish.round and run.round > wish.round:
            message, cursor = await self._reader.get_after(caller, key.run_id)
            return Mended(message, cursor)
        mend_checks.require_round(run, wish.round)
        mend_checks.require_reopenable(run)
        compiled, run_input, payload = await self._go_on_with(live, wish)
        expire_time = self._submitter.expire_time(compiled, wish.run_timeout)
        given = await self._reopening(caller, live, wish, compiled, expire_time, payload)
        reset = () if given.undo else steps_begun_anew(run, compiled.graph, given.again)
        if compiled is not live.compiled:
            mend_checks.require_compatible(live, compiled, reset, new_input=payload is not None)
        told = [name for name in reset if run.steps[run.indexes[name]].spec.role is StepRole.WORKFLOW]
        if wish.validate_only:
            message, cursor = await self._reader.get_after(caller, key.run_id)
            return Mended(message, cursor, told)
        if key in self._driver.runs:
            return None
        if not await self._begin(live, given, compiled, run_input):
            return None
        message, cursor = await self._reader.get_after(caller, key.run_id)
        return Mended(message, cursor, told)

    async def _begin(
        self, live: LiveRun, given: Reopening, compiled: CompiledWorkflow, run_input: Message | None
    ) -> bool:
        """Lets a run that was rebuilt go on here, durably; False where another replica was first."""
        self._submitter.require_room()
        live.epoch += 1
        live.reopened = ReopenedRun(live.run.round + 1, compiled.revision, given.expire_time, JOURNAL_FORMAT)
        live.data.go_on_with(compiled, run_input)
        accepted: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        live.accepted = accepted
        left = _children_left(live)
        self._driver.runs[live.key] = live
        if not self._driver.advance(live, given).events:
            self._driver.forget(live, "")
            raise _no_room()
        self._driver.adopt(live)
        try:
            result: WriteResult | None = await asyncio.shield(accepted)
        except asyncio.CancelledError:
            if not accepted.cancelled():
                raise
            result = None
        if result is None:
            raise errors.DatabaseUnavailable("it is not known whether the run was reopened; look at it, and try again")
        if result.state is not WriteState.WRITTEN:
            return False
        for awaited in left:
            self._driver.on_child_left(live, awaited)
        return True

    async def _go_on_with(self, live: LiveRun, wish: Wish) -> tuple[CompiledWorkflow, Message | None, Payload | None]:
        """Returns the revision that a run goes on with, and its new input, read and as it is stored."""
        run, compiled = live.run, live.compiled
        if wish.revision and wish.revision != run.revision:
            compiled = await self._catalogue.compiled(RevisionKey(live.key.namespace, run.workflow, wish.revision))
        if wish.input is not None:
            message, payload = mend_checks.new_input(compiled, wish.input)
            return compiled, message, payload
        return compiled, None, None

    async def _reopening(
        self,
        caller: Caller,
        live: LiveRun,
        wish: Wish,
        compiled: CompiledWorkflow,
        expire_time: int,
        payload: Payload | None,
    ) -> Reopening:
        again: tuple[int, ...] = ()
        undo: tuple[int, ...] = ()
        substitution = None
        if wish.step:
            index = mend_checks.find_step(live, wish.step)
            step = live.run.steps[index]
            if wish.skip:
                mend_checks.require_step(live, index)
                if step.state is StepState.SUCCEEDED and wish.step not in steps_begun_anew(live.run, live.run.graph):
                    raise _not_mendable(wish.step, "it has succeeded, and that is kept; RetryStep runs it again")
                await self._check_skip(live, index, wish)
                given = None if wish.output is None else mend_checks.substitute(live, index, wish.output)
                again, substitution = (index,), Substitution(index, given, caller.principal)
            elif step.spec.role is StepRole.UNDO:
                if step.state is StepState.SUCCEEDED:
                    raise _not_mendable(wish.step, "it has succeeded")
                undo = (step.spec.parent,)
            else:
                mend_checks.require_step(live, index)
                again = (index,)
        return Reopening(
            again, undo, substitution, compiled.revision, expire_time, caller.principal, wish.reason, payload
        )


def _children_left(live: LiveRun) -> list[RunAwaited]:
    """Returns the child runs of steps that ended before them: a replica that died may not have cancelled them, and none
    would do so once their parent goes on."""
    left = [step for step in live.run.steps if step.state in (StepState.CANCELLED, StepState.FAILED)]
    return [RunAwaited(step.child_run_id, "", "") for step in left if step.child_run_id]


def _timeout(
    request: run_service_pb2.RetryRunRequest | run_service_pb2.RetryStepRequest | run_service_pb2.SkipStepRequest,
) -> duration_pb2.Duration | None:
    return request.run_timeout if request.HasField("run_timeout") else None


def _not_mendable(step: str, why: str) -> errors.StepNotMendable:
    return errors.StepNotMendable(f"step: {step}: {why}", metadata={"step": step})


def _no_room() -> errors.MendLimit:
    return errors.MendLimit("the run has as many events as it may; fork it, or submit it anew")
