"""Plays a scenario: lines that build a graph, lines that give inputs, and indented lines with the decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

from orchestrator.domain import inputs
from orchestrator.domain.events import Event, Payload, SignalReceived, StepDelegated
from orchestrator.domain.failures import Failure
from orchestrator.domain.plan import Decision, decide
from orchestrator.domain.run import Run
from orchestrator.domain.workflow import Delivery, Target

from .graphs import EVALUATION_FAILED, FixedConditions, contents, replay
from .scenario_graph import Script, add_step, add_to_step, duration_text, duration_us
from .scenario_inputs import input_of

START_TIME = 1_700_000_000_000_000
"""Where a scenario's time 0 lies."""

DECISION_INDENT = "    "

PART_INDENT = "  "

HIDDEN = {
    "sequence",
    "time",
    "step",
    "address",
    "principal",
    "labels",
    "attributes",
    "traceparent",
    "contract_digest",
    "key",
}


def value_text(name: str, value: object, run: Run) -> str:
    """Writes the value of an event's field."""
    if isinstance(value, Failure):
        unknown = " outcome_unknown" if value.outcome_unknown else ""
        step = f" step={value.step}" if value.step else ""
        return f"{value.code.name}/{value.reason}/{value.origin.name}{unknown}{step} {value.message!r}"
    if isinstance(value, Payload):
        return value.data.decode()
    if isinstance(value, Target):
        return value.method
    if name in ("branch", "parent") and isinstance(value, int):
        return run.steps[value].spec.id
    if name in ("steps", "awaited", "reset") and isinstance(value, tuple):
        return ",".join(one if isinstance(one, str) else run.steps[one].spec.id for one in value) or "none"
    if name.endswith("_time") and isinstance(value, int):
        return duration_text(value - START_TIME)
    if name == "request_hash":
        return str(value)[:8]
    if is_dataclass(value):
        inner = " ".join(
            f"{item.name}={value_text(item.name, getattr(value, item.name), run)}" for item in fields(value)
        )
        return type(value).__name__ + (f"({inner})" if inner else "")
    return getattr(value, "name", None) or str(value)


def event_text(event: Event, run: Run) -> str:
    """Writes an event in one line: its sequence, time, kind and step, then what it holds."""
    parts = [str(event.sequence), duration_text(event.time - START_TIME), type(event).__name__]
    step = getattr(event, "step", None)
    if step is not None:
        parts.append(run.steps[step].spec.id)
    for item in fields(event):
        value = getattr(event, item.name)
        if item.name in HIDDEN or value in (None, "", item.default):
            continue
        if isinstance(event, StepDelegated) and (value is False or value is Delivery.AT_LEAST_ONCE):
            continue
        if item.name != "request_id" or isinstance(event, SignalReceived):
            parts.append(f"{item.name}={value_text(item.name, value, run)}")
    return " ".join(parts)


def decision_lines(decision: Decision, run: Run) -> Iterator[str]:
    """Writes a decision, and how the run stands where the decision changed anything."""
    names = [step.spec.id for step in run.steps]
    for event in decision.events:
        yield event_text(event, run)
    if decision.queued:
        yield "queued: " + " ".join(names[index] for index in decision.queued)
    if decision.waiting:
        yield "waiting: " + " ".join(names[index] for index in decision.waiting)
    if decision.cancelled:
        yield "cancelled: " + " ".join(f"{names[index]}/{attempt}" for index, attempt in decision.cancelled)
    if decision.events:
        yield f"{run.state.name}: " + " ".join(f"{names[i]}={step.state.name}" for i, step in enumerate(run.steps))
    elif not decision.queued and not decision.waiting and not decision.cancelled:
        yield "nothing"


class Player:
    """Plays the inputs of a scenario on one run, which `resume` rebuilds from its events."""

    def __init__(self, script: Script) -> None:
        self.run = Run(script.graph())
        self.conditions = FixedConditions(script.answers, self.run)
        self.events: list[Event] = []

    def play(self, words: list[str]) -> Iterator[str]:
        """Gives one input and writes what is decided."""
        now = START_TIME + duration_us(words[0])
        given = input_of(self.run, words[1], words[2:], now)
        if isinstance(given, inputs.Resumption):
            rebuilt = replay(self.run.graph, self.events)
            assert contents(rebuilt) == contents(self.run)
            self.run = self.conditions.run = rebuilt
        decision = decide(self.run, given, now, self.conditions)
        self.events.extend(decision.events)
        yield from decision_lines(decision, self.run)


def play(text: str, limit_events: Callable[[int], None]) -> str:
    """Plays a scenario and returns it with the decisions that were given. `limit_events` lowers the limit of events."""
    script, player = Script(), None
    lines: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if line.startswith(DECISION_INDENT):
            continue
        lines.append(line)
        if not words or line.startswith("#"):
            continue
        if line.startswith(PART_INDENT):
            add_to_step(script, words)
        elif words[0] == "step":
            add_step(script, words[1:])
        elif words[0] == "output":
            script.answers.output = {"none": None, "failure": EVALUATION_FAILED}[words[1]]
        elif words[0] == "limit_events":
            limit_events(int(words[1]))
        else:
            player = player or Player(script)
            lines.extend(DECISION_INDENT + decided for decided in player.play(words))
    return "\n".join(lines) + "\n"
