"""Channels to Baton and single calls over them: timeouts, retries, trace context. What to call is in client.py."""
# ruff: noqa: ASYNC109 - these times go over the wire: the server waits that long too

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from baton.errors import BatonError
from baton.status import error_of
from baton.v1 import (
    approval_service_pb2_grpc,
    limit_service_pb2_grpc,
    replica_service_pb2_grpc,
    run_service_pb2_grpc,
    schedule_service_pb2_grpc,
    step_service_pb2_grpc,
    worker_service_pb2_grpc,
    workflow_service_pb2_grpc,
)

if TYPE_CHECKING:
    from baton.v1.approval_service_pb2_grpc import ApprovalServiceAsyncStub
    from baton.v1.limit_service_pb2_grpc import LimitServiceAsyncStub
    from baton.v1.replica_service_pb2_grpc import ReplicaServiceAsyncStub
    from baton.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from baton.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub
    from baton.v1.step_service_pb2_grpc import StepServiceAsyncStub
    from baton.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub
    from baton.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

DEFAULT_ADDRESS = "127.0.0.1:7330"
ADDRESS_VARIABLE = "BATON_ADDRESS"
NAMESPACE_VARIABLE = "BATON_NAMESPACE"

_LONG_CALLS_PER_CHANNEL = 90  # servers and proxies commonly allow 100 streams on a connection; more would queue unseen
_LONG_CHANNELS_LIMIT = 64
_HELD_SECONDS = 1.0
_LEAVE_SECONDS = 0.5  # many calls hear at once that a replica shuts down
_LOSSES_LIMIT = 10
_NO_LOSS = frozenset({"SHUTTING_DOWN", "CURSOR_EXPIRED", "WATCH_TOO_SLOW"})  # a stream goes on at once
_MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
NO_PROBES = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 20))
"""No ping beside each message to probe the bandwidth; a window that lets any message through at once instead."""

RECONNECTION = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # The time that one try to connect may take, over a slow line too.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
"""Another try to connect soon after one that failed."""

KEEPALIVE = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),  # counts for TCP; the next for HTTP/2, where a minute is the default
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # as many as needed
)
"""A server that is there and silent, frozen or behind a line that swallows, is left after 20 s for another of the
target. Servers of Baton let clients ping as often."""

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one address would share one connection and its streams
    *RECONNECTION,
    *KEEPALIVE,
    *NO_PROBES,
    # One replica of those that a target leads to, chosen by chance: clients spread over them, and who leaves one that
    # shuts down comes to another.
    ("grpc.service_config", '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}'),
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
)


@dataclass(eq=False, slots=True)
class Link:
    """One channel with its stubs. `in_use` counts the calls on it."""

    channel: grpc.aio.Channel
    runs: RunServiceAsyncStub
    workflows: WorkflowServiceAsyncStub
    workers: WorkerServiceAsyncStub
    steps: StepServiceAsyncStub
    approvals: ApprovalServiceAsyncStub
    schedules: ScheduleServiceAsyncStub
    limits: LimitServiceAsyncStub
    replicas: ReplicaServiceAsyncStub
    in_use: int = 0


class Backoff:
    """Waits that double from `first` to `longest` seconds, each shortened at random by up to a half."""

    def __init__(self, first: float = 0.1, longest: float = 2.0) -> None:
        self._first = first
        self._longest = longest
        self._count = 0

    def next_seconds(self) -> float:
        """Returns the next wait."""
        wait = min(self._longest, self._first * 2.0 ** min(self._count, 16))
        self._count += 1
        return wait * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Starts again with the first wait."""
        self._count = 0


class Tries:
    """How long a call is tried again while Baton is away: for `patience` seconds, and as long again after a try that it
    held for a while. Baton was there meanwhile: its absence begins only with the end of that."""

    __slots__ = ("_backoff", "_begin_time", "_connection", "_give_up_time", "_losses", "_patience")

    def __init__(self, connection: Connection, patience: float) -> None:
        self._connection, self._patience = connection, patience
        self._backoff = Backoff()
        self._begin_time = time.monotonic()
        self._give_up_time = self._begin_time + patience
        self._losses = 0

    async def pause(self, error: BatonError) -> None:
        """Waits until the next try, after one that ended with `error`. Raises that where there is to be none."""
        if time.monotonic() - self._begin_time > _HELD_SECONDS and self._losses < _LOSSES_LIMIT:
            self._losses += 1
            self._backoff.reset()
            self._give_up_time = time.monotonic() + self._patience
        wait = self._connection.wait_after(error, self._backoff)
        if not retryable(error) or time.monotonic() + wait > self._give_up_time:
            raise error
        await self._connection.pause(wait)
        self._begin_time = time.monotonic()


Lost = Callable[[BatonError], None]
"""Told why a stream was lost."""


class Loss:
    """Tells that a stream was lost which is opened again, once until something is heard on it."""

    def __init__(self, lost: Lost | None) -> None:
        self._lost = lost
        self._told = False

    def heard(self) -> None:
        """Takes note that the stream is there."""
        self._told = False

    def tell(self, error: BatonError) -> None:
        """Tells the cause, where that was not done yet and the stream does not just go on elsewhere."""
        if self._lost is not None and not self._told and error.reason not in _NO_LOSS:
            self._told = True
            self._lost(error)


def server_address(given: str | None) -> str:
    """Returns the address of Baton: the one given, else BATON_ADDRESS, else that of a server on this machine."""
    return given or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS


def namespace_metadata(given: str | None) -> tuple[tuple[str, str], ...]:
    """Returns what names a namespace to a development server: the one given, else BATON_NAMESPACE, else none."""
    namespace = given or os.environ.get(NAMESPACE_VARIABLE)
    return (("baton-namespace", namespace),) if namespace else ()


class Connection:
    """The channels of one client: one for short calls, and more for long ones, so that no wait delays a submission."""

    def __init__(
        self,
        address: str | None,
        channel: grpc.aio.Channel | None,
        timeout: float,
        retry_timeout: float,
        channel_name: str = "",
        principal: str = "",
        namespace: str | None = None,
    ) -> None:
        self.address = server_address(address)
        self.timeout = timeout
        self.retry_timeout = retry_timeout
        self.client_id = uuid.uuid4().hex
        """Names this client to Baton, so that it can watch what it submits."""
        self.batches_begun = 0
        """Batches of submissions that were sent."""
        named = (("baton-channel", channel_name), ("baton-principal", principal))
        self._own_metadata = (*((key, value) for key, value in named if value), *namespace_metadata(namespace))
        self._lent = _Lent(channel) if channel is not None else None
        self._given = _link(cast("grpc.aio.Channel", self._lent)) if channel is not None else None
        self._short: Link | None = None
        self._long: list[Link] = []
        self._left: set[Link] = set()
        self._left_time = float("-inf")
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def metadata(self, *, traced: bool = True) -> tuple[tuple[str, str], ...]:
        """Returns what goes with every call: the trace context, and who calls from where."""
        return (*self._own_metadata, *trace_metadata()) if traced else self._own_metadata

    def shut(self) -> None:
        """Lets no call begin any more; those under way go on until `close`."""
        self._closed.set()

    async def close(self) -> None:
        """Ends the calls that are under way, and closes the channels; one that was given stays open."""
        self.shut()
        if self._lent is not None:
            self._lent.cancel()
        self._forget_links()
        while self._left:
            await self._left.pop().channel.close()
        await asyncio.gather(*self._closing)

    async def call(
        self,
        choose: Callable[[Link], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        timeout: float | None = None,
        retry_timeout: float | None = None,
        long: bool = False,
        traced: bool = True,
    ) -> Response:
        """Makes one unary call that is safe to repeat, again for `retry_timeout` seconds while Baton is away.

        `timeout` is for each try; what is not `traced` carries no trace context. Raises BatonError.
        """
        tries = Tries(self, self.retry_timeout if retry_timeout is None else retry_timeout)
        while True:
            try:
                with self.link(long=long) as link:
                    metadata = self.metadata(traced=traced)
                    return await choose(link)(request, timeout=timeout or self.timeout, metadata=metadata)
            except grpc.aio.AioRpcError as failed:
                error = error_of(failed)
            await tries.pause(error)

    async def pause(self, seconds: float) -> None:
        """Waits before something is tried again. Raises BatonError as soon as the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        if self._closed.is_set():
            raise closed_error()

    def wait_after(self, error: BatonError, backoff: Backoff) -> float:
        """Returns how many seconds to wait before a call is tried again that ended with `error`: as long as Baton says,
        but for a replica that shuts down. It is left, as another may be there."""
        wait = backoff.next_seconds()
        if error.reason == "SHUTTING_DOWN" and self._given is None:
            self.leave()
            return min(wait, _LEAVE_SECONDS)  # Soon again: chance may lead to the same one.
        return max(wait, error.retry_delay or 0.0)

    def leave(self) -> None:
        """Lets calls that begin from now on choose a replica anew, over new channels; those under way go on."""
        if time.monotonic() - self._left_time >= _LEAVE_SECONDS and not self._closed.is_set():
            self._left_time = time.monotonic()
            self._forget_links()
            for link in [each for each in self._left if not each.in_use]:
                self._close_left(link)

    def _forget_links(self) -> None:
        self._left.update(self._long, (self._short,) if self._short is not None else ())
        self._long, self._short = [], None

    def _close_left(self, link: Link) -> None:
        self._left.discard(link)
        closing = asyncio.create_task(link.channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    @contextmanager
    def link(self, *, long: bool) -> Iterator[Link]:
        """Lends a channel for one call. Raises BatonError where the client is closed before its end."""
        if self._closed.is_set():
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "the client was used in another event loop; make one in each loop, with `async with Client()`"
            )
        link = self._choose(long=long)
        link.in_use += 1
        try:
            yield link
        except asyncio.CancelledError:
            # A channel that is closed cancels its calls, which is no cancellation of who waits for them.
            task = asyncio.current_task()
            if not self._closed.is_set() or (task is not None and task.cancelling()):
                raise
            raise closed_error() from None
        finally:
            link.in_use -= 1
            if not link.in_use and link in self._left:
                self._close_left(link)

    def _choose(self, *, long: bool) -> Link:
        if self._given is not None:
            return self._given
        if long:
            return self._least_used()
        if self._short is None:
            self._short = self._open()
        return self._short

    def _least_used(self) -> Link:
        free = next((link for link in self._long if link.in_use < _LONG_CALLS_PER_CHANNEL), None)
        if free is not None:
            return free
        if len(self._long) < _LONG_CHANNELS_LIMIT:
            self._long.append(self._open())
            return self._long[-1]
        return min(self._long, key=lambda link: link.in_use)

    def _open(self) -> Link:
        return _link(grpc.aio.insecure_channel(self.address, options=_OPTIONS))


class _Lent:
    """A channel that its owner closes. It keeps the calls made here, so that they can be ended without that."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet()

    def unary_unary(self, *args: Any, **options: Any) -> Callable[..., Any]:
        """Stands for the method of the channel."""
        return self._keeping(self._channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Callable[..., Any]:
        """Stands for the method of the channel."""
        return self._keeping(self._channel.unary_stream(*args, **options))

    def cancel(self) -> None:
        """Ends the calls that are under way."""
        for call in tuple(self._calls):
            call.cancel()

    def _keeping(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begun = begin(*args, **options)
            self._calls.add(begun)
            return begun

        return call


def _link(channel: grpc.aio.Channel) -> Link:
    return Link(
        channel,
        run_service_pb2_grpc.RunServiceStub(channel),
        workflow_service_pb2_grpc.WorkflowServiceStub(channel),
        worker_service_pb2_grpc.WorkerServiceStub(channel),
        step_service_pb2_grpc.StepServiceStub(channel),
        approval_service_pb2_grpc.ApprovalServiceStub(channel),
        schedule_service_pb2_grpc.ScheduleServiceStub(channel),
        limit_service_pb2_grpc.LimitServiceStub(channel),
        replica_service_pb2_grpc.ReplicaServiceStub(channel),
    )


def span(seconds: float) -> Duration:
    """Returns seconds as a Duration."""
    message = Duration()
    message.FromNanoseconds(max(0, int(seconds * 1e9)))
    return message


def closed_error() -> BatonError:
    """Returns what calls end with that are under way when the client is closed."""
    return BatonError("CANCELLED", "", "the client was closed")


def retryable(error: BatonError) -> bool:
    """Tells whether the same call may succeed later: Baton is away, or it asks for the call to be repeated."""
    return error.code == "UNAVAILABLE" or (error.code == "RESOURCE_EXHAUSTED" and error.retry_delay is not None)


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns the W3C trace context of the current span as call metadata; nothing where the program traces nothing."""
    # A program that never imported the API has no current span, and should not pay for importing it.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
