"""The call that a worker's handler is serving: which run, step and attempt it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a handler, as Baton told it in the metadata; empty where the caller is not Baton.

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


CURRENT: ContextVar[Call] = ContextVar("baton_call")


def current() -> Call:
    """Returns the call that is being served; raises LookupError outside a worker's handler."""
    call = CURRENT.get(None)
    if call is None:
        raise LookupError("no call is being served here: current() is for handlers of a worker")
    return call


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
