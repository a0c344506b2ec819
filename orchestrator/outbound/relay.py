"""Passes work of other replicas to a worker that is attached here: towards them it is a worker, towards it Baton.

Both halves of the protocol are reused as they are; an assignment that comes in on one side is given on the other.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable

from baton.worker.session import Held, Limits, Result
from baton.worker.streams import Link, WorkStreams
from google.protobuf import any_pb2
from google.rpc import status_pb2

from orchestrator.domain.failures import Code, Failure
from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.worker_ports import Answer, Call, CallListener
from orchestrator.outbound.work_session import SessionState, WorkSession

Ended = Callable[[Held, Result], None]
TellProgress = Callable[[Held, float, str], None]

_UNWANTED = status_pb2.Status(code=int(Code.CANCELLED), message="the outcome is no longer wanted")
_DETACHED = status_pb2.Status(code=int(Code.UNAVAILABLE), message="the worker is not attached at the moment")


class Relay:
    """The streams of other replicas to one attached worker. `on_change` is called when their number changed."""

    def __init__(self, worker: str, session: WorkSession, on_change: Callable[[], None]) -> None:
        self._worker, self._session, self._on_change = worker, session, on_change
        self._slots = 1
        self._streams = self._fresh()
        session.on_wait = self._waited

    @property
    def replicas(self) -> int:
        """Replicas that have a stream now."""
        return len(self._streams.sessions.streams)

    async def carry(self, link: Link) -> None:
        """Carries the stream of one replica to its end. Errors: ProtocolError; what the link raises."""
        streams = self._streams
        try:
            await streams.carry(link, on_open=self._on_change)
        finally:
            self._on_change()

    @property
    def waiting(self) -> int:
        """Assignments of other replicas whose handlers wait for steps that they delegated."""
        return self._streams.sessions.waiting

    def resize(self, slots: int) -> None:
        """Says how many assignments all replicas together may have; with none, those on their way wait here."""
        self._slots = slots
        self._streams.resize(slots)

    def leave(self) -> None:
        """Takes no more, and ends the streams once everything is answered: the replica drains."""
        self.resize(max(self._slots, 1))  # What waits is refused rather than kept.
        self._streams.drain()

    def reset(self) -> None:
        """Loses what is under way: the worker is gone. The replicas hear of another process when they come back."""
        gone, self._streams = self._streams, self._fresh()
        gone.close()

    def _fresh(self) -> WorkStreams:
        limits = dataclasses.replace(Limits(), slots=self._slots)
        return WorkStreams(self._worker, uuid.uuid4().hex, limits, self._forwarding)

    def _forwarding(self, ended: Ended, progress: TellProgress) -> _Forwarding:
        return _Forwarding(self._session, ended, progress, self.reset, lambda held: self._streams.drop(held))

    def _waited(self, listener: CallListener, waits: bool) -> None:
        """Gives the replica whose assignment waits the credit that the worker has for it."""
        if isinstance(listener, _Forwarded):
            self._streams.wait(listener.held, waits)


class _Forwarding:
    """Runs assignments by giving them on. Implements baton.worker.streams.Runs."""

    def __init__(
        self,
        session: WorkSession,
        ended: Ended,
        progress: TellProgress,
        on_gone: Callable[[], None],
        drop: Callable[[Held], None],
    ) -> None:
        self._session, self._on_gone, self._drop = session, on_gone, drop
        self.ended, self.progress = ended, progress
        self._closed = False

    def start(self, held: Held) -> None:
        """Gives an assignment to the worker."""
        given = held.assignment
        assert given is not None
        if not self._session.ready:
            self.ended(held, _DETACHED)
            return
        call = Call(
            EndpointKey("", "", self._session.peer),
            given.method,
            given.request,
            given.timeout_us / 1_000_000,
            given.run_id,
            given.step,
            given.attempt,
            given.delivery,
            given.epoch,
            given.idempotency_key,
            given.step_token,
            given.traceparent,
        )
        held.handler = self._session.give(call, _Forwarded(self, held))

    def cancel(self, held: Held) -> None:
        """Takes an assignment back."""
        if held.handler is not None:
            held.handler.cancel()
            held.handler = None
        if not self._closed:
            self.ended(held, _UNWANTED)

    def lost(self, held: Held) -> None:
        """An assignment is lost: the worker came back without it, or is gone with all that it was given, of which to
        hear once is enough."""
        if self._closed:
            return
        if self._session.state is SessionState.OPEN:
            self._drop(held)
        else:
            self._closed = True
            self._on_gone()


class _Forwarded:
    """One assignment that was given on. Implements worker_ports.CallListener."""

    __slots__ = ("_forwarding", "held")

    def __init__(self, forwarding: _Forwarding, held: Held) -> None:
        self._forwarding, self.held = forwarding, held

    def answered(self, answer: Answer) -> None:
        """Hands the outcome back to the replica that gave the assignment."""
        self.held.handler = None
        if answer.lost:
            self._forwarding.lost(self.held)
        elif answer.failure is not None:
            self._forwarding.ended(self.held, _status(answer.failure))
        else:
            self._forwarding.ended(self.held, answer.payload or b"")

    def progressed(self, percent: float, message: str) -> None:
        """Hands progress back."""
        self._forwarding.progress(self.held, percent, message)


def _status(failure: Failure) -> status_pb2.Status:
    details = [any_pb2.Any.FromString(detail) for detail in failure.details]
    return status_pb2.Status(code=int(failure.code), message=failure.message, details=details)
