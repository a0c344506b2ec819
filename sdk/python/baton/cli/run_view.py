"""One run as text: its head, and its steps as a tree with attempts and reasons to wait. Events are in event_view.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from baton.cli.event_view import why
from baton.cli.output import clean, clock, instant, length, micros, new_table, state_text
from baton.cli.wording import in_commands
from baton.step_tree import Folded, tree
from baton.v1 import run_pb2

STEP_HEADERS = ("STEP", "STATE", "ATTEMPTS", "TIME", "METHOD", "DETAIL")


def run_state(run: run_pb2.Run) -> str:
    """Name of the state of a run."""
    return run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")


def step_state(step: run_pb2.RunStep) -> str:
    """Name of the state of a step."""
    return run_pb2.StepState.Name(step.state).removeprefix("STEP_STATE_")


def run_time(run: run_pb2.Run) -> str:
    """How long a run took, or has taken so far."""
    if run.HasField("end_time"):
        return length(micros(run.end_time) - micros(run.create_time))
    return length(max(0, time.time_ns() // 1_000 - micros(run.create_time))) + "+"


def head(run: run_pb2.Run) -> Text:
    """The first line about a run."""
    text = Text.assemble(("run ", "bold"), clean(run.run_id), "  ", clean(run.workflow or "(inline)"), "  ")
    return text.append_text(state_text(run_state(run))).append(f"  {run_time(run)}")


def facts(run: run_pb2.Run) -> list[tuple[str, str]]:
    """What else is known of a run, as names and values; what is not set is left out."""
    attributes = ", ".join(f"{key}={value}" for key, value in sorted(run.attributes.items()))
    told = [
        ("revision", run.revision),
        ("submitted", instant(run.create_time)),
        ("started", instant(run.start_time)),
        ("ended", instant(run.end_time)),
        ("expires", "" if run.HasField("end_time") else instant(run.expire_time)),
        ("by", f"{run.principal} over {run.channel}" if run.principal else ""),
        ("workspace", run.workspace),
        ("labels", ", ".join(run.labels)),
        ("attributes", attributes),
        ("trace", run.trace_id),
        ("step of", f"{run.parent_step} of run {run.parent_run_id}" if run.parent_run_id else ""),
        ("round", str(run.round) if run.round > 1 else ""),
        ("paused", "no attempt starts until it is resumed" if run.paused else ""),
        ("failure", why(run.failure) if run.HasField("failure") else ""),
    ]
    return [(name, clean(value)) for name, value in told if value]


def steps_table(steps: Sequence[run_pb2.RunStep], width: int) -> Table:
    """The steps of a run for a screen of `width` columns: the narrower it is, the less is told of the methods.

    Steps stand below the step that they belong to; where those are many, most of them are only counted.
    """
    with_method = width >= _METHOD_WIDTH
    table = new_table([header for header in STEP_HEADERS if header != "METHOD" or with_method], ("METHOD",))
    room = width // 3
    for line in tree(steps):
        indent = "  " * line.depth
        if isinstance(line, Folded):
            table.add_row(f"{indent}…", "", "", "", *([""] if with_method else []), Text(str(line), "dim"))
            continue
        step = line.step
        service, _, method = clean(step.method).rpartition("/")
        if service and width >= _SERVICE_WIDTH:
            method = f"{service.rpartition('.')[2]}/{method}"
        table.add_row(
            _cut(f"{indent}{clean(line.name)}", room),
            state_text(step_state(step)),
            str(len(step.attempts) or ""),
            _step_time(step),
            *([method] if with_method else []),
            Text(_detail(step)),
        )
    return table


_METHOD_WIDTH = 110
"""On narrower screens the details need the room of the methods."""

_SERVICE_WIDTH = 130
"""From here on methods are shown with their services."""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _step_time(step: run_pb2.RunStep) -> str:
    if not step.HasField("ready_time") or step.state == run_pb2.STEP_STATE_SKIPPED:
        return ""
    end = micros(step.end_time) if step.HasField("end_time") else time.time_ns() // 1_000
    return length(max(0, end - micros(step.ready_time))) + ("" if step.HasField("end_time") else "+")


def _detail(step: run_pb2.RunStep) -> str:
    if step.HasField("failure"):
        return why(step.failure)
    if step.HasField("wait_reason"):
        return wait_text(step.wait_reason)
    if step.HasField("progress"):
        percent = f"{step.progress.percent:.0f} %" if step.progress.percent else ""
        return clean(" ".join(part for part in (percent, step.progress.message) if part))
    if step.target:
        return f"by fallback {step.target}"
    if step.child_run_id:
        return f"run {clean(step.child_run_id)}"
    if len(step.attempts) > 1:
        failed = [each for each in step.attempts if each.HasField("failure")]
        return f"after {why(failed[-1].failure)}" if failed else ""
    return _waited(step)


def _waited(step: run_pb2.RunStep) -> str:
    """What an ended step waited for, and how long."""
    told = [
        f"{_WAITED[each.kind]} {length(micros(each.end_time) - micros(each.start_time))}"
        for each in step.waits
        if each.kind in _WAITED and each.HasField("end_time")
    ]
    return ", ".join(told)


_WAITED: Mapping[int, str] = {
    run_pb2.WAIT_KIND_SLEEP: "slept",
    run_pb2.WAIT_KIND_SIGNAL: "the signal came after",
    run_pb2.WAIT_KIND_APPROVAL: "decided on after",
}


def wait_text(reason: run_pb2.WaitReason) -> str:
    """Why a step waits, and until when."""
    kind = run_pb2.WaitKind.Name(reason.kind).removeprefix("WAIT_KIND_")
    until = f", until {clock(reason.until_time)}" if reason.HasField("until_time") else ""
    return clean(f"{in_commands(reason.message) or kind}{until}")
