"""A run as a waterfall of text: when each step waited, was called and backed off, and which steps made the run as long
as it was. Works on a `baton.v1.Run` alone; colours, paging and printing are the caller's."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from baton.step_tree import Branch, tree
from baton.v1 import failure_pb2, run_pb2

LEAST_WIDTH = 60
"""Narrower terminals get lines of this width."""

_LONGEST_NAME = 28
_LEAST_BAR = 10
_LEAST_LABEL = 24
"""Columns that labels have at least; else a third of a line, so that bars can be seen beside long ones."""


class Segment(enum.Enum):
    """What a step was doing."""

    ATTEMPT = "attempt"
    FAILED_ATTEMPT = "failed attempt"
    BACKOFF = "backoff"
    QUEUE = "queue"
    PERMIT = "permit"
    SLEEP = "sleep"
    SIGNAL = "signal"
    APPROVAL = "approval"
    CHILDREN = "own steps or run"


GLYPHS: Mapping[Segment, str] = {
    Segment.ATTEMPT: "█",
    Segment.FAILED_ATTEMPT: "▒",
    Segment.BACKOFF: "~",
    Segment.QUEUE: "·",
    Segment.PERMIT: ":",
    Segment.SLEEP: "┄",
    Segment.SIGNAL: "≈",
    Segment.APPROVAL: "?",
    Segment.CHILDREN: "─",
}
ASCII_GLYPHS: Mapping[Segment, str] = {
    Segment.ATTEMPT: "#",
    Segment.FAILED_ATTEMPT: "x",
    Segment.BACKOFF: "~",
    Segment.QUEUE: ".",
    Segment.PERMIT: ":",
    Segment.SLEEP: "_",
    Segment.SIGNAL: "=",
    Segment.APPROVAL: "?",
    Segment.CHILDREN: "-",
}

_WAITS: Mapping[int, Segment] = {
    run_pb2.WAIT_KIND_SLEEP: Segment.SLEEP,
    run_pb2.WAIT_KIND_SIGNAL: Segment.SIGNAL,
    run_pb2.WAIT_KIND_APPROVAL: Segment.APPROVAL,
    run_pb2.WAIT_KIND_CHILD_STEPS: Segment.CHILDREN,
    run_pb2.WAIT_KIND_CHILD_RUN: Segment.CHILDREN,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a step's time, in microseconds since the Unix epoch."""

    segment: Segment
    start_time: int
    end_time: int


def waterfall(run: run_pb2.Run, width: int = 100, *, now: int | None = None, ascii_only: bool = False) -> list[str]:
    """Draws a run as lines of at most `width` columns: a heading, one line a step, a legend of what occurs.

    Steps stand below the step that they belong to; where those are many, most of them are only counted. Steps on the
    critical path begin with `*`. What has not ended is drawn until `now` (microseconds since the Unix epoch; unset,
    until the last instant the run tells of) and its length is followed by `+`.
    """
    width = max(width, LEAST_WIDTH)
    glyphs = ASCII_GLYPHS if ascii_only else GLYPHS
    start, end = _bounds(run, now)
    path = critical_path(run)
    shown = list(tree(run.steps))
    rows = [line for line in shown if isinstance(line, Branch)]
    names = {row.step.step: _cut("  " * row.depth + row.name, _LONGEST_NAME, ascii_only) for row in rows}
    labels = {row.step.step: _label(row.step, end) for row in rows}
    name_width = max((len(name) for name in names.values()), default=0)
    label_width = min(max((len(label) for label in labels.values()), default=0), max(width // 3, _LEAST_LABEL))
    bar_width = max(width - name_width - label_width - 6, _LEAST_BAR)
    on_path = set(path)
    drawn: set[Segment] = set()
    scale = _Scale(start, max(end - start, 1), bar_width)
    lines = [_cut(_heading(run, end - start), width, ascii_only)]
    for row in shown:
        if not isinstance(row, Branch):
            lines.append(_cut(f"  {'  ' * row.depth}{row}", width, ascii_only))
            continue
        step = row.step
        mark = "*" if step.step in on_path else " "
        pieces = step_pieces(step, end)
        drawn.update(piece.segment for piece in pieces)
        bar = scale.draw(pieces, glyphs)
        room = width - name_width - bar_width - 6
        label = _cut(labels[step.step], room, ascii_only)
        lines.append(f"{mark} {names[step.step]:<{name_width}} |{bar}| {label}".rstrip())
    if path:
        arrow = " > " if ascii_only else " → "
        lines.append(_cut(f"* critical path: {arrow.join(path)}", width, ascii_only))
    legend = [f"{glyph} {segment.value}" for segment, glyph in glyphs.items() if segment in drawn]
    return lines + _legend(legend, width)


def critical_path(run: run_pb2.Run) -> list[str]:
    """Gives the ids of the steps that made the run as long as it was, in order.

    From the step that ended last, always back to the step it waited for that ended last. Skipped steps are passed
    through, not named; nor are steps that belong to others. Empty until some step has ended.
    """
    steps = {step.step: step for step in run.steps if not step.parent}
    ended = [step for step in steps.values() if step.HasField("end_time") and step.HasField("ready_time")]
    ended = [step for step in ended if step.state == run_pb2.STEP_STATE_SKIPPED or _was_run(step)]
    path: list[str] = []
    current = max(ended, key=lambda step: _micros(step.end_time), default=None)
    seen: set[str] = set()
    while current is not None and current.step not in seen:
        seen.add(current.step)
        if _was_run(current):
            path.append(current.step)
        before = [steps[name] for name in current.predecessors if name in steps]
        before = [step for step in before if step.HasField("end_time")]
        current = max(before, key=lambda step: _micros(step.end_time), default=None)
    return path[::-1]


def _was_run(step: run_pb2.RunStep) -> bool:
    return bool(step.attempts) or bool(step.waits)


def step_pieces(step: run_pb2.RunStep, until: int) -> list[Piece]:
    """Gives the pieces of a step's time in order, without gaps; what has not ended lasts until `until`.

    Attempts of rounds before this one come first, as they were.
    """
    if not step.HasField("ready_time") or step.state == run_pb2.STEP_STATE_SKIPPED:
        return []
    time = _StepTime(step)
    for attempt in step.attempts:
        time.attempt(attempt, until)
    time.rest(_micros(step.end_time) if step.HasField("end_time") else until)
    return time.pieces


class _StepTime:
    """Goes through the time of a step, from one thing that it did or waited for to the next."""

    def __init__(self, step: run_pb2.RunStep) -> None:
        self.pieces: list[Piece] = []
        self._step = step
        self._ready_time = self._told_until = _micros(step.ready_time)
        self._waits = list(step.waits)
        self._method = ""

    def attempt(self, attempt: run_pb2.Attempt, until: int) -> None:
        """Tells of an attempt, and of what lies before it."""
        due, start = _micros(attempt.ready_time), _micros(attempt.start_time)
        end = _micros(attempt.end_time) if attempt.HasField("end_time") else max(until, start)
        if start >= self._ready_time:
            self._wait_until(start)
            if self._is_iteration() or self._method == attempt.method:
                # The times of iterations lie apart as the workflow says.
                self._add(Segment.BACKOFF if self._method else Segment.SLEEP, min(due, start))
            permit = attempt.waited_for == run_pb2.QUEUE_REASON_PERMIT
            self._add(Segment.PERMIT if permit else Segment.QUEUE, start)
            self._told_until, self._method = end, attempt.method
        segment = Segment.FAILED_ATTEMPT if attempt.HasField("failure") else Segment.ATTEMPT
        if end > start:
            self.pieces.append(Piece(segment, start, end))

    def rest(self, end: int) -> None:
        """Tells of what lies after the last attempt."""
        self._wait_until(end)
        last = Segment.QUEUE
        if self._step.wait_reason.kind == run_pb2.WAIT_KIND_BACKOFF:
            last = Segment.BACKOFF if self._method else Segment.SLEEP
        self._add(last, end)

    def _is_iteration(self) -> bool:
        return self._step.role == run_pb2.STEP_ROLE_ITERATION and not self._method

    def _wait_until(self, time: int) -> None:
        while self._waits and _micros(self._waits[0].start_time) < time:
            wait = self._waits.pop(0)
            self._add(Segment.QUEUE, _micros(wait.start_time))
            self._add(
                _WAITS.get(wait.kind, Segment.QUEUE), _micros(wait.end_time) if wait.HasField("end_time") else time
            )

    def _add(self, segment: Segment, end: int) -> None:
        if end > self._told_until:
            self.pieces.append(Piece(segment, self._told_until, end))
            self._told_until = end


class _Scale:
    """Maps instants to columns."""

    def __init__(self, start: int, length_us: int, width: int) -> None:
        self._start = start
        self._length_us = length_us
        self._width = width

    def draw(self, pieces: Sequence[Piece], glyphs: Mapping[Segment, str]) -> str:
        """Draws pieces; each gets its share of the columns, and a call is never too short to be seen."""
        cells = [" "] * self._width
        for piece in pieces:
            first, last = self._column(piece.start_time), self._column(piece.end_time)
            for column in range(first, last):
                cells[column] = glyphs[piece.segment]
        for piece in pieces:
            if piece.segment in (Segment.ATTEMPT, Segment.FAILED_ATTEMPT):
                column = min(self._column(piece.start_time), self._width - 1)
                cells[column] = glyphs[piece.segment]
        return "".join(cells)

    def _column(self, time: int) -> int:
        return min(max((time - self._start) * self._width // self._length_us, 0), self._width)


def _legend(entries: Sequence[str], width: int) -> list[str]:
    """Sets what signs mean, on as many lines as it takes."""
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + 2 + len(entry) <= width:
            lines[-1] += f"  {entry}"
        else:
            lines.append(f"  {entry}")
    return lines


def _bounds(run: run_pb2.Run, now: int | None) -> tuple[int, int]:
    start = _micros(run.create_time)
    if run.HasField("end_time"):
        return start, _micros(run.end_time)
    if now is not None:
        return start, max(now, start)
    told = [start]
    for step in run.steps:
        told += [_micros(step.ready_time), _micros(step.end_time)]
        told += [_micros(time) for each in step.attempts for time in (each.start_time, each.end_time)]
    return start, max(told)


def _heading(run: run_pb2.Run, length_us: int) -> str:
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    going = "" if run.HasField("end_time") else "+"
    text = f"run {run.run_id}  {run.workflow or 'inline'}  {state}  {length(length_us)}{going}"
    return f"{text}  {_why(run.failure)}" if run.HasField("failure") else text


def _label(step: run_pb2.RunStep, until: int) -> str:
    state = run_pb2.StepState.Name(step.state).removeprefix("STEP_STATE_")
    if not step.HasField("ready_time") or step.state == run_pb2.STEP_STATE_SKIPPED:
        return state.lower()
    end = _micros(step.end_time) if step.HasField("end_time") else until
    going = "" if step.HasField("end_time") else "+"
    parts = [length(max(end - _micros(step.ready_time), 0)) + going]
    if len(step.attempts) > 1:
        parts.append(f"{len(step.attempts)} attempts")
    redelivered = max((attempt.deliveries for attempt in step.attempts), default=1)
    if redelivered > 1:
        # The bar of an attempt is one piece: when its owner died is not known, only that it was sent again.
        number = next(attempt.attempt for attempt in step.attempts if attempt.deliveries == redelivered)
        which = f"#{number} " if len(step.attempts) > 1 else ""
        parts.append(f"{which}sent {redelivered} times")
    if step.HasField("failure"):
        parts.append(_why(step.failure))
    elif step.wait_reason.kind:
        parts.append(f"waits: {run_pb2.WaitKind.Name(step.wait_reason.kind).removeprefix('WAIT_KIND_').lower()}")
    elif step.state != run_pb2.STEP_STATE_SUCCEEDED:
        parts.append(state.lower())
    return ", ".join(parts)


def _why(failure: failure_pb2.Failure) -> str:
    # A worker chooses the reason; nothing in it may steer the terminal.
    return "".join(letter for letter in failure.reason if letter.isprintable()) or code_pb2.Code.Name(failure.code)


def length(length_us: int) -> str:
    """Writes a length in at most four digits where it can: 0.24 ms, 12.3 ms, 1,204 ms, 22.7 s, 17 min 22 s."""
    if length_us >= 10_000_000:
        return _long(length_us // 1_000_000, length_us % 1_000_000)
    length = length_us / 1_000
    if length < 1:
        return f"{length:.2f} ms"
    return f"{length:.1f} ms" if length < 100 else f"{length:,.0f} ms"


def _long(seconds: int, micros: int) -> str:
    if seconds < 100:
        return f"{seconds + micros / 1_000_000:.1f} s"
    if seconds < 3_600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3_600} h {seconds % 3_600 // 60} min"


def _micros(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1_000


def _cut(text: str, width: int, ascii_only: bool) -> str:
    if len(text) <= width:
        return text
    return text[: max(width - 2, 0)] + ".." if ascii_only else text[: max(width - 1, 0)] + "…"
