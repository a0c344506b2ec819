"""Unary calls to workers: bytes in, bytes out. Knows no message class, no retry and no circuit."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
import grpc.aio

from orchestrator.domain.errors import WorkerUnreachable
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Sending
from orchestrator.outbound import statuses
from orchestrator.outbound.channels import CONNECT_TIMEOUT_SECONDS, MESSAGE_LIMIT_BYTES, Channels

_LOG = logging.getLogger(__name__)


def metadata_of(call: Call) -> tuple[tuple[str, str], ...]:
    """Lays out what the worker is told of a call beside its request."""
    return (
        ("idempotency-key", call.idempotency_key),
        ("baton-run", call.run_id),
        ("baton-step", call.step),
        ("baton-attempt", str(call.attempt)),
        ("baton-delivery", str(call.delivery)),
        ("baton-epoch", str(call.epoch)),
        ("baton-step-token", call.step_token),
        ("traceparent", call.traceparent),
    )


class Outbound:
    """Makes calls over shared channels."""

    def __init__(self, channels: Channels, connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS) -> None:
        self._channels = channels
        self._connect_timeout_seconds = connect_timeout_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, call: Call, listener: CallListener) -> Sending:
        """Starts one call, whose end the listener hears."""
        task = asyncio.get_running_loop().create_task(self._send(call, listener))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels every call and waits for them."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, call: Call, listener: CallListener) -> None:
        listener.answered(await self.call(call))

    async def call(self, call: Call) -> Answer:
        """Makes one call and tells how it ended. Raises nothing but CancelledError, which cancels the call too."""
        address = call.endpoint.address
        if len(call.payload) > MESSAGE_LIMIT_BYTES:
            return _unsent(_oversize_failure(len(call.payload)))
        if call.deadline_seconds <= 0:
            return _unsent(statuses.timeout_failure(call.deadline_seconds, outcome_unknown=False))
        try:
            with self._channels.hold(address) as connection:
                started = time.monotonic()
                if not connection.is_ready():
                    timeout_seconds = min(self._connect_timeout_seconds, call.deadline_seconds)
                    if not await connection.wait_connected(timeout_seconds):
                        return _failed(statuses.connect_failure(f"{address} could not be reached."), sent=False)
                left_seconds = call.deadline_seconds - (time.monotonic() - started)
                return await _send(connection.channel, call, max(left_seconds, 0.001))
        except WorkerUnreachable as error:
            return _unsent(statuses.connect_failure(error.message))


async def _send(channel: grpc.aio.Channel, call: Call, timeout_seconds: float) -> Answer:
    task = asyncio.current_task()
    cancels_before = task.cancelling() if task is not None else 0
    started = time.monotonic()
    sending: grpc.aio.UnaryUnaryCall[bytes, bytes] | None = None
    try:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{call.method}")
        sending = method(call.payload, timeout=timeout_seconds, metadata=metadata_of(call))
        return Answer(payload=await sending)
    except grpc.aio.AioRpcError as error:
        elapsed_seconds = time.monotonic() - started
        failure, retry_delay_us = statuses.to_failure(
            statuses.WorkerStatus(
                code=Code(error.code().value[0]),
                text=error.details() or "",
                metadata=tuple(error.trailing_metadata() or ()),
                address=call.endpoint.address,
                deadline_seconds=call.deadline_seconds,
                timed_out=elapsed_seconds >= 0.9 * timeout_seconds,
            )
        )
        return _failed(failure, retry_delay_us=retry_delay_us)
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancels_before:
            raise
        # Nobody cancelled this task: the channel was closed under the call.
        return _failed(statuses.lost_failure(call.endpoint.address))
    except (grpc.aio.BaseError, TypeError, ValueError):
        # grpc refuses what it cannot encode, such as a metadata key with a capital, before anything is sent.
        _LOG.exception("a call of %s could not be started", call.method)
        return _unsent(_unsendable_failure(call.method))
    finally:
        if sending is not None and not sending.done():
            sending.cancel()


def _failed(failure: Failure, *, sent: bool = True, retry_delay_us: int | None = None) -> Answer:
    return Answer(
        payload=None,
        failure=failure,
        sent=sent,
        against_circuit=statuses.is_against_circuit(failure),
        retry_delay_us=retry_delay_us,
    )


def _unsent(failure: Failure) -> Answer:
    """Returns the answer to a call that was not even tried, which is no fault of the endpoint."""
    return Answer(payload=None, failure=failure, sent=False)


def _oversize_failure(size_bytes: int) -> Failure:
    return Failure(
        code=Code.RESOURCE_EXHAUSTED,
        reason="PAYLOAD_TOO_LARGE",
        message=f"The request has {size_bytes:,} bytes; at most {MESSAGE_LIMIT_BYTES:,} can be sent.",
        origin=Origin.ORCHESTRATOR,
    )


def _unsendable_failure(method: str) -> Failure:
    return Failure(
        code=Code.INTERNAL,
        reason="INTERNAL",
        message=f"The call of {method} could not be sent.",
        origin=Origin.ORCHESTRATOR,
    )
