"""Dispatch: sends the call of an admitted attempt to its endpoint and judges the answer.

How a call travels is the gateway's business, and no task is made for a step. What may not enter: decisions about what
an outcome means for the run.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2

from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.inputs import CallFailed, CallLost, CallSuspended
from orchestrator.domain.tracing import attempt_traceparent, is_sampled
from orchestrator.engine.data import evaluation_failure, too_large
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.live import Flight, LiveRun
from orchestrator.engine.ports import Clock
from orchestrator.engine.worker_ports import Answer, Call, Sending, WorkerGateway

_LOGGER = logging.getLogger(__name__)

SUSPENDED = "SUSPENDED"
"""Reason of the status with which a worker ends an attempt that waits for what it has delegated."""

StepToken = Callable[[LiveRun, Flight], str]
LEASE_LOOK_SECONDS = 0.02
"""How often a call looks whether it may be made, where the replica is not sure of its lease."""

Outcome = tuple[Message, Payload] | CallFailed | CallLost | CallSuspended
OnAnswer = Callable[[tuple[LiveRun, Flight, Outcome]], None]


class Dispatcher:
    """Makes the calls of this replica."""

    def __init__(
        self,
        gateway: WorkerGateway,
        clock: Clock,
        step_token: StepToken,
        trace_calls: bool,
        holds_lease: Callable[[], bool],
    ) -> None:
        self.gateway, self.clock = gateway, clock
        self.holds_lease = holds_lease
        self._step_token = step_token
        self._trace_calls = trace_calls
        self._deliveries: set[Delivery] = set()
        self.on_answer: OnAnswer
        self.on_progress: Callable[[LiveRun, int, float, str, Payload | None], None]

    def send(self, live: LiveRun, flight: Flight) -> None:
        """Starts the call of a flight. Its delivery is durable."""
        flight.sending = delivery = Delivery(self, live, flight)
        self._deliveries.add(delivery)
        delivery.start()

    def ended(self, delivery: Delivery) -> None:
        """Takes note that a delivery is under way no more."""
        self._deliveries.discard(delivery)

    def close(self) -> None:
        """Cancels every call."""
        for delivery in list(self._deliveries):
            delivery.cancel()

    def call_of(self, live: LiveRun, flight: Flight, deadline_seconds: float) -> Call:
        """Lays out what the worker is told."""
        step_id = live.run.steps[flight.step].spec.id
        record = live.run.steps[flight.step].attempts[-1]
        return Call(
            flight.endpoint.key,
            flight.method,
            flight.request,
            deadline_seconds,
            live.run_id,
            step_id,
            flight.attempt,
            record.deliveries,
            live.epoch,
            f"{live.run_id}/{step_id}/{live.run.steps[flight.step].life}",
            self._step_token(live, flight),
            self._traceparent(live, step_id, flight.attempt),
        )

    def _traceparent(self, live: LiveRun, step_id: str, attempt: int) -> str:
        """Makes the worker's span a child of the attempt's, or of the caller's where that is not recorded here."""
        if not self._trace_calls or not is_sampled(live.run.traceparent):
            return live.run.traceparent
        return attempt_traceparent(live.run.traceparent, live.key.run_id, step_id, attempt)


class Delivery:
    """One sending of an attempt, from its durable entry to its answer. Implements worker_ports.CallListener."""

    __slots__ = ("_dispatcher", "_flight", "_handle", "_live", "_sending")

    def __init__(self, dispatcher: Dispatcher, live: LiveRun, flight: Flight) -> None:
        self._dispatcher, self._live, self._flight = dispatcher, live, flight
        self._sending: Sending | None = None
        self._handle: asyncio.Handle | None = None

    def start(self) -> None:
        """Sends the call, or looks again soon where the replica is not sure of its lease: it slept, and either
        forgets its runs and ends this, or its lease is renewed."""
        dispatcher, live, flight = self._dispatcher, self._live, self._flight
        if not dispatcher.holds_lease():
            self._handle = asyncio.get_running_loop().call_later(LEASE_LOOK_SECONDS, self._look_again)
            return
        expire_time = live.run.steps[flight.step].attempts[-1].expire_time
        remaining_seconds = (expire_time - dispatcher.clock.now()) / 1_000_000
        if remaining_seconds <= 0:
            self._handle = asyncio.get_running_loop().call_soon(self._too_late)
            return
        try:
            self._sending = dispatcher.gateway.send(dispatcher.call_of(live, flight, remaining_seconds), self)
        except Exception:
            # It may be over soon, such as a lack of file descriptors: what is tried again then should not end its run.
            _LOGGER.exception("a call of %s could not be made", flight.method)
            failure = Failure(Code.UNAVAILABLE, "UNAVAILABLE", "the call could not be made", Origin.ORCHESTRATOR)
            self.answered(Answer(None, failure, sent=False))

    def _look_again(self) -> None:
        """Sends the call that has waited for the lease. What was decided instead of it ends it once that is durable."""
        if self._live.run.is_current(self._flight.step, self._flight.attempt):
            self.start()

    def cancel(self) -> None:
        """Ends the call; nothing is heard of it any more."""
        self._dispatcher.ended(self)
        if self._handle is not None:
            self._handle.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def answered(self, answer: Answer) -> None:
        """Settles the ticket and hands on what the answer comes to."""
        live, flight = self._live, self._flight
        self._sending = None  # It may know this; without this both would wait for the garbage collector.
        self._dispatcher.ended(self)
        if answer.against_circuit:
            flight.ticket.failed()
        elif answer.sent and not answer.lost:
            flight.ticket.succeeded()
        else:
            flight.ticket.released()
        try:
            outcome = judge(live, flight, answer)
        except Exception:
            _LOGGER.exception("an answer of %s could not be judged", flight.method)
            failure = Failure(Code.INTERNAL, "INTERNAL", "the answer could not be judged", Origin.ORCHESTRATOR)
            outcome = CallFailed(flight.step, flight.attempt, failure, None, random.random())
        self._dispatcher.on_answer((live, flight, outcome))

    def progressed(self, percent: float, message: str) -> None:
        """Takes a sign of life."""
        self._dispatcher.on_progress(self._live, self._flight.step, percent, message, None)

    def _too_late(self) -> None:
        flight = self._flight
        self._dispatcher.ended(self)
        flight.ticket.released()
        failure = Failure(Code.DEADLINE_EXCEEDED, "ATTEMPT_TIMEOUT", "the attempt's time was over", Origin.TIMEOUT)
        self._dispatcher.on_answer((self._live, flight, CallFailed(flight.step, flight.attempt, failure, None, 0.0)))


def awaited_keys(failure: Failure) -> tuple[str, ...]:
    """Reads the keys that a suspended attempt waits for from its status; none where it is not of that form."""
    for detail in failure.details:
        info = error_details_pb2.ErrorInfo()
        try:
            is_info = any_pb2.Any.FromString(detail).Unpack(info)
        except DecodeError:
            continue  # Whatever the worker has put there.
        if is_info and info.domain == "baton" and info.reason == SUSPENDED:
            return tuple(key for key in info.metadata["awaited"].split(",") if key)
    return ()


def judge(live: LiveRun, flight: Flight, answer: Answer) -> Outcome:
    """Turns an answer into an output that the step accepts, or into a failure."""
    if answer.lost:
        return CallLost(flight.step, flight.attempt)
    if answer.failure is not None or answer.payload is None:
        failure = answer.failure or Failure(Code.INTERNAL, "INTERNAL", "no answer", Origin.TRANSPORT)
        if failure.reason == SUSPENDED:
            awaited = awaited_keys(failure)
            if awaited:
                return CallSuspended(flight.step, flight.attempt, awaited)
        return CallFailed(flight.step, flight.attempt, failure, answer.retry_delay_us, random.random())
    checked = _check_output(live, flight, answer.payload)
    if isinstance(checked, Failure):
        return CallFailed(flight.step, flight.attempt, checked, None, random.random())
    return checked, Payload(checked.DESCRIPTOR.full_name, answer.payload)


def _check_output(live: LiveRun, flight: Flight, payload: bytes) -> Message | Failure:
    target = live.data.target(flight.step)
    if len(payload) > MAX_PAYLOAD_BYTES:
        return too_large("the output", len(payload))
    try:
        message = target.response_class.FromString(payload)
    except DecodeError:
        text = f"the answer is not a valid {target.response_class.DESCRIPTOR.full_name}"
        return Failure(Code.INTERNAL, "INVALID_OUTPUT", text, Origin.ORCHESTRATOR)
    try:
        if live.data.accepts(flight.step, message):
            return message
    except EvaluationFailed as error:
        return evaluation_failure(error)
    return Failure(Code.FAILED_PRECONDITION, "OUTPUT_REJECTED", "expect was false", Origin.ORCHESTRATOR)
