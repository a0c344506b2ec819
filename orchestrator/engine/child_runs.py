"""Child runs: submits the runs of steps, hands their ends to the steps, and cancels them with the steps.

A child's id and input are in the parent's journal before it is submitted, so that a new owner of the parent goes on
from there: a child that is there is not submitted again. A child may be driven by another replica than its parent; its
end is then seen by looking at its row.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple
from uuid import UUID

from baton.v1 import run_service_pb2

from orchestrator.domain import errors
from orchestrator.domain.caller import Caller
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import PARENT_ENDED, CancelRequest, ChildRunEnded
from orchestrator.domain.plan import step_expire_time
from orchestrator.domain.states import ENDED_RUN, ENDED_STEP, RunState
from orchestrator.domain.tracing import format_traceparent, parse_traceparent, step_span_id
from orchestrator.domain.waits import RunAwaited
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import FULL, RunReader
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import from_failure, to_any
from orchestrator.engine.ownership import AnsweredElsewhere, AskElsewhere, Ownership, RunElsewhere
from orchestrator.engine.ports import ReplicaStore, RunStore, WriteState
from orchestrator.engine.submit import Child, Submitter

_LOGGER = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often children are looked at that other replicas drive, or that could not be submitted yet."""

LOOKS_AT_PARENTS = 5
"""Every so many looks, children are cancelled whose parents have ended."""

LOOKED_AT = 500
"""Children that are looked at in one turn; more have theirs in the next."""

BEGUN_AT_ONCE = 16
"""Children that are submitted side by side, as their commits are shared; and so many are cancelled side by side."""

TRIED_AGAIN = frozenset({Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE})
"""Answers to a cancellation after which it is sent again."""

CANCEL_METHOD = "/baton.v1.RunService/CancelRun"
CANCEL_SECONDS = 15.0
"""How a child that another replica drives is cancelled, and how long that may take."""

REASON = "its step ended"
"""Reason that a child is cancelled for."""


class _Followed(NamedTuple):
    """A step and its child run."""

    live: LiveRun
    step: int
    child: RunKey


class ChildRuns:
    """Follows the child runs of this replica's runs."""

    def __init__(
        self,
        driver: Driver,
        submitter: Submitter,
        reader: RunReader,
        runs: RunStore,
        replicas: ReplicaStore,
        ownership: Ownership,
        ask_elsewhere: AskElsewhere,
    ) -> None:
        self._driver, self._submitter, self._reader, self._runs = driver, submitter, reader, runs
        self._replicas = replicas
        self._ownership, self._ask_elsewhere = ownership, ask_elsewhere
        self._followed: dict[RunKey, _Followed] = {}
        self._begun: set[RunKey] = set()  # Known to be there.
        self._beginning: set[RunKey] = set()  # Those in `_to_begin`, and those that were taken out last.
        self._to_begin: asyncio.Queue[RunKey] = asyncio.Queue()
        self._to_cancel: dict[RunKey, Caller] = {}
        self._cancelling: set[RunKey] = set()  # Those in `_cancels`, and those that were taken out last.
        self._cancels: asyncio.Queue[RunKey] = asyncio.Queue()
        self._looked_to = 0  # How many children were looked at for their parents, of those that are here.
        self._to_poke: list[RunKey] = []  # Parents that are parked, or driven elsewhere.

    def follow(self, live: LiveRun, step: int, awaited: RunAwaited) -> None:
        """Takes on a step that waits for its child run; its wait need not be durable yet."""
        followed = _Followed(live, step, RunKey(live.key.namespace, UUID(awaited.run_id)))
        self._followed[followed.child] = followed
        self._put_to_begin(followed.child)

    def leave(self, live: LiveRun, awaited: RunAwaited) -> None:
        """Cancels the child run of a step that ended before it; the step's end is durable."""
        key = RunKey(live.key.namespace, UUID(awaited.run_id))
        self._forget(key)
        child = self._driver.runs.get(key)
        if child is not None and not child.run.ended:
            self._driver.advance(child, CancelRequest(REASON, live.run.principal))
        else:
            self._cancel_soon(key, Caller(live.key.namespace, live.run.principal, live.run.channel))

    def run_ended(self, live: LiveRun) -> None:
        """Takes note of a run whose end is durable here."""
        followed = self._followed.get(live.key)
        if followed is not None and followed.live.forgotten:
            self._forget(live.key)  # The parent was parked meanwhile.
            followed = None
        if followed is not None:
            run = live.run
            payload = run.output if run.failure is None else None
            self._tell(followed, run.failure, payload)
        elif live.run.parent_run_id:
            self._to_poke.append(RunKey(live.key.namespace, UUID(live.run.parent_run_id)))

    def forget_all(self) -> None:
        """Drops everything: the lease is lost."""
        self._followed.clear()
        self._begun.clear()
        self._beginning.clear()
        self._to_cancel.clear()
        self._cancelling.clear()
        self._to_begin, self._cancels = asyncio.Queue(), asyncio.Queue()

    async def run(self) -> None:
        """Submits, looks and cancels for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(BEGUN_AT_ONCE):
                group.create_task(self._begin_all())
                group.create_task(self._cancel_all())
            group.create_task(self._look_for_ever())

    def _forget(self, key: RunKey) -> None:
        self._followed.pop(key, None)
        self._begun.discard(key)

    def _drop(self, followed: _Followed) -> None:
        if self._followed.get(followed.child) is followed:
            self._forget(followed.child)

    def _tell(self, followed: _Followed, failure: Failure | None, payload: Payload | None) -> None:
        self._drop(followed)
        followed.live.children.pop(followed.step, None)
        if followed.live.forgotten:
            self._to_poke.append(followed.live.key)  # It was parked while its child was looked at.
        else:
            given = ChildRunEnded(followed.step, str(followed.child.run_id), failure, payload)
            self._driver.advance(followed.live, given)

    # --- begin

    def _put_to_begin(self, child: RunKey) -> None:
        if child not in self._beginning:
            self._beginning.add(child)
            self._to_begin.put_nowait(child)

    async def _begin_all(self) -> None:
        while True:
            child = await self._to_begin.get()
            followed = self._followed.get(child)
            if followed is not None:
                await self._try_to_begin(followed)
            self._beginning.discard(child)
            if self._followed.get(child) not in (None, followed):
                self._put_to_begin(child)  # Its parent was parked and woken meanwhile.

    async def _try_to_begin(self, followed: _Followed) -> None:
        try:
            await self._begin(followed)
        except (errors.DatabaseUnavailable, errors.TooManyRuns, errors.TooManyReads, errors.ShuttingDown):
            pass  # Looked at again with the others.
        except errors.BatonError as error:
            text = f"the child run was refused: {error.message}"
            failure = Failure(Code.FAILED_PRECONDITION, error.reason, text, Origin.ORCHESTRATOR)
            self._tell(followed, failure, None)
        except Exception:
            _LOGGER.exception("run %s: its child run could not be submitted", followed.live.run_id)
            failure = Failure(Code.INTERNAL, "INTERNAL", "the child run could not be submitted", Origin.ORCHESTRATOR)
            self._tell(followed, failure, None)

    async def _begin(self, followed: _Followed) -> None:
        live, step = followed.live, followed.live.run.steps[followed.step]
        awaited = step.wait
        if not isinstance(awaited, RunAwaited) or not await live.durable(live.run.sequence):
            self._drop(followed)
            return
        row = None if followed.child in self._driver.runs else await self._runs.get_run(followed.child)
        if followed.child in self._driver.runs or row is not None:
            self._begun.add(followed.child)
            if row is not None and row.state in ENDED_RUN:
                await self._read_end(followed)  # A parent that was parked meanwhile may not wait for the next look.
            return
        run = live.run
        request = run_service_pb2.SubmitRunRequest(
            workflow=awaited.workflow,
            revision=awaited.revision,
            request_id=f"child/{awaited.run_id}",
            attributes=run.attributes,
            workspace=run.workspace,
            labels=run.labels,
            priority=run.priority,
        )
        if step.request is not None:
            request.input.CopyFrom(to_any(step.request))
        caller = Caller(live.key.namespace, run.principal, run.channel, _traceparent(live, step.spec.id))
        child = Child(
            followed.child.run_id, live.run_id, step.spec.id, run.depth + 1, step_expire_time(run, followed.step)
        )
        state = await self._submitter.submit_child(caller, request, child)
        if state is WriteState.REQUEST_TAKEN and await self._runs.get_run(followed.child) is None:
            raise errors.RequestIdReused(f"the request id {request.request_id} belongs to another run")
        if step.wait is not awaited and await live.durable(live.run.sequence):
            self._cancel_soon(followed.child, caller)  # The step ended when there was nothing to cancel yet.

    # --- look

    async def _look_for_ever(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            try:
                for child in self._to_cancel:
                    self._put_to_cancel(child)  # It could not be cancelled before.
                await self._look()
                await self._poke()
                if looks % LOOKS_AT_PARENTS == 0:
                    await self._look_at_parents()
            except errors.DatabaseUnavailable:
                continue
            except Exception:  # whatever is wrong with one run, the replica and its other runs go on
                _LOGGER.exception("child runs could not be looked at")

    async def _look(self) -> None:
        """Looks at children that are not driven here: some have ended, some are not there yet."""
        elsewhere = [one for key, one in self._followed.items() if key not in self._driver.runs][:LOOKED_AT]
        for followed in elsewhere:
            if followed.live.forgotten:
                self._drop(followed)
                continue
            row = await self._runs.get_run(followed.child)
            if row is None:
                if followed.child not in self._begun:
                    self._put_to_begin(followed.child)
                continue
            self._begun.add(followed.child)
            has_room = True
            if row.state in ENDED_RUN:
                try:
                    await self._read_end(followed)
                except errors.TooManyReads:
                    has_room = False
            # Those at the end have their turn next.
            if followed.child in self._followed:
                self._followed[followed.child] = self._followed.pop(followed.child)
            if not has_room:
                return  # It waited for long, and what comes after the look is not to wait for the others too.

    async def _read_end(self, followed: _Followed) -> None:
        try:
            run = await self._reader.read_ended(followed.child, FULL, steps=False)
        except errors.RunUnreadable:
            return  # Its parent waits on: it may be restored, or be read by another version.
        if RunState(run.state) not in ENDED_RUN:
            return  # Its row tells of an end that its journal lacks: see scrub.py.
        if self._followed.get(followed.child) is not followed:
            if followed.live.forgotten:
                self._to_poke.append(followed.live.key)  # As in _tell; it was dropped for that meanwhile.
            return
        failure = from_failure(run.failure) if run.HasField("failure") else None
        payload = None
        if failure is None and run.HasField("output"):
            payload = Payload(run.output.type_url.rpartition("/")[2], run.output.value)
        self._tell(followed, failure, payload)

    # --- cancel

    def _cancel_soon(self, child: RunKey, caller: Caller) -> None:
        """Cancels a child that is not in memory: at once, as nobody knows of this where the replica goes before. The
        child is then cancelled when it is taken over (recovery.py)."""
        self._to_cancel[child] = caller
        self._put_to_cancel(child)

    def _put_to_cancel(self, child: RunKey) -> None:
        if child not in self._cancelling:
            self._cancelling.add(child)
            self._cancels.put_nowait(child)

    async def _cancel_all(self) -> None:
        while True:
            child = await self._cancels.get()
            caller = self._to_cancel.get(child)
            if caller is not None and await self._is_cancelled(child, caller):
                self._to_cancel.pop(child, None)
            self._cancelling.discard(child)

    async def _is_cancelled(self, child: RunKey, caller: Caller) -> bool:
        """Cancels a child, or has the replica that drives it do that; False where it is to be tried again."""
        try:
            try:
                live = await self._ownership.find(child)
                if live is not None:
                    self._driver.advance(live, CancelRequest(REASON, caller.principal))
            except RunElsewhere as elsewhere:
                asked = run_service_pb2.CancelRunRequest(run_id=str(child.run_id), reason=REASON)
                raw = asked.SerializeToString()
                await self._ask_elsewhere(elsewhere.address, caller, CANCEL_METHOD, raw, CANCEL_SECONDS)
        except (errors.DatabaseUnavailable, errors.OwnerUnavailable, errors.ShuttingDown):
            return False  # Where this replica drains, the child is cancelled when it is taken over.
        except AnsweredElsewhere as answer:
            return answer.code not in TRIED_AGAIN  # Else it moved on meanwhile.
        except errors.RunNotFound:
            return True  # It was never submitted.
        except Exception:  # as above
            _LOGGER.exception("run %s could not be cancelled with its step", child.run_id)
            return False
        return True

    async def _poke(self) -> None:
        keys, self._to_poke = self._to_poke[:LOOKED_AT], self._to_poke[LOOKED_AT:]
        if keys:
            try:
                await self._replicas.poke(keys)
            except errors.DatabaseUnavailable:
                self._to_poke += keys
                raise

    async def _look_at_parents(self) -> None:
        """Cancels children whose parent or its step has ended without telling them: its replica died on the way."""
        children = [
            live
            for live in self._driver.runs.values()
            if live.run.parent_run_id and not live.run.ended and live.key not in self._followed
        ]
        first = self._looked_to if self._looked_to < len(children) else 0
        self._looked_to = first + LOOKED_AT
        for live in children[first : self._looked_to]:
            key = RunKey(live.key.namespace, UUID(live.run.parent_run_id))
            parent = self._driver.runs.get(key)
            if parent is not None:
                ended = _has_left(parent, live.run.parent_step)
            else:
                row = await self._runs.get_run(key)
                ended = row is None or row.state in ENDED_RUN
            if ended:
                self._driver.advance(live, CancelRequest(PARENT_ENDED, live.run.principal))


def _has_left(parent: LiveRun, step: str) -> bool:
    """Tells whether a step that runs a child has ended, durably."""
    index = parent.run.indexes.get(step)
    return index is not None and parent.settled and parent.run.steps[index].state in ENDED_STEP


def _traceparent(live: LiveRun, step: str) -> str:
    context = parse_traceparent(live.run.traceparent)
    if context is None:
        return ""
    begun = live.run.steps[live.run.indexes[step]].life
    return format_traceparent(context._replace(span_id=step_span_id(live.key.run_id, step, begun)))
