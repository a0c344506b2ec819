"""A span as a value, before it is anything of OpenTelemetry. What may not enter: how it follows from a run."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from orchestrator.domain.failures import Failure

Attribute = str | int


class SpanKind(enum.Enum):
    """The kinds in use. PRODUCER and CONSUMER are not among them: Jaeger leaves consumers off the critical path."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"


class Span(NamedTuple):
    """One finished span. Times are microseconds since the Unix epoch. `links` are span ids of the same trace.

    `error_code` names the status code of a span that failed, such as UNAVAILABLE; empty for all others.
    """

    name: str
    kind: SpanKind
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes | None
    start_time: int
    end_time: int
    attributes: Mapping[str, Attribute]
    links: tuple[bytes, ...] = ()
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class RunTrace:
    """What all spans of one round of a run share; `span_id` is the run's."""

    run_id: UUID
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    attributes: Mapping[str, Attribute]


def failure_attributes(failure: Failure | None) -> Mapping[str, Attribute]:
    """Tells why something failed, without the words of a worker."""
    if failure is None:
        return {}
    attributes = {
        "error.type": failure.code.name,
        "baton.failure.reason": failure.reason,
        "baton.failure.origin": failure.origin.name,
    }
    if failure.step:
        attributes["baton.failure.step"] = failure.step
    return attributes


def code_of(failure: Failure | None) -> str:
    """Names the status code of a failure; empty for none."""
    return "" if failure is None else failure.code.name
