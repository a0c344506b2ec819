"""The call that a worker's handler is serving: which run, step and attempt it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from baton.worker.attempt import Attempt

M = TypeVar("M", bound="Message")


def _told_nobody(percent: float, message: str) -> None:
    """Takes progress where nobody can be told: the caller is not Baton."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a handler, as Baton told it; empty where the caller is not Baton.

    `idempotency_key` is the same for every attempt and delivery of a step. `delivery` counts the sendings of one
    attempt, `epoch` the owners of the run. `step_token` is a secret: never log it. `deadline_seconds` is the time left
    when the call arrived, None without one.
    """

    method: str
    run: str = ""
    step: str = ""
    attempt: int = 0
    delivery: int = 0
    epoch: int = 0
    idempotency_key: str = ""
    step_token: str = field(default="", repr=False)
    traceparent: str = ""
    deadline_seconds: float | None = None
    tell_progress: Callable[[float, str], None] = field(default=_told_nobody, repr=False, compare=False)
    """Takes what `progress` says."""
    served: Attempt | None = field(default=None, repr=False, compare=False)
    """What the SDK keeps of the attempt; None where the caller is not Baton."""

    @property
    def attempt_under_way(self) -> Attempt:
        """What the SDK keeps of the attempt; raises LookupError where the caller is not Baton."""
        if self.served is None:
            raise LookupError(f"this call of {self.method} does not come from Baton: it has no step token")
        return self.served

    async def checkpoint(self, message: Message) -> None:
        """Leaves a message for the attempt after this one, which gets it from `last_checkpoint`; at most 256 KiB.

        Baton journals checkpoints once a second at most; the newest counts. Also a sign of life, as `progress` is.
        Raises BatonError where Baton refuses it, LookupError where the caller is not Baton, and CancelledError where
        the attempt is no longer under way. In plain handlers: `baton.blocking(current().checkpoint(…))`.
        """
        await self.attempt_under_way.here(lambda attempt: attempt.checkpoint(message))

    async def last_checkpoint(self, message_class: type[M]) -> M | None:
        """Returns what this attempt or one before it left last with `checkpoint`; None where nothing was left.

        Raises what `checkpoint` raises, and OutputTypeError where it is another message.
        """
        return await self.attempt_under_way.here(lambda attempt: attempt.last_checkpoint(message_class))

    def progress(self, percent: float, message: str = "") -> None:
        """Tells Baton how far the call is: `percent` from 0 to 100 (0: not known), and what is being done.

        May be called as often as the handler likes, from plain handlers too: only the newest is sent, ten times a
        second at most, and once a second where the call did not come on the work stream. Does nothing for a call that
        is not Baton's. Raises ValueError for a percent that is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent is from 0 to 100, not {percent!r}")
        if self.served is not None:
            self.served.note_progress(percent, message)
        self.tell_progress(percent, message)


class CallSource(Protocol):
    """Whatever knows the call that is being served; the call itself may be made only when it is asked for."""

    @property
    def call(self) -> Call:
        """The call."""


@dataclass(frozen=True, slots=True)
class KnownCall:
    """A call that was made already."""

    call: Call


CURRENT: ContextVar[CallSource] = ContextVar("baton_call")


def current() -> Call:
    """Returns the call that is being served; raises LookupError outside a worker's handler."""
    source = CURRENT.get(None)
    if source is None:
        raise LookupError("no call is being served here: current() is for handlers of a worker")
    return source.call


def call_of(method: str, metadata: Iterable[tuple[str, str | bytes]], deadline_seconds: float | None) -> Call:
    """Reads a call from its metadata. Numbers that cannot be read are 0: who calls is not always Baton."""
    values = {key: value for key, value in metadata if isinstance(value, str)}
    return Call(
        method=method,
        run=values.get("baton-run", ""),
        step=values.get("baton-step", ""),
        attempt=_number(values.get("baton-attempt", "")),
        delivery=_number(values.get("baton-delivery", "")),
        epoch=_number(values.get("baton-epoch", "")),
        idempotency_key=values.get("idempotency-key", ""),
        step_token=values.get("baton-step-token", ""),
        traceparent=values.get("traceparent", ""),
        deadline_seconds=deadline_seconds,
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
