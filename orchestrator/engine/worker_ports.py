"""The seam between the engine and workers: calls, how they end, and all that goes over a network for them.

As in `ports.py`, values are plain and instants are microseconds since the Unix epoch. What may not enter: grpc, and
generated messages but the frames of baton.worker.v1, which pass through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from baton.worker.v1 import work_pb2

from orchestrator.domain.failures import Failure
from orchestrator.domain.ids import EndpointKey
from orchestrator.domain.values import value
from orchestrator.engine.catalogue_ports import EndpointRow


@value
class Call:
    """One delivery of an attempt. `payload` is the serialized request, `method` is `package.Service/Method`."""

    endpoint: EndpointKey
    method: str
    payload: bytes
    deadline_seconds: float
    run_id: str
    step: str
    attempt: int
    delivery: int
    epoch: int
    idempotency_key: str
    step_token: str
    traceparent: str


@value
class Answer:
    """How a call ended: `payload` on success, else `failure`. `against_circuit` tells whether the endpoint itself is to
    blame; `sent` is false where nothing left this process; `retry_delay_us` is the worker's RetryInfo. `lost`: the
    stream that carried the call is gone, and with it what the call may have come to; there is no failure then."""

    payload: bytes | None
    failure: Failure | None = None
    sent: bool = True
    against_circuit: bool = False
    retry_delay_us: int | None = None
    lost: bool = False


class CallListener(Protocol):
    """Who hears of a call. Both are called on the event loop, and never by `WorkerGateway.send` itself."""

    def answered(self, answer: Answer) -> None:
        """The call ended. Called once, and not at all after the call was cancelled."""
        ...

    def progressed(self, percent: float, message: str) -> None:
        """The worker tells how far it is, from 0 to 100, and at what."""
        ...


class Sending(Protocol):
    """A call under way."""

    def cancel(self) -> object:
        """Ends the call, at the worker too, where it still runs; nothing is heard of it any more."""
        ...


class Ticket(Protocol):
    """Leave to make one call through a circuit. Settled exactly once; settling again does nothing."""

    def succeeded(self) -> None:
        """The endpoint answered, be it with a failure of its own."""
        ...

    def failed(self) -> None:
        """The endpoint did not answer."""
        ...

    def released(self) -> None:
        """The call was cancelled or never made: it says nothing about the endpoint."""
        ...


class Circuit(Protocol):
    """The circuit of one endpoint."""

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """The state now; an open circuit whose time is over is half-open."""
        ...

    @property
    def until_time(self) -> int | None:
        """When the next trial call may be made; None unless open."""
        ...

    def admit(self) -> Ticket | None:
        """Gives leave for one call; None while open, or half-open with its one trial under way."""
        ...


Health = Literal["serving", "not_serving", "unknown", "unreachable"]


RELAY_ADDRESS_KEY = "baton-attached-address"
RELAY_TOKEN_KEY = "baton-relay-token"
"""What one replica tells another on a work stream to a worker that is attached there."""

ReadFrame = Callable[[], Awaitable["work_pb2.WorkerFrame | None"]]
"""Reads a worker's next frame; None where it has ended its side."""

WriteFrame = Callable[["work_pb2.BatonFrame"], Awaitable[None]]
"""Sends a frame to a worker; waits while it does not keep up."""


ReadBatonFrame = Callable[[], Awaitable["work_pb2.BatonFrame | None"]]
WriteWorkerFrame = Callable[["work_pb2.WorkerFrame"], Awaitable[None]]
"""The same, where this replica stands for the worker."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a server's reflection tells: serialized FileDescriptorProtos, the full names of the services that are part
    of its contract, and whether it serves a work stream."""

    files: Sequence[bytes]
    services: Sequence[str]
    work_stream: bool


class WorkerGateway(Protocol):
    """Everything the engine does with workers over the network."""

    def send(self, call: Call, listener: CallListener) -> Sending:
        """Starts one call, in the way that its endpoint takes calls. Raises nothing."""
        ...

    def circuit(self, key: EndpointKey, on_change: Callable[[], None], now: Callable[[], int]) -> Circuit:
        """Makes the circuit of an endpoint; `on_change` is called, on the loop, when it opens or closes. `now` is the
        clock that its `until_time` is told by."""
        ...

    def follow(self, row: EndpointRow, on_change: Callable[[Health, int | None], None]) -> Callable[[], None]:
        """Follows the health of an endpoint until the function that is returned is called.

        `on_change` is told its health, and its credit: how many calls of this replica it takes at a time, None where it
        does not say.
        """
        ...

    def lends(self, key: EndpointKey, calls: int) -> None:
        """Tells how many calls of an endpoint that is followed wait for what they have delegated, from now on. A worker
        adds one to its credit for each: that is for this endpoint, whoever shares its address."""
        ...

    @property
    def replica_id(self) -> UUID:
        """Names this process to workers."""
        ...

    async def greet(self, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
        """Begins a stream that a worker opened: says who speaks and hears who answers. Errors: InvalidRequest."""
        ...

    async def carry_attached(
        self, address: str, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame
    ) -> None:
        """Carries a stream that a worker opened to its end; meanwhile calls go to the worker by it. What it holds is
        kept until `forget_attached`. Errors: what `read` raises of domain.errors."""
        ...

    async def relay(self, address: str, token: str, read: ReadBatonFrame, write: WriteWorkerFrame) -> None:
        """Carries the stream of another replica, which shows `token`, to the worker that is attached here as `address`.

        Errors: WorkerNotFound, InvalidRequest (frames that do not fit the protocol).
        """
        ...

    def attached_left(self, address: str) -> bool:
        """Tells whether an attached worker took its leave, and will not come back."""
        ...

    def forget_attached(self, address: str) -> None:
        """Gives up what an attached worker holds that has no stream now."""
        ...

    def leave(self) -> None:
        """Tells workers that nothing more comes from this replica: it drains."""
        ...

    async def read_descriptors(self, address: str) -> Described:
        """Reads what a server says of itself by reflection.

        Errors: WorkerUnreachable, ReflectionUnavailable, InvalidContract.
        """
        ...
