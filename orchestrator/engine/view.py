"""Runs as callers see them: a domain run rendered as baton.v1.Run. Only durable state is rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from baton.v1 import run_pb2, run_service_pb2

from orchestrator.domain import waits
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.domain.step_run import AttemptRecord, StepRun
from orchestrator.domain.tracing import attempt_span_id, trace_id_of
from orchestrator.engine.messages import set_any, set_timestamp, to_failure, to_timestamp
from orchestrator.engine.ports import NewRun, RunRow
from orchestrator.engine.waits import Wait

MAX_WAIT_STEPS = 100
"""Most steps that a wait reason names."""

MAX_STEPS = 1_000
"""Most steps that a run is shown with; a step takes 5 to 40 us, in which nothing else goes on."""

VIEW_LIMIT_BYTES = PAGE_LIMIT_BYTES = 3 << 20
"""Size of a run with its steps, and of a page of a list, so that it fits the 4 MiB that clients take by default."""


def has_payloads(view: int) -> bool:
    """Tells whether a run is shown with payloads, its own at least."""
    return view in (run_service_pb2.RUN_VIEW_FULL, run_service_pb2.RUN_VIEW_RESULT)


def render(run: Run, run_id: UUID, view: int, wait_of: Callable[[int], Wait | None]) -> run_pb2.Run:
    """Renders a run with its steps, where the view has any; `wait_of` tells why a ready step waits.

    Messages are filled in where they are, which costs half of making them apart: every run is rendered once at least.
    """
    message = render_without_steps(run, run_id, view)
    if view == run_service_pb2.RUN_VIEW_RESULT:
        return message
    full = view == run_service_pb2.RUN_VIEW_FULL
    message.step_count = len(run.steps)
    room = VIEW_LIMIT_BYTES - message.ByteSize()
    for index in range(min(len(run.steps), MAX_STEPS)):
        step = message.steps.add()
        _fill_step(step, run, run_id, index, full, wait_of)
        room -= step.ByteSize()
        if room < 0:
            del message.steps[-1]
            break
    return message


def render_without_steps(run: Run, run_id: UUID, view: int) -> run_pb2.Run:
    """Renders a run alone."""
    message = run_pb2.Run(
        run_id=str(run_id),
        workflow=run.workflow,
        revision=run.revision,
        state=run.state,  # type: ignore[arg-type]
        parent_run_id=run.parent_run_id,
        parent_step=run.parent_step,
        paused=run.paused,
        forked_run_id=run.forked_run_id,
        forked_step=run.forked_step,
        principal=run.principal,
        channel=run.channel,
        workspace=run.workspace,
        trace_id=trace_id_of(run.traceparent),
        round=run.round,
        last_sequence=run.sequence,
        priority=run.priority,
    )
    message.labels.extend(run.labels)
    message.attributes.update(run.attributes)
    set_timestamp(message.create_time, run.create_time)
    set_timestamp(message.expire_time, run.expire_time)
    if run.start_time is not None:
        set_timestamp(message.start_time, run.start_time)
    if run.end_time is not None:
        set_timestamp(message.end_time, run.end_time)
    if run.failure is not None:
        message.failure.CopyFrom(to_failure(run.failure))
    if view == run_service_pb2.RUN_VIEW_FULL and run.input is not None:
        set_any(message.input, run.input)
    if run.output is not None and has_payloads(view):
        set_any(message.output, run.output)
    return message


def render_new(run_id: UUID, new: NewRun, traceparent: str, priority: int) -> run_pb2.Run:
    """Renders a new run after its first event, which is durable once the run is, wherever it has gone by now."""
    return run_pb2.Run(
        run_id=str(run_id),
        workflow=new.revision.workflow,
        revision=new.revision.revision,
        state=run_pb2.RUN_STATE_PENDING,
        attributes=new.attributes,
        principal=new.principal,
        channel=new.channel,
        workspace=new.workspace,
        labels=new.labels,
        create_time=to_timestamp(new.create_time),
        expire_time=to_timestamp(new.expire_time),
        trace_id=trace_id_of(traceparent),
        round=1,
        last_sequence=1,
        priority=priority,
    )


def render_steps(
    run: Run, run_id: UUID, after: int, limit: int, view: int, wait_of: Callable[[int], Wait | None]
) -> list[run_pb2.RunStep]:
    """Renders at most `limit` steps from the index `after` on, and none after those that are more than
    PAGE_LIMIT_BYTES together."""
    full = view == run_service_pb2.RUN_VIEW_FULL
    steps = []
    room = PAGE_LIMIT_BYTES
    for index in range(after, min(after + limit, len(run.steps))):
        if room < 0:
            break
        steps.append(run_pb2.RunStep())
        _fill_step(steps[-1], run, run_id, index, full, wait_of)
        room -= steps[-1].ByteSize()
    return steps


def render_row(row: RunRow) -> run_pb2.Run:
    """Renders a run for a list, without steps and payloads."""
    message = run_pb2.Run(
        run_id=str(row.key.run_id),
        workflow=row.revision.workflow,
        revision=row.revision.revision,
        state=row.state,  # type: ignore[arg-type]
        attributes=row.attributes,
        principal=row.principal,
        channel=row.channel,
        workspace=row.workspace,
        labels=row.labels,
        create_time=to_timestamp(row.create_time),
        expire_time=to_timestamp(row.expire_time),
        round=row.round,
        last_sequence=row.next_sequence - 1,
    )
    if row.start_time is not None:
        message.start_time.CopyFrom(to_timestamp(row.start_time))
    if row.end_time is not None:
        message.end_time.CopyFrom(to_timestamp(row.end_time))
    return message


def _fill_step(
    message: run_pb2.RunStep,
    run: Run,
    run_id: UUID,
    index: int,
    full: bool,
    wait_of: Callable[[int], Wait | None],
) -> None:
    step = run.steps[index]
    spec = step.spec
    message.step = spec.id
    if spec.targets:
        message.method = spec.targets[step.target].method
    message.state = step.state  # type: ignore[assignment]
    if step.target:
        message.target = step.target
    if spec.predecessors:
        message.predecessors.extend([run.graph.steps[other].id for other in spec.predecessors])
    if spec.parent >= 0:
        message.parent, message.role = run.steps[spec.parent].spec.id, int(spec.role)  # type: ignore[assignment]
    if step.child_run_id:
        message.child_run_id = step.child_run_id
    if step.substituted_by:
        message.substituted_by = step.substituted_by
    if isinstance(step.wait, waits.ApprovalAwaited):
        message.request_hash = step.wait.request_hash
    if step.waited is not None:
        for waited in step.waited:
            shown = message.waits.add(kind=_KINDS[type(waited.wait)])
            set_timestamp(shown.start_time, waited.start_time)
            if waited.end_time is not None:
                set_timestamp(shown.end_time, waited.end_time)
    for record in step.attempts:
        _fill_attempt(message.attempts.add(), record, attempt_span_id(run_id, spec.id, record.attempt))
    if step.ready_time is not None:
        set_timestamp(message.ready_time, step.ready_time)
    if step.end_time is not None:
        set_timestamp(message.end_time, step.end_time)
    if step.failure is not None:
        message.failure.CopyFrom(to_failure(step.failure))
    if full and step.output is not None:
        set_any(message.output, step.output)
    if full and step.checkpoint is not None:
        set_any(message.checkpoint, step.checkpoint)
    if not run.ended and step.state in (StepState.BLOCKED, StepState.READY, StepState.WAITING):
        message.wait_reason.CopyFrom(_wait(run, index, step, wait_of))


def _fill_attempt(message: run_pb2.Attempt, record: AttemptRecord, span_id: bytes) -> None:
    message.attempt, message.deliveries, message.method = record.attempt, record.deliveries, record.method
    message.worker, message.address = record.worker, record.address
    message.span_id = span_id.hex()
    if record.waited_for:
        message.waited_for = record.waited_for  # type: ignore[assignment]
    set_timestamp(message.ready_time, record.ready_time)
    set_timestamp(message.start_time, record.start_time)
    if record.end_time is not None:
        set_timestamp(message.end_time, record.end_time)
    if record.failure is not None:
        message.failure.CopyFrom(to_failure(record.failure))


_KINDS: Mapping[type[waits.Wait], run_pb2.WaitKind.ValueType] = {
    waits.Sleeping: run_pb2.WAIT_KIND_SLEEP,
    waits.SignalAwaited: run_pb2.WAIT_KIND_SIGNAL,
    waits.ApprovalAwaited: run_pb2.WAIT_KIND_APPROVAL,
    waits.ItemsAwaited: run_pb2.WAIT_KIND_CHILD_STEPS,
    waits.IterationsAwaited: run_pb2.WAIT_KIND_CHILD_STEPS,
    waits.StepsAwaited: run_pb2.WAIT_KIND_CHILD_STEPS,
    waits.RunAwaited: run_pb2.WAIT_KIND_CHILD_RUN,
}


def why_waiting(run: Run, wait: waits.Wait) -> run_pb2.WaitReason:
    """Says what a step waits for, other than a worker."""
    match wait:
        case waits.Sleeping():
            return _reason(run_pb2.WAIT_KIND_SLEEP, "sleeps", wait.until_time)
        case waits.SignalAwaited():
            text = f"waits for the signal {wait.signal}; send it with SignalRun"
            return _reason(run_pb2.WAIT_KIND_SIGNAL, text, wait.expire_time)
        case waits.ApprovalAwaited():
            text = "waits for a person to decide on its request; see ListApprovals"
            return _reason(run_pb2.WAIT_KIND_APPROVAL, text, wait.expire_time)
        case waits.ItemsAwaited():
            return _reason(run_pb2.WAIT_KIND_CHILD_STEPS, f"waits for its {wait.count} items")
        case waits.IterationsAwaited():
            return _reason(run_pb2.WAIT_KIND_CHILD_STEPS, "waits for its iteration under way")
        case waits.RunAwaited():
            name = f"{wait.workflow} {wait.revision}"
            return _reason(run_pb2.WAIT_KIND_CHILD_RUN, f"waits for run {wait.run_id} of {name}")
        case waits.StepsAwaited():
            waited_for = [run.steps[index].spec.id for index in sorted(wait.steps)][:MAX_WAIT_STEPS]
            text = "suspended; called again when one of the steps that it delegated has ended"
            return run_pb2.WaitReason(kind=run_pb2.WAIT_KIND_CHILD_STEPS, message=text, steps=waited_for)


def _reason(kind: run_pb2.WaitKind.ValueType, text: str, until_time: int | None = None) -> run_pb2.WaitReason:
    reason = run_pb2.WaitReason(kind=kind, message=text)
    if until_time is not None:
        set_timestamp(reason.until_time, until_time)
    return reason


def render_wait(wait: Wait) -> run_pb2.WaitReason:
    """Renders why a step waits."""
    return _reason(wait.kind, wait.message, wait.until_time)


def _wait(run: Run, index: int, step: StepRun, wait_of: Callable[[int], Wait | None]) -> run_pb2.WaitReason:
    if step.wait is not None:
        return why_waiting(run, step.wait)
    if step.state is StepState.BLOCKED and step.spec.parent >= 0:
        text = "waits for its turn among the steps that belong to " + run.steps[step.spec.parent].spec.id
        return run_pb2.WaitReason(kind=run_pb2.WAIT_KIND_STEPS, message=text)
    if step.state is StepState.BLOCKED:
        waited_for = [
            run.graph.steps[other].id
            for other in run.graph.steps[index].predecessors
            if run.steps[other].state not in ENDED_STEP
        ][:MAX_WAIT_STEPS]
        text = "waits for " + ", ".join(waited_for[:5]) + (" and others" if len(waited_for) > 5 else "")
        return run_pb2.WaitReason(kind=run_pb2.WAIT_KIND_STEPS, message=text, steps=waited_for)
    if run.paused:
        return _reason(run_pb2.WAIT_KIND_PAUSED, "the run is paused; resume it with ResumeRun")
    wait = wait_of(index)
    if wait is None:
        return run_pb2.WaitReason(kind=run_pb2.WAIT_KIND_JOURNAL, message="admitted; its entry is being made durable")
    return render_wait(wait)
