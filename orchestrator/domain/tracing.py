"""Trace contexts (W3C) and the ids of a run's spans. Ids follow from what they name, so every replica gives the same.

What may not enter: spans themselves, sampling rules, randomness (whoever draws an id passes it in).
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

SAMPLED_FLAG = 0x01

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_LONGEST_TRACEPARENT = 256
_NO_TRACE = bytes(16)
_NO_SPAN = bytes(8)


class TraceContext(NamedTuple):
    """Names one span of one trace: 16 and 8 bytes, neither all zero, and whether the trace is recorded."""

    trace_id: bytes
    span_id: bytes
    sampled: bool


@lru_cache(maxsize=4_096)  # A run's own is read again for each of its steps.
def parse_traceparent(text: str) -> TraceContext | None:
    """Reads a traceparent header; None where it is empty or not one. Later versions are read like version 00."""
    if not text or len(text) > _LONGEST_TRACEPARENT:
        return None
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    trace_id, span_id = bytes.fromhex(trace), bytes.fromhex(span)
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & SAMPLED_FLAG))


def trace_id_of(traceparent: str) -> str:
    """Gives the trace id of a traceparent as 32 hex digits; empty where it is not one."""
    context = parse_traceparent(traceparent)
    return context.trace_id.hex() if context is not None else ""


def format_traceparent(context: TraceContext) -> str:
    """Writes a traceparent header of version 00."""
    return f"00-{context.trace_id.hex()}-{context.span_id.hex()}-{'01' if context.sampled else '00'}"


def new_traceparent(trace_id_bytes: bytes, span_id_bytes: bytes, sampled: bool) -> str:
    """Writes the traceparent of a new trace. Ids must be random, 16 and 8 bytes. Errors: ValueError for other ids."""
    if len(trace_id_bytes) != 16 or len(span_id_bytes) != 8:
        raise ValueError("a trace id has 16 bytes and a span id 8")
    if trace_id_bytes == _NO_TRACE or span_id_bytes == _NO_SPAN:
        raise ValueError("an id of zeros names no trace and no span")
    return format_traceparent(TraceContext(trace_id_bytes, span_id_bytes, sampled))


def is_sampled(traceparent: str) -> bool:
    """Tells whether a well-formed traceparent has the sampled flag; the cheapest question to ask first."""
    return len(traceparent) >= 55 and traceparent[54] in "13579bdf"


def run_span_id(run_id: UUID, round_: int = 1) -> bytes:
    """Gives the id of a run's span, 8 bytes. Each round has its own."""
    return _span_id(run_id, "", round_ - 1, "run")


def step_span_id(run_id: UUID, step_id: str, life: int = 1) -> bytes:
    """Gives the id of a step's span, 8 bytes; `life` is the one that the step began in."""
    return _span_id(run_id, step_id, life - 1, "step")


def attempt_span_id(run_id: UUID, step_id: str, attempt: int) -> bytes:
    """Gives the id of an attempt's span, 8 bytes; the worker's span is its child."""
    return _span_id(run_id, step_id, attempt, "attempt")


def queue_span_id(run_id: UUID, step_id: str, attempt: int, life: int = 1) -> bytes:
    """Gives the id of the span of the wait in the queue for `attempt`, 8 bytes; it may never have started."""
    return _span_id(run_id, step_id, attempt, _in_life("queue", life))


def backoff_span_id(run_id: UUID, step_id: str, attempt: int, life: int = 1) -> bytes:
    """Gives the id of the span of the backoff before `attempt`, 8 bytes."""
    return _span_id(run_id, step_id, attempt, _in_life("backoff", life))


def wait_span_id(run_id: UUID, step_id: str, number: int, life: int = 1) -> bytes:
    """Gives the id of the span of a step's wait for something other than a worker, 8 bytes; the first has number 0."""
    return _span_id(run_id, step_id, number, _in_life("wait", life))


def firing_span_id(trace_id: bytes, request_id: str) -> bytes:
    """Gives the id of the span of a schedule's firing that submitted a run under this request_id, 8 bytes."""
    return sha256(b"%b/%b/firing" % (trace_id, request_id.encode())).digest()[:8]


def firing_traceparent(traceparent: str, request_id: str) -> str:
    """Gives the traceparent of what a firing submits: the firing's span, in the trace of `traceparent`."""
    context = parse_traceparent(traceparent)
    if context is None:
        return ""
    return format_traceparent(context._replace(span_id=firing_span_id(context.trace_id, request_id)))


def attempt_traceparent(run_traceparent: str, run_id: UUID, step_id: str, attempt: int) -> str:
    """Gives the traceparent that the call of an attempt carries: the attempt's span, in the trace of the run.

    Empty where the run has no trace, so that no false context is sent.
    """
    context = parse_traceparent(run_traceparent)
    if context is None:
        return ""
    return format_traceparent(context._replace(span_id=attempt_span_id(run_id, step_id, attempt)))


def _in_life(kind: str, life: int) -> str:
    return kind if life == 1 else f"{kind}{life}"


def _span_id(run_id: UUID, step_id: str, attempt: int, kind: str) -> bytes:
    # Attempt and kind hold no slash and come last, so no two names are spelled alike.
    digest = sha256(f"{run_id.int:032x}/{step_id}/{attempt}/{kind}".encode()).digest()
    return digest[:8] if digest[:8] != _NO_SPAN else digest[8:16]
