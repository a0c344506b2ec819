"""Signal: gives a run a typed message that a step of it waits for."""

from __future__ import annotations

from uuid import UUID

from baton.v1 import run_service_pb2
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.packed import PackedInvalid, unpack
from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import (
    FieldFault,
    InvalidRequest,
    OwnerUnavailable,
    PayloadTooLarge,
    RunEnded,
    SignalLimit,
    SignalNotFound,
)
from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import Signal
from orchestrator.domain.plan import MAX_KEPT_SIGNALS
from orchestrator.engine.drive import Driver
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES, EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ownership import Ownership


class Signals:
    """Sends signals to runs of the caller's namespace."""

    def __init__(self, driver: Driver, ownership: Ownership, reader: RunReader, limits: EngineLimits) -> None:
        self._driver, self._ownership, self._reader, self._limits = driver, ownership, reader, limits

    async def signal(
        self, caller: Caller, request: run_service_pb2.SignalRunRequest
    ) -> run_service_pb2.SignalRunResponse:
        """See SignalRun."""
        run_id = UUID(request.run_id)
        if len(request.payload.value) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"payload: {len(request.payload.value)} bytes; the limit is {MAX_PAYLOAD_BYTES}. Pass a reference"
            )
        key = RunKey(caller.namespace, run_id)
        live = await self._ownership.find(key)
        if live is None:
            # One who lost the answer asks again, and the signal may have been what the run ended with.
            if request.request_id and request.request_id in (await self._reader.fold(key)).signal_request_ids:
                return run_service_pb2.SignalRunResponse(existing=True)
            raise _ended(run_id)
        existing = self._take(live, caller, request)
        if not await live.durable(live.run.sequence):
            raise OwnerUnavailable("it is not known whether the signal was kept; send it again with its request_id")
        return run_service_pb2.SignalRunResponse(existing=existing)

    def _take(self, live: LiveRun, caller: Caller, request: run_service_pb2.SignalRunRequest) -> bool:
        """Lets a signal happen to a run; True where its request_id had arrived before. Errors: RunEnded,
        SignalNotFound, InvalidRequest, SignalLimit."""
        run = live.run
        if request.request_id and request.request_id in run.signal_request_ids:
            return True
        if run.ended:
            raise _ended(live.key.run_id)
        payload = _payload(live.compiled, request)
        if len(run.signals.get(request.signal, ())) >= MAX_KEPT_SIGNALS:
            raise SignalLimit(
                f"signal: {MAX_KEPT_SIGNALS} signals {request.signal} wait to be taken; send it when they are"
            )
        most = self._limits.max_run_bytes
        if payload is not None and live.held_bytes + len(payload.data) > most:
            raise SignalLimit(f"message: with it the run would hold more than {most} bytes; send a smaller one")
        given = Signal(request.signal, caller.principal, request.request_id, payload)
        if not self._driver.advance(live, given).events:
            raise SignalLimit("the run has as many events as it may: no signal can be kept")
        return False


def _ended(run_id: UUID) -> RunEnded:
    return RunEnded("the run has ended: nothing waits for a signal", metadata={"run_id": str(run_id)})


def _payload(compiled: CompiledWorkflow, request: run_service_pb2.SignalRunRequest) -> Payload:
    """Reads the message of a signal as its type. Errors: SignalNotFound, InvalidRequest."""
    expected = _classes(compiled)
    if request.signal not in expected:
        known = ", ".join(sorted(expected)) or "none"
        raise SignalNotFound(f"signal: no step of the run waits for {request.signal}; its steps wait for: {known}")
    message_class, taker = expected[request.signal], f"the signal {request.signal} carries"
    try:
        unpack(request.payload, message_class, compiled.requirements, taker=taker, what="payload", may_be_empty=True)
    except PackedInvalid as error:
        fault = FieldFault("payload", "INVALID_REQUEST", error.message)
        raise InvalidRequest(f"payload: {error.message}", faults=[fault]) from None
    return Payload(message_class.DESCRIPTOR.full_name, request.payload.value)


def _classes(compiled: CompiledWorkflow) -> dict[str, type[Message]]:
    found: dict[str, type[Message]] = {}
    for step, spec in zip(compiled.steps, compiled.graph.steps, strict=True):
        if spec.signal is not None and step.output_class is not None:
            found[spec.signal.name] = step.output_class
    return found
