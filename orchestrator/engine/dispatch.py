"""Dispatch: sends the call of an admitted attempt to its endpoint and judges the answer.

Only unary calls so far: one task for each call, owned by the dispatcher. What may not enter: decisions about what an
outcome means for the run.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.inputs import CallFailed
from orchestrator.domain.tracing import attempt_traceparent
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.live import Flight, LiveRun, evaluation_failure
from orchestrator.engine.ports import Answer, Call, Clock, WorkerGateway

_LOGGER = logging.getLogger(__name__)

StepToken = Callable[[LiveRun, Flight], str]
LEASE_LOOK_SECONDS = 0.02
"""How often a call looks whether it may be made, where the replica is not sure of its lease."""

OnAnswer = Callable[[LiveRun, Flight, "tuple[Message, Payload] | CallFailed"], None]


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
        self._gateway, self._clock, self._step_token = gateway, clock, step_token
        self._trace_calls = trace_calls
        self._holds_lease = holds_lease
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_answer: OnAnswer

    def send(self, live: LiveRun, flight: Flight) -> None:
        """Starts the call of a flight. Its delivery is durable."""
        task = asyncio.get_running_loop().create_task(self._call(live, flight))
        flight.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancels every call and waits for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Waits until no call is in flight; False where the time is over."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(list(self._tasks), timeout=timeout_seconds)
        return not pending

    async def _call(self, live: LiveRun, flight: Flight) -> None:
        # A replica that slept may have lost its runs: it forgets them and ends this call, or its lease is renewed.
        while not self._holds_lease():  # noqa: ASYNC110 (time alone decides; nobody could set an event)
            await asyncio.sleep(LEASE_LOOK_SECONDS)
        record = live.run.steps[flight.step].attempts[-1]
        remaining_seconds = (record.expire_time - self._clock.now()) / 1_000_000
        if remaining_seconds <= 0:
            flight.ticket.released()
            failure = Failure(Code.DEADLINE_EXCEEDED, "ATTEMPT_TIMEOUT", "the attempt's time was over", Origin.TIMEOUT)
            self.on_answer(live, flight, CallFailed(flight.step, flight.attempt, failure, None, 0.0))
            return
        try:
            answer = await self._gateway.call(
                Call(flight.endpoint.key, flight.path, flight.request, remaining_seconds, self._metadata(live, flight))
            )
        finally:
            # An unsettled trial would keep its circuit half-open for ever; settling twice does nothing.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                flight.ticket.released()
        if answer.against_circuit:
            flight.ticket.failed()
        elif answer.sent:
            flight.ticket.succeeded()
        else:
            flight.ticket.released()
        try:
            outcome = self._judge(live, flight, answer)
        except Exception:
            _LOGGER.exception("an answer of %s could not be judged", flight.path)
            failure = Failure(Code.INTERNAL, "INTERNAL", "the answer could not be judged", Origin.ORCHESTRATOR)
            outcome = CallFailed(flight.step, flight.attempt, failure, None, random.random())
        self.on_answer(live, flight, outcome)

    def _metadata(self, live: LiveRun, flight: Flight) -> tuple[tuple[str, str], ...]:
        run_id, step_id = str(live.key.run_id), live.run.graph.steps[flight.step].id
        record = live.run.steps[flight.step].attempts[-1]
        return (
            ("idempotency-key", f"{run_id}/{step_id}/{live.run.round}"),
            ("baton-run", run_id),
            ("baton-step", step_id),
            ("baton-attempt", str(flight.attempt)),
            ("baton-delivery", str(record.deliveries)),
            ("baton-epoch", str(live.epoch)),
            ("baton-step-token", self._step_token(live, flight)),
            ("traceparent", self._traceparent(live, step_id, flight.attempt)),
        )

    def _traceparent(self, live: LiveRun, step_id: str, attempt: int) -> str:
        """Makes the worker's span a child of the attempt's, or of the caller's where no span is exported here."""
        if not self._trace_calls:
            return live.run.traceparent
        return attempt_traceparent(live.run.traceparent, live.key.run_id, step_id, attempt)

    def _judge(self, live: LiveRun, flight: Flight, answer: Answer) -> tuple[Message, Payload] | CallFailed:
        """Turns an answer into an output that the step accepts, or into a failure."""
        if answer.failure is not None or answer.payload is None:
            failure = answer.failure or Failure(Code.INTERNAL, "INTERNAL", "no answer", Origin.TRANSPORT)
            return CallFailed(flight.step, flight.attempt, failure, answer.retry_delay_us, random.random())
        failed = self._check_output(live, flight, answer.payload)
        if isinstance(failed, Failure):
            return CallFailed(flight.step, flight.attempt, failed, None, random.random())
        return failed, Payload(failed.DESCRIPTOR.full_name, answer.payload)

    @staticmethod
    def _check_output(live: LiveRun, flight: Flight, payload: bytes) -> Message | Failure:
        step = live.compiled.step(flight.step)
        target = step.targets[live.run.steps[flight.step].target]
        if len(payload) > MAX_PAYLOAD_BYTES:
            text = f"the output has {len(payload)} bytes; the limit is {MAX_PAYLOAD_BYTES}"
            return Failure(Code.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE", text, Origin.ORCHESTRATOR)
        try:
            message = target.response_class.FromString(payload)
        except DecodeError:
            text = f"the answer is not a valid {target.response_class.DESCRIPTOR.full_name}"
            return Failure(Code.INTERNAL, "INVALID_OUTPUT", text, Origin.ORCHESTRATOR)
        try:
            if step.accepts(live.scope, message):
                return message
        except EvaluationFailed as error:
            return evaluation_failure(error)
        return Failure(Code.FAILED_PRECONDITION, "OUTPUT_REJECTED", "expect was false", Origin.ORCHESTRATOR)
