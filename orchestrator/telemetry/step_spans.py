"""The spans of one step: its own, its attempts, and its waits, each told apart by what was waited for.

Waits for steps and runs have no spans, for those have their own. What may not enter: see spans.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import repeat
from uuid import UUID

from orchestrator.domain.states import StepState
from orchestrator.domain.step_run import AttemptRecord, WaitRecord
from orchestrator.domain.tracing import attempt_span_id, backoff_span_id, queue_span_id, step_span_id, wait_span_id
from orchestrator.domain.waits import ApprovalAwaited, QueueReason, SignalAwaited, Sleeping, Wait
from orchestrator.domain.workflow import Step, StepKind, StepRole
from orchestrator.telemetry.ended import EndedStep, Place
from orchestrator.telemetry.span import Attribute, RunTrace, Span, SpanKind, code_of, failure_attributes

SHORTEST_WAIT_US = 1_000
"""A shorter wait is not worth a span."""

LINKS_LIMIT = 128
"""Links of one step to those it waited for; OpenTelemetry's own limit."""

_WAITS: Mapping[type[Wait], str] = {Sleeping: "sleep", SignalAwaited: "signal", ApprovalAwaited: "approval"}
"""Waits that have a span, and what its name begins with."""

_NUMBERS = {StepRole.ITEM: "baton.step.item", StepRole.ITERATION: "baton.step.iteration"}


def step_spans(trace: RunTrace, step: EndedStep) -> list[Span]:
    """Gives the spans of an ended step, its own first; nothing for one that never waited to run."""
    if step.ready_time is None:
        return []
    if step.state is StepState.CANCELLED and not step.attempts and step.end_time - step.ready_time < SHORTEST_WAIT_US:
        # Released by the very failure that ended the run.
        return []
    spec = step.spec
    attributes: dict[str, Attribute] = {**trace.attributes, "baton.step.id": spec.id}
    span = Span(
        f"step {spec.id}",
        SpanKind.INTERNAL,
        trace.trace_id,
        step_span_id(trace.run_id, spec.id, step.life),
        trace.span_id if step.parent is None else _span_id(trace.run_id, step.parent),
        step.ready_time + 1,
        step.end_time,
        {**attributes, **_step_attributes(step)},
        _links(trace.run_id, step),
        code_of(step.failure),
    )
    if step.state is StepState.SKIPPED:
        return [span]
    return [span, *_Inside(trace, attributes, span.span_id, step, step.ready_time).spans()]


def _step_attributes(step: EndedStep) -> Mapping[str, Attribute]:
    spec = step.spec
    own: dict[str, Attribute] = {
        "baton.step.state": step.state.name,
        "baton.step.kind": _kind(spec),
        **failure_attributes(step.failure),
    }
    if step.skip_reason is not None:
        own["baton.step.skip_reason"] = step.skip_reason.name
    if step.adder is not None:
        own["baton.step.role"], own["baton.step.parent"] = spec.role.name, step.adder.step
    if spec.role in _NUMBERS:
        own[_NUMBERS[spec.role]] = spec.number
    if step.child_run_id:
        own["baton.step.child_run.id"] = step.child_run_id
    if len(spec.predecessors) > LINKS_LIMIT:
        own["baton.step.predecessors"] = len(spec.predecessors)
    return own


def _kind(spec: Step) -> str:
    """What a step does, as workflows are written."""
    if spec.map is not None:
        return "MAP"
    if spec.repeat is not None:
        return "REPEAT"
    return "WAIT_SIGNAL" if spec.kind is StepKind.SIGNAL else spec.kind.name


def _links(run_id: UUID, step: EndedStep) -> tuple[bytes, ...]:
    """Links to the steps it waited for, and to what has added it, where it does not stand below that."""
    if step.adder is not None:
        return () if step.parent == step.adder else (_span_id(run_id, step.adder),)
    specs, before = step.graph.steps, step.spec.predecessors[:LINKS_LIMIT]
    lives = step.predecessor_lives or repeat(1)
    return tuple(step_span_id(run_id, specs[index].id, life) for index, life in zip(before, lives, strict=False))


def _span_id(run_id: UUID, place: Place) -> bytes:
    if place.attempt:
        return attempt_span_id(run_id, place.step, place.attempt)
    return step_span_id(run_id, place.step, place.life)


class _Inside:
    """Goes through the time of a step, from one thing that it did or waited for to the next."""

    def __init__(
        self, trace: RunTrace, attributes: Mapping[str, Attribute], parent: bytes, step: EndedStep, ready_time: int
    ) -> None:
        self._trace, self._attributes, self._parent, self._step = trace, attributes, parent, step
        self._told_until = ready_time
        self._waits = iter(enumerate(step.waited or ()))
        self._wait = next(self._waits, None)

    def spans(self) -> Iterator[Span]:
        """Gives the spans in the order of time."""
        step = self._step
        before: AttemptRecord | None = None
        number = step.earlier_attempts + 1
        for record in step.attempts:
            number = record.attempt
            reason = QueueReason(record.waited_for).name if record.waited_for else "OTHER"
            due_time = self._due_time(before, record.target, record.ready_time)
            yield from self._until(number, due_time, record.start_time, reason, before is not None)
            self._told_until = step.end_time if record.end_time is None else record.end_time
            yield self._attempt(record, self._told_until)
            before, number = record, number + 1
        due_time = self._due_time(before, step.target, step.queue_time)
        # The step may have ended while it waited, for an attempt that never came too.
        yield from self._until(number, due_time, step.end_time + 1, "OTHER", before is not None)

    def _due_time(self, before: AttemptRecord | None, target: int, queue_time: int | None) -> int | None:
        """When the next attempt may start. Before the first one of a target there is no backoff: all the wait was for a
        worker, a circuit or a limit. An iteration begins when the workflow says."""
        if before is None:
            return queue_time if self._step.spec.role is StepRole.ITERATION and target == 0 else None
        return queue_time if before.target == target else None

    def _until(self, attempt: int, due_time: int | None, start_time: int, reason: str, again: bool) -> Iterator[Span]:
        """Tells of what lies before `start_time`, when `attempt` started; it was due at `due_time`."""
        while self._wait is not None and self._wait[1].start_time < start_time:
            yield from self._waited(*self._wait)
            self._wait = next(self._waits, None)
        due_time = self._told_until if due_time is None else min(due_time, start_time - 1)
        own: dict[str, Attribute] = {"baton.step.attempt": attempt}
        life = self._step.life
        if due_time - self._told_until >= SHORTEST_WAIT_US:
            # The times of iterations lie apart as the workflow says.
            name = "backoff" if again else "interval"
            span_id = backoff_span_id(self._trace.run_id, self._step.spec.id, attempt, life)
            yield self._span(name, span_id, self._told_until + 1, due_time, own)
            self._told_until = due_time
        if start_time - self._told_until > SHORTEST_WAIT_US:
            span_id = queue_span_id(self._trace.run_id, self._step.spec.id, attempt, life)
            yield self._span("queue", span_id, self._told_until + 1, start_time - 1, own, reason)

    def _waited(self, number: int, record: WaitRecord) -> Iterator[Span]:
        end_time = self._step.end_time if record.end_time is None else record.end_time
        name = _WAITS.get(type(record.wait))
        self._told_until = end_time
        if name is None or end_time - record.start_time < SHORTEST_WAIT_US:
            return
        own: dict[str, Attribute] = {}
        if isinstance(record.wait, SignalAwaited):
            own["baton.signal.name"] = record.wait.signal
        span_id = wait_span_id(self._trace.run_id, self._step.spec.id, number, self._step.life)
        yield self._span(name, span_id, record.start_time, end_time, own)

    def _span(
        self,
        name: str,
        span_id: bytes,
        start_time: int,
        end_time: int,
        own: Mapping[str, Attribute],
        kind: str = "",
    ) -> Span:
        return Span(
            f"{name} {self._step.spec.id}",
            SpanKind.INTERNAL,
            self._trace.trace_id,
            span_id,
            self._parent,
            start_time,
            end_time,
            {**self._attributes, **own, "baton.wait.kind": kind or name.upper()},
        )

    def _attempt(self, record: AttemptRecord, end_time: int) -> Span:
        method = record.method.removeprefix("/")
        code = code_of(record.failure)
        own: dict[str, Attribute] = {
            **self._attributes,
            "baton.step.attempt": record.attempt,
            "baton.worker.name": record.worker,
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "rpc.response.status_code": code or "OK",
            **_server_attributes(record.address),
            **failure_attributes(record.failure),
        }
        if record.deliveries > 1:
            own["baton.step.deliveries"] = record.deliveries
        if record.suspended:
            own["baton.step.outcome"], own["rpc.response.status_code"] = "SUSPENDED", "ABORTED"
        return Span(
            method,
            SpanKind.CLIENT,
            self._trace.trace_id,
            attempt_span_id(self._trace.run_id, self._step.spec.id, record.attempt),
            self._parent,
            record.start_time,
            end_time,
            own,
            error_code=code,
        )


@lru_cache(maxsize=1_024)
def _server_attributes(address: str) -> Mapping[str, Attribute]:
    host, colon, port = address.rpartition(":")
    if colon and port.isascii() and port.isdigit():
        return {
            "server.address": host.rpartition("/")[2].strip("[]"),
            "server.port": int(port),
        }
    return {"server.address": address}
