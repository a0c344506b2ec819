"""From the journaled times of a run to its spans, as pure values. The same run gives the same spans on any replica.

The tree: SubmitRun (submit_span.py) > run > step > queue, attempt, backoff, attempt ... The worker's server span is the
child of its attempt. A span begins 1 us after what it follows has ended: Jaeger's critical path leaves out a sibling
that ends in the very microsecond in which the next one begins, and cuts children that leave their parent.

What may not enter: OpenTelemetry (export.py), payloads, the text of failures, clocks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple
from uuid import UUID

from orchestrator.domain.failures import Failure
from orchestrator.domain.run import AttemptRecord, Run
from orchestrator.domain.states import StepState
from orchestrator.domain.tracing import (
    attempt_span_id,
    backoff_span_id,
    parse_traceparent,
    queue_span_id,
    run_span_id,
    step_span_id,
)
from orchestrator.telemetry.ended import Ended, EndedRun, EndedStep, ended

SHORTEST_WAIT_US = 1_000
"""A shorter wait, in the queue or between attempts, is not worth a span."""

LINKS_LIMIT = 128
"""Links of one step to those it waited for; OpenTelemetry's own limit."""

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
    """What all spans of one run share."""

    run_id: UUID
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    attributes: Mapping[str, Attribute]


def spans_of(what: Ended) -> list[Span]:
    """Gives the spans of what has ended, sampled or not; none where the run has no well-formed traceparent."""
    context = parse_traceparent(what.traceparent)
    if context is None:
        return []
    attributes: dict[str, Attribute] = {
        "baton.namespace": what.namespace,
        "baton.run.id": str(what.run_id),
    }
    if what.workflow:
        attributes["baton.workflow.name"] = what.workflow
    attributes["baton.workflow.revision"] = what.revision
    trace = RunTrace(what.run_id, context.trace_id, run_span_id(what.run_id, what.round), context.span_id, attributes)
    spans = [span for step in what.steps for span in _step_spans(trace, step)]
    if what.run is not None:
        spans.append(_run_span(trace, what.workflow, what.run))
    return spans


def whole_run_spans(namespace: str, run_id: UUID, run: Run) -> list[Span]:
    """Gives every span of an ended run, such as one read back from the journal, sampled or not."""
    return spans_of(ended(namespace, run_id, run, range(len(run.steps))))


def _run_span(trace: RunTrace, workflow: str, run: EndedRun) -> Span:
    attributes = {
        **trace.attributes,
        "baton.run.state": run.state.name,
        **_failure_attributes(run.failure),
    }
    return Span(
        f"run {workflow or 'inline'}",
        SpanKind.INTERNAL,
        trace.trace_id,
        trace.span_id,
        trace.parent_span_id,
        run.create_time,
        run.end_time,
        attributes,
        error_code=_code(run.failure),
    )


def _step_spans(trace: RunTrace, step: EndedStep) -> list[Span]:
    """Gives the spans of an ended step, its own first; nothing for one that never waited to run."""
    if step.ready_time is None:
        return []
    if step.state is StepState.CANCELLED and not step.attempts and step.end_time - step.ready_time < SHORTEST_WAIT_US:
        # Released by the very failure that ended the run.
        return []
    specs, spec = step.graph.steps, step.spec
    attributes: dict[str, Attribute] = {**trace.attributes, "baton.step.id": spec.id}
    own: dict[str, Attribute] = {
        **attributes,
        "baton.step.state": step.state.name,
        **_failure_attributes(step.failure),
    }
    if step.skip_reason is not None:
        own["baton.step.skip_reason"] = step.skip_reason.name
    if len(spec.predecessors) > LINKS_LIMIT:
        own["baton.step.predecessors"] = len(spec.predecessors)
    span = Span(
        f"step {spec.id}",
        SpanKind.INTERNAL,
        trace.trace_id,
        step_span_id(trace.run_id, spec.id, step.round),
        step_span_id(trace.run_id, step.parent, step.parent_round) if step.parent else trace.span_id,
        step.ready_time + 1,
        step.end_time,
        own,
        tuple(
            step_span_id(trace.run_id, specs[before].id, round_)
            for before, round_ in zip(
                spec.predecessors[:LINKS_LIMIT], step.predecessor_rounds or repeat(1), strict=False
            )
        ),
        _code(step.failure),
    )
    if step.state is StepState.SKIPPED:
        return [span]
    return [span, *_inner_spans(trace, attributes, span.span_id, spec.id, step, step.ready_time)]


def _inner_spans(
    trace: RunTrace,
    attributes: Mapping[str, Attribute],
    parent: bytes,
    step_id: str,
    step: EndedStep,
    ready_time: int,
) -> Iterator[Span]:
    told_until, end_time = ready_time, step.end_time
    before: AttemptRecord | None = None
    for record in step.attempts:
        # Before the first attempt of a target there is no backoff: all the wait was for a worker, circuit or limit.
        same_target = before is not None and before.target == record.target
        due_time = record.ready_time if same_target else told_until
        number = record.attempt
        yield from _waits(
            trace,
            attributes,
            parent,
            step_id,
            number,
            told_until,
            due_time,
            record.start_time,
        )
        told_until = end_time if record.end_time is None else record.end_time
        yield _attempt_span(trace, attributes, parent, step_id, record, told_until)
        before = record
    same_target = before is not None and before.target == step.target
    due_time = step.queue_time if same_target and step.queue_time is not None else told_until
    # The step may have ended while it waited for an attempt that never came.
    yield from _waits(
        trace,
        attributes,
        parent,
        step_id,
        len(step.attempts) + 1,
        told_until,
        due_time,
        end_time + 1,
    )


def _waits(
    trace: RunTrace,
    attributes: Mapping[str, Attribute],
    parent: bytes,
    step_id: str,
    attempt: int,
    after_time: int,
    due_time: int,
    start_time: int,
) -> Iterator[Span]:
    """Tells of the wait after `after_time` for an attempt that was due at `due_time` and started at `start_time`."""
    due_time = min(due_time, start_time - 1)
    if due_time - after_time >= SHORTEST_WAIT_US:
        span_id = backoff_span_id(trace.run_id, step_id, attempt)
        name = f"backoff {step_id}"
        yield _wait_span(trace, attributes, parent, name, span_id, attempt, after_time + 1, due_time)
        after_time = due_time
    if start_time - after_time > SHORTEST_WAIT_US:
        span_id = queue_span_id(trace.run_id, step_id, attempt)
        name = f"queue {step_id}"
        yield _wait_span(
            trace,
            attributes,
            parent,
            name,
            span_id,
            attempt,
            after_time + 1,
            start_time - 1,
        )


def _wait_span(
    trace: RunTrace,
    attributes: Mapping[str, Attribute],
    parent: bytes,
    name: str,
    span_id: bytes,
    attempt: int,
    start_time: int,
    end_time: int,
) -> Span:
    own = {**attributes, "baton.step.attempt": attempt}
    return Span(
        name,
        SpanKind.INTERNAL,
        trace.trace_id,
        span_id,
        parent,
        start_time,
        end_time,
        own,
    )


def _attempt_span(
    trace: RunTrace,
    attributes: Mapping[str, Attribute],
    parent: bytes,
    step_id: str,
    record: AttemptRecord,
    end_time: int,
) -> Span:
    method = record.method.removeprefix("/")
    code = _code(record.failure)
    own: dict[str, Attribute] = {
        **attributes,
        "baton.step.attempt": record.attempt,
        "baton.worker.name": record.worker,
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": code or "OK",
        **_server_attributes(record.address),
        **_failure_attributes(record.failure),
    }
    if record.deliveries > 1:
        own["baton.step.deliveries"] = record.deliveries
    span_id = attempt_span_id(trace.run_id, step_id, record.attempt)
    start_time = record.start_time
    return Span(
        method,
        SpanKind.CLIENT,
        trace.trace_id,
        span_id,
        parent,
        start_time,
        end_time,
        own,
        error_code=code,
    )


def _failure_attributes(failure: Failure | None) -> Mapping[str, Attribute]:
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


def _code(failure: Failure | None) -> str:
    return "" if failure is None else failure.code.name


@lru_cache(maxsize=1_024)
def _server_attributes(address: str) -> Mapping[str, Attribute]:
    host, colon, port = address.rpartition(":")
    if colon and port.isascii() and port.isdigit():
        return {
            "server.address": host.rpartition("/")[2].strip("[]"),
            "server.port": int(port),
        }
    return {"server.address": address}
