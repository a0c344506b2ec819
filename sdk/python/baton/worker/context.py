"""What a handler gets as its `context` on the work stream: what handlers of unary calls use of grpc's own.

What a stream's assignment has no place for is refused, in words that say what to do instead.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from baton.calls import Call
from baton.worker.attempt import Attempt
from baton.worker.session import Held
from baton.worker.v1 import work_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_CALLBACKS = threading.Lock()
"""Held while callbacks are added or taken: plain handlers add theirs from other threads."""

Metadata = tuple[tuple[str, str | bytes], ...]


class WorkContext:
    """The context of one assignment; `PlainContext` and `AsyncContext` add how a handler aborts."""

    # Most handlers set none of these: making a context stays cheap.
    started = False
    """Whether the handler has begun."""
    touched = False
    """Whether the handler has set a status."""
    _code: grpc.StatusCode | None = None
    _details = ""
    _trailing: Metadata = ()
    _call: Call | None = None
    attempt: Attempt | None = None
    """What is kept of the attempt, once the handler has asked for its call."""
    _ended = False
    _early = False
    _callbacks: list[Callable[[], object]] | None = None

    def __init__(
        self,
        held: Held,
        assignment: work_pb2.Assignment,
        now: float,
        tell_progress: Callable[[Held, float, str], None],
        serve: Callable[[WorkContext], Attempt] | None,
    ) -> None:
        self.held = held
        self.assignment = assignment
        self._now = now
        self._tell_progress = tell_progress
        self._serve = serve

    @property
    def call(self) -> Call:
        """What `baton.current()` gives; made when it is first asked for."""
        if self._call is None:
            told = self.assignment
            if self._serve is not None and told.step_token:
                self.attempt = self._serve(self)
            self._call = Call(
                method=told.method,
                run=told.run_id,
                step=told.step,
                attempt=told.attempt,
                delivery=told.delivery,
                epoch=told.epoch,
                idempotency_key=told.idempotency_key,
                step_token=told.step_token,
                traceparent=told.traceparent,
                deadline_seconds=self.held.deadline - self._now,
                tell_progress=lambda percent, message: self._tell_progress(self.held, percent, message),
                served=self.attempt,
            )
        return self._call

    def invocation_metadata(self) -> Metadata:
        """Returns what a unary call of Baton would carry, under the same keys."""
        told = self.assignment
        return (
            ("idempotency-key", told.idempotency_key),
            ("baton-run", told.run_id),
            ("baton-step", told.step),
            ("baton-attempt", str(told.attempt)),
            ("baton-delivery", str(told.delivery)),
            ("baton-epoch", str(told.epoch)),
            ("baton-step-token", told.step_token),
            ("traceparent", told.traceparent),
        )

    def time_remaining(self) -> float:
        """Returns the seconds left."""
        return max(0.0, self.held.deadline - time.monotonic())

    def cancelled(self) -> bool:
        """Tells whether the outcome was given without the handler: cancelled, or late."""
        return self._early

    def done(self) -> bool:
        """Tells whether the call is over."""
        return self._ended

    def is_active(self) -> bool:
        """Tells whether the call goes on."""
        return not self._ended

    def peer(self) -> str:
        """Returns the replica of Baton that gave the assignment."""
        return f"baton:{self.held.session.replica_id}"

    def peer_identities(self) -> None:
        """Returns None: nothing proves who is there."""

    def peer_identity_key(self) -> None:
        """Returns None: nothing proves who is there."""

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        """Returns nothing: nothing proves who is there."""
        return {}

    def set_code(self, code: Any) -> None:
        """Sets the code to answer with. Errors: ValueError where it is none of gRPC's."""
        self._code = _code_of(code)
        self.touched = True

    def set_details(self, details: str) -> None:
        """Sets the text to answer with."""
        self._details = details
        self.touched = True

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Takes trailers. Baton reads only the details of a status among them, here as in unary calls."""
        self._trailing = tuple((key, value) for key, value in trailing_metadata)
        self.touched = True

    def trailing_metadata(self) -> Metadata:
        """Returns what was set."""
        return self._trailing

    def code(self) -> grpc.StatusCode | None:
        """Returns the code that was set, None without one."""
        return self._code

    def details(self) -> str:
        """Returns the text that was set."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Does nothing: frames hold many responses, and are not compressed."""

    def disable_next_message_compression(self) -> None:
        """Does nothing: frames are not compressed."""

    def status(self) -> status_pb2.Status | None:
        """Returns the status that the handler has set, None where it is OK."""
        if self._code is None or self._code is grpc.StatusCode.OK:
            return None
        number = self._code.value[0]
        for key, value in self._trailing:
            if key == _DETAILS_KEY and isinstance(value, bytes):
                try:
                    rich = status_pb2.Status.FromString(value)
                except DecodeError:
                    break
                if rich.code == number:
                    return rich
        return status_pb2.Status(code=number, message=self._details)

    def end(self, *, early: bool = False) -> None:
        """Notes that the call is over; `early`: its outcome was given without the handler."""
        with _CALLBACKS:
            if self._ended:
                return
            self._ended, self._early = True, early
            callbacks, self._callbacks = self._callbacks, None
        if not callbacks:
            return
        loop = asyncio.get_running_loop()
        for callback in callbacks:
            loop.call_soon(callback)

    def _when_ended(self, callback: Callable[[], object]) -> bool:
        with _CALLBACKS:
            if self._ended:
                return False
            self._callbacks = [*(self._callbacks or ()), callback]
            return True

    def _abort(self, code: Any, details: str, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> NoReturn:
        chosen = _code_of(code)
        if chosen is grpc.StatusCode.OK:
            raise ValueError("abort takes a code other than OK")
        self._code, self._details, self.touched = chosen, details, True
        self._trailing = (*self._trailing, *trailing_metadata)
        raise grpc.aio.AbortError("Locally aborted.")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the context of a call on the work stream has no {name!r}: handlers of unary methods need none of it, and "
            "what Baton tells and takes beside messages is in invocation_metadata(), abort() and baton.current()"
        )


class AsyncContext(WorkContext):
    """The context of an async handler."""

    async def abort(
        self, code: Any, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """Ends the call with a status, by an exception that the handler lets pass."""
        self._abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status and its details."""
        self._abort(status.code, status.details, status.trailing_metadata or ())

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Does nothing: Baton reads none."""

    async def read(self) -> NoReturn:
        """Refuses: a unary method has its whole request."""
        raise _refusal("read")

    async def write(self, message: object) -> NoReturn:
        """Refuses: a unary method returns its response."""
        raise _refusal("write")

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Calls back with this context when the call is over."""
        if not self._when_ended(lambda: callback(self)):
            asyncio.get_running_loop().call_soon(callback, self)


class PlainContext(WorkContext):
    """The context of a plain handler, which runs in a thread."""

    def abort(
        self, code: Any, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """Ends the call with a status, by an exception that the handler lets pass."""
        self._abort(code, details, trailing_metadata)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status and its details."""
        self._abort(status.code, status.details, status.trailing_metadata or ())

    def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Does nothing: Baton reads none."""

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Calls back when the call is over; returns False where it is over already."""
        return self._when_ended(callback)


def _refusal(what: str) -> RuntimeError:
    return RuntimeError(f"context.{what}() is for methods that stream; a unary method has its request and returns")


def _code_of(code: Any) -> grpc.StatusCode:
    found = _CODES.get(code.value[0] if isinstance(code, grpc.StatusCode) else code)
    if found is None:
        raise ValueError(f"{code!r} is not one of gRPC's status codes")
    return found
