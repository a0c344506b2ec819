"""From the journaled times of a run to its spans, as pure values. The same run gives the same spans on any replica.

The tree: SubmitRun (submit_span.py), a firing of a schedule, or the step that runs it > run > step > what the step did
(step_spans.py). A span begins 1 us after what it follows has ended: Jaeger's critical path leaves out a sibling that
ends in the very microsecond in which the next one begins, and cuts children that leave their parent.

What may not enter: OpenTelemetry (export.py), payloads, the text of failures, clocks.
"""

from __future__ import annotations

from datetime import datetime

from orchestrator.domain.tracing import firing_span_id, parse_traceparent, run_span_id
from orchestrator.telemetry.ended import Ended, EndedRun
from orchestrator.telemetry.span import Attribute, RunTrace, Span, SpanKind, code_of, failure_attributes
from orchestrator.telemetry.step_spans import step_spans


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
    if what.round > 1:
        attributes["baton.run.round"] = what.round
    trace = RunTrace(what.run_id, context.trace_id, run_span_id(what.run_id, what.round), context.span_id, attributes)
    spans = [span for step in what.steps for span in step_spans(trace, step)]
    if what.run is not None:
        spans.append(_run_span(trace, what.workflow, what.run))
        # The firing has been told when its run ended for the first time.
        if what.round == 1 and context.span_id == firing_span_id(context.trace_id, what.run.request_id):
            spans.append(_firing_span(trace, what.run))
    return spans


def _run_span(trace: RunTrace, workflow: str, run: EndedRun) -> Span:
    attributes = {
        **trace.attributes,
        "baton.run.state": run.state.name,
        **failure_attributes(run.failure),
    }
    if run.parent_run_id:
        attributes |= {"baton.run.parent.id": run.parent_run_id, "baton.run.parent.step": run.parent_step}
    if run.forked_run_id:
        attributes |= {"baton.run.forked.id": run.forked_run_id, "baton.run.forked.step": run.forked_step}
    return Span(
        f"run {workflow or 'inline'}",
        SpanKind.INTERNAL,
        trace.trace_id,
        trace.span_id,
        trace.parent_span_id,
        run.start_time,
        run.end_time,
        attributes,
        error_code=code_of(run.failure),
    )


def _firing_span(trace: RunTrace, run: EndedRun) -> Span:
    """A firing lasts from the time at which it is due to the end of the run that it started."""
    _, schedule, due = run.request_id.split("/")  # As written by engine/scheduled_runs.py.
    fire_time = int(datetime.fromisoformat(due).timestamp()) * 1_000_000
    attributes: dict[str, Attribute] = {
        "baton.namespace": trace.attributes["baton.namespace"],
        "baton.schedule.name": schedule,
        "baton.schedule.fire_time": due,
        "baton.run.id": str(trace.run_id),
        **failure_attributes(run.failure),
    }
    return Span(
        f"firing {schedule}",
        SpanKind.INTERNAL,
        trace.trace_id,
        trace.parent_span_id,
        None,
        min(fire_time, run.start_time),
        run.end_time,
        attributes,
        error_code=code_of(run.failure),
    )
