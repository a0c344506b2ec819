"""Delegate and heartbeat: what a worker asks for on behalf of the step that it was called for.

The step token says which attempt asks. A delegated step is an ordinary step of the run: what is here checks the
request, and waits for the step's end where it is asked to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from baton.v1 import run_pb2, step_service_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.compiled import CompiledStep
from orchestrator.contracts.packed import PackedInvalid, unpack
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.settings import duration_us, retry_policy
from orchestrator.contracts.violations import Report
from orchestrator.domain import errors
from orchestrator.domain.caller import StepClaim
from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Delegation
from orchestrator.domain.plan import delegation_limit, find_delegated
from orchestrator.domain.retrying import place_of
from orchestrator.domain.states import ENDED_STEP
from orchestrator.domain.workflow import Delivery, Target
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import FULL, RunReader
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.live import Flight, LiveRun
from orchestrator.engine.messages import to_any
from orchestrator.engine.ownership import Ownership
from orchestrator.engine.view import render_wait

MAX_CHECKPOINT_BYTES = 256 << 10

ReadStepToken = Callable[[str], StepClaim]
"""Reads a step token. Errors: StepTokenInvalid."""


class Steps:
    """Implements api.Steps: what workers ask for on behalf of their steps."""

    def __init__(
        self,
        driver: Driver,
        catalogue: Catalogue,
        ownership: Ownership,
        reader: RunReader,
        read_token: ReadStepToken,
    ) -> None:
        self._driver, self._catalogue, self._ownership = driver, catalogue, ownership
        self._reader, self._read_token = reader, read_token

    async def delegate(self, request: step_service_pb2.DelegateRequest) -> step_service_pb2.DelegateResponse:
        """See Delegate."""
        if len(request.request.value) > MAX_PAYLOAD_BYTES:
            raise errors.PayloadTooLarge(
                f"request: {len(request.request.value)} bytes; the limit is {MAX_PAYLOAD_BYTES}. Pass a reference"
            )
        claim = self._read_token(request.step_token)
        await self._catalogue.meet(claim.namespace)
        live, parent = await self._find(claim)
        self._driver.liveness.heard(live, parent, 0.0, "", None)
        index = find_delegated(live.run, parent, request.key)
        existing = index is not None
        if index is None:
            index = self._begin(live, parent, claim, request)
        else:
            _require_same(live, index, request)
        end_seconds = asyncio.get_running_loop().time()
        if request.HasField("wait_timeout"):
            end_seconds += duration_us(request.wait_timeout) / 1_000_000
        held = not await self._wait(live, parent, claim, index, end_seconds) and not request.detached
        # As it is now, and told once that is durable: in a busy run there is always something that is not yet.
        step = self._held(live, parent, index) if held else self._reader.render_step(live, index, FULL)
        if not await live.durable(live.run.sequence):
            raise _moved()
        return step_service_pb2.DelegateResponse(step=step, existing=existing, held=held)

    async def heartbeat(self, request: step_service_pb2.HeartbeatRequest) -> step_service_pb2.HeartbeatResponse:
        """See Heartbeat."""
        if len(request.checkpoint.value) > MAX_CHECKPOINT_BYTES:
            raise errors.PayloadTooLarge(
                f"checkpoint: {len(request.checkpoint.value)} bytes; the limit is {MAX_CHECKPOINT_BYTES}"
            )
        claim = self._read_token(request.step_token)
        live, index = await self._find(claim)
        checkpoint = None
        if request.HasField("checkpoint"):
            checkpoint = Payload(request.checkpoint.type_url.rpartition("/")[2], request.checkpoint.value)
        self._driver.liveness.heard(live, index, request.percent, request.message, checkpoint)
        kept = live.checkpoint(index)
        return step_service_pb2.HeartbeatResponse(checkpoint=to_any(kept) if kept is not None else None)

    async def _find(self, claim: StepClaim) -> tuple[LiveRun, int]:
        """Finds the run and step of an attempt that is under way. Errors: StepNotRunning, and those of find."""
        live = await self._ownership.find(RunKey(claim.namespace, claim.run_id))
        if live is not None and live.epoch < claim.epoch:
            raise _moved()  # This replica has lost the run and has yet to learn of it: it knows nothing of the attempt.
        index = live.run.indexes.get(claim.step) if live is not None else None
        if live is None or index is None or not _is_current(live, index, claim):
            raise errors.StepNotRunning(
                f"step_token: attempt {claim.attempt} of {claim.step} is not under way any more; stop working on it"
            )
        return live, index

    def _begin(self, live: LiveRun, parent: int, claim: StepClaim, request: step_service_pb2.DelegateRequest) -> int:
        step, digest = self._served(live, request.method)
        _check_request(step, request.request)
        limit = delegation_limit(live.run, parent)
        if limit:
            raise errors.DelegationLimit(f"key: {limit}")
        index = place_of(live.run, f"{claim.step}/{request.key}")
        live.data.learn(index, step, digest)
        given = Delegation(
            parent,
            claim.attempt,
            request.key,
            _target(step, request),
            digest,
            request.detached,
            Delivery(request.delivery or Delivery.AT_LEAST_ONCE),
            duration_us(request.step_timeout) if request.HasField("step_timeout") else None,
            Payload(step.targets[0].request_class.DESCRIPTOR.full_name, request.request.value),
        )
        if not self._driver.advance(live, given).events:
            live.data.unlearn(index)
            raise errors.DelegationLimit("the run has as many events as it may: no step can be added")
        return index

    def _served(self, live: LiveRun, method: str) -> tuple[CompiledStep, str]:
        """Finds what a method is, best by a contract that the run uses already. Errors: MethodNotServed."""
        digests = [group.contract_digest for group in self._catalogue.groups(live.key.namespace, method)]
        digests.sort(key=lambda digest: digest not in live.compiled.contract_digests)
        for digest in digests:
            step = self._catalogue.loaded_step(digest, method)
            if step is not None:
                return step, digest
        raise errors.MethodNotServed(
            f"method: no registered worker serves {method} as a unary method; register one with RegisterWorker"
        )

    async def _wait(self, live: LiveRun, parent: int, claim: StepClaim, index: int, end_seconds: float) -> bool:
        """Waits for the end of a delegated step, meanwhile without the permits of the attempt that waits, and then for
        these permits; False where it has to wait for them longer than until `end_seconds`."""
        flight = self._flight(live, parent, claim)
        if flight is None:
            return True
        flight.requests += 1
        try:
            if not _has_ended(live, index) and _left(end_seconds) > 0:
                with self._driver.resumptions.lent(live, flight, index):
                    while not _has_ended(live, index) and _left(end_seconds) > 0:
                        await live.flushed(_left(end_seconds))
                        self._flight(live, parent, claim)
            # While another request of the attempt waits for its step, this one cannot wait for the permits; one whose
            # step has ended, as the same asked again, is about to want them too.
            while (one := flight.resumption) is not None and all(
                _has_ended(live, each) for each in [index, *one.waits]
            ):
                if _left(end_seconds) <= 0:
                    return False
                await one.changed.wait(_left(end_seconds))
                self._flight(live, parent, claim)
            self._driver.liveness.heard(live, parent, 0.0, "", None)
        finally:
            flight.requests -= 1
        return True

    @staticmethod
    def _flight(live: LiveRun, parent: int, claim: StepClaim) -> Flight | None:
        """The call of an attempt that is still under way. Errors: StepNotRunning, OwnerUnavailable."""
        if not _is_current(live, parent, claim):
            raise errors.StepNotRunning("step_token: the attempt has ended meanwhile; stop working on it")
        if live.forgotten:
            raise _moved()
        return live.flights.get(parent)

    def _held(self, live: LiveRun, parent: int, index: int) -> run_pb2.RunStep:
        """What the caller is told of a step whose end it is not to hear of yet."""
        step = run_pb2.RunStep(step=live.run.steps[index].spec.id)
        wait = self._driver.resumptions.wait_of(live, parent)
        if wait is not None:
            step.wait_reason.CopyFrom(render_wait(wait))
        return step


def _left(end_seconds: float) -> float:
    return end_seconds - asyncio.get_running_loop().time()


def _has_ended(live: LiveRun, index: int) -> bool:
    return live.run.steps[index].state in ENDED_STEP


def _is_current(live: LiveRun, index: int, claim: StepClaim) -> bool:
    return live.epoch == claim.epoch and live.run.is_current(index, claim.attempt)


def _moved() -> errors.OwnerUnavailable:
    return errors.OwnerUnavailable("the run is with another replica by now; ask again", retry_delay_seconds=0.5)


def _require_same(live: LiveRun, index: int, request: step_service_pb2.DelegateRequest) -> None:
    delegated = live.run.steps[index].delegated
    same = (
        delegated is not None
        and delegated.target.method == request.method
        and delegated.detached == request.detached
        and _means_the_same(live.data.target(index).request_class, delegated.payload.data, request.request.value)
    )
    if not same:
        method = delegated.target.method if delegated is not None else "another method"
        raise errors.DelegationConflict(
            f"key: {request.key!r} was used for a call of {method} with another request; take a new key for a new "
            "step, and give the same request under the same key in each attempt",
            metadata={"key": request.key},
        )


def _means_the_same(request_class: type[Message], one: bytes, two: bytes) -> bool:
    """Tells whether two serialized requests are the same message. The bytes may differ: the entries of a map field come
    in any order, in some languages in another one each time."""
    if one == two:
        return True
    try:
        return request_class.FromString(one).SerializeToString(deterministic=True) == request_class.FromString(
            two
        ).SerializeToString(deterministic=True)
    except DecodeError:
        return False


def _check_request(step: CompiledStep, given: Any) -> None:
    """Holds a request to the method's input type. Errors: InvalidRequest."""
    request_class, taker = step.targets[0].request_class, f"{step.id} takes"
    try:
        unpack(given, request_class, Requirements(), taker=taker, what="request", may_be_empty=True)
    except PackedInvalid as error:
        path = f"request.{error.field}" if error.field else "request"
        fault = errors.FieldFault(path, "INVALID_REQUEST", error.message)
        raise errors.InvalidRequest(f"{path}: {error.message}", faults=[fault]) from None


def _target(step: CompiledStep, request: step_service_pb2.DelegateRequest) -> Target:
    report = Report()
    retry = retry_policy(
        request.retry if request.HasField("retry") else None, step.targets[0].repeatable, "retry", report
    )
    faults = [errors.FieldFault(one.path, "INVALID_REQUEST", one.message) for one in report.violations()]
    if faults:
        raise errors.InvalidRequest(f"{faults[0].path}: {faults[0].message}", faults=faults)
    timeout_us = duration_us(request.attempt_timeout) if request.HasField("attempt_timeout") else None
    return Target(request.method, retry, step.targets[0].repeatable, timeout_us)
