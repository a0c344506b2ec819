"""One line for each event of a run."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from rich.text import Text

from baton.cli.output import clean, clock
from baton.v1 import event_pb2, failure_pb2, run_pb2


def why(failure: failure_pb2.Failure) -> str:
    """A failure in one line."""
    reason = failure.reason or code_pb2.Code.Name(failure.code)
    text = f"{reason}: {failure.message}" if failure.message else reason
    return clean(text + (" (it may have taken effect)" if failure.outcome_unknown else "")).replace("\n", " ")


def why_briefly(failure: failure_pb2.Failure) -> str:
    """What kind of failure it is, and at which step."""
    reason = failure.reason or code_pb2.Code.Name(failure.code)
    return clean(f"{reason} at {failure.step}" if failure.step else reason)


def event_line(event: event_pb2.RunEvent) -> Text:
    """One event in one line."""
    kind = event.WhichOneof("kind") or "unknown"
    step = event.step + (f"#{event.attempt}" if event.attempt else "")
    text = Text.assemble(
        (f"{event.sequence:>5}  ", "dim"), (clock(event.time), "dim"), f"  {kind.replace('_', ' '):<19} ", clean(step)
    )
    said = event_detail(event)
    if said:
        text.append(f"{'  ' if step else ''}{said}", _EVENT_STYLES.get(kind, ""))
    elif kind in _EVENT_STYLES:
        text.stylize(_EVENT_STYLES[kind])
    return text


_EVENT_STYLES = {
    "attempt_failed": "yellow",
    "fallback_taken": "yellow",
    "step_failed": "red",
    "run_failed": "red",
    "run_cancelled": "yellow",
    "run_succeeded": "green",
    "run_undoing": "yellow",
    "run_reopened": "cyan",
    "step_retried": "cyan",
}


def event_detail(event: event_pb2.RunEvent) -> str:
    """What an event tells beyond its kind."""
    return clean(_of_attempts(event) or _of_growth(event) or _of_runs(event))


def _of_attempts(event: event_pb2.RunEvent) -> str:
    match event.WhichOneof("kind"):
        case "attempt_started":
            started = event.attempt_started
            reason = run_pb2.QueueReason.Name(started.waited_for).removeprefix("QUEUE_REASON_").lower()
            waited = f", after a wait for {_QUEUES.get(reason, reason)}" if started.waited_for else ""
            return clean(f"{started.method} at {started.worker} ({started.address}){waited}")
        case "delivery_started":
            sent = event.delivery_started
            return clean(f"sending {sent.delivery} to {sent.worker} ({sent.address})")
        case "attempt_failed":
            failed = event.attempt_failed
            again = f"; again at {clock(failed.retry_time)}" if failed.HasField("retry_time") else ""
            return why(failed.failure) + again
        case "fallback_taken":
            return clean(f"{event.fallback_taken.method} after {why(event.fallback_taken.failure)}")
        case "step_failed":
            step = event.step_failed
            way = f"; goes on with {step.branch}" if step.branch else "; the run goes on" if step.handled else ""
            return why(step.failure) + clean(way)
        case "step_skipped":
            reason = event_pb2.SkipReason.Name(event.step_skipped.reason).removeprefix("SKIP_REASON_")
            return _SKIPS.get(reason, reason)
        case "step_succeeded":
            return f"given by {event.step_succeeded.substituted_by}" if event.step_succeeded.substituted_by else ""
    return ""


def _of_growth(event: event_pb2.RunEvent) -> str:
    match event.WhichOneof("kind"):
        case "step_waiting":
            return _wait(event.step_waiting)
        case "step_delegated":
            return f"{event.step_delegated.method}{' (detached)' if event.step_delegated.detached else ''}"
        case "attempt_suspended":
            awaited = event.attempt_suspended.awaited
            return f"until {'one of ' if len(awaited) > 1 else ''}{', '.join(awaited)} has ended"
        case "iteration_started":
            return f"{event.iteration_started.iteration}, from {clock(event.iteration_started.ready_time)}"
        case "signal_received":
            return f"{event.signal_received.signal} from {event.signal_received.principal}"
        case "step_retried":
            retried = event.step_retried
            what = f"anew with {len(retried.reset) - 1} that follow" if retried.reset else "now"
            return f"{what}, by {retried.principal}{_because(retried.reason)}"
        case "approval_requested":
            asked = event.approval_requested
            return f"of {asked.request_hash[:12]} for {asked.method}{_until(asked.expire_time)}"
        case "approval_decided":
            decided = event.approval_decided
            what = "approved" if decided.approved else "denied"
            return f"{what} by {decided.principal}{_because(decided.reason)}"
    return ""


def _of_runs(event: event_pb2.RunEvent) -> str:
    match event.WhichOneof("kind"):
        case "run_submitted":
            told = event.run_submitted
            child = f", for step {told.parent_step} of run {told.parent_run_id}" if told.parent_run_id else ""
            return f"{told.workflow or '(inline)'} {told.revision}{child}"
        case "run_undoing":
            undoing = event.run_undoing
            cause = why(undoing.failure) if undoing.HasField("failure") else f"cancelled by {undoing.principal}"
            return f"{', '.join(undoing.steps)}; {cause}{_because(undoing.reason)}"
        case "run_reopened":
            again = event.run_reopened
            return f"round {again.round} by {again.principal}{_because(again.reason)}"
        case "run_paused":
            return f"by {event.run_paused.principal}{_because(event.run_paused.reason)}"
        case "run_resumed":
            return f"by {event.run_resumed.principal}"
        case "run_failed":
            return why(event.run_failed.failure)
        case "run_cancelled":
            return f"by {event.run_cancelled.principal}{_because(event.run_cancelled.reason)}"
    return ""


def _wait(waiting: event_pb2.StepWaiting) -> str:
    match waiting.WhichOneof("kind"):
        case "sleeping":
            return f"for time, until {clock(waiting.sleeping.until_time)}"
        case "signal":
            return f"for the signal {waiting.signal.signal}{_until(waiting.signal.expire_time)}"
        case "items":
            return f"for {waiting.items.count:,} items"
        case "iterations":
            return "for its iterations"
        case "run":
            return f"for run {waiting.run.run_id} of {waiting.run.workflow}"
    return ""


def _until(time: Timestamp) -> str:
    return f", until {clock(time)}" if time.seconds else ""


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


_QUEUES = {
    "no_worker": "a worker",
    "worker_not_serving": "a worker that serves",
    "circuit_open": "a circuit",
    "permit": "a permit",
    "endpoint": "a free endpoint",
    "replica": "the replica",
    "paused": "the run to be resumed",
    "retry_budget": "the retry budget",
}
_SKIPS = {"CONDITION": "its condition was false", "BRANCH_NOT_TAKEN": "its branch was not taken"}
