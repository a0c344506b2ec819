"""Reads and plays a scenario: lines that build a graph, lines that give inputs, and indented lines with decisions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from orchestrator.domain import inputs
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.plan import Decision, decide
from orchestrator.domain.run import Run
from orchestrator.domain.workflow import Delivery, FailureBranch, FailureMatch, Graph, RetryPolicy, Step, Target

from .graphs import EVALUATION_FAILED, Answers, FixedConditions, contents, default_retryable, link, replay

START_TIME = 1_700_000_000_000_000
"""Where a scenario's time 0 lies."""

UNITS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}

DECISION_INDENT = "    "

FALLBACK_INDENT = "  "


def duration_us(text: str) -> int:
    """Reads a duration such as `1s200ms`."""
    parts = re.findall(r"(\d+)(us|ms|s|m|h)", text)
    assert parts, f"not a duration: {text!r}"
    assert "".join(number + unit for number, unit in parts) == text, f"not a duration: {text!r}"
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def duration_text(duration: int) -> str:
    """Writes a duration in the form that `duration_us` reads."""
    text = ""
    for unit, size in UNITS.items():
        count, duration = divmod(duration, size)
        text += f"{count}{unit}" if count else ""
    return text or "0us"


@dataclass
class Script:
    """What the graph lines of a scenario say."""

    steps: list[Step] = field(default_factory=list)
    after: list[list[str]] = field(default_factory=list)
    branches: list[list[tuple[FailureMatch, str]]] = field(default_factory=list)
    answers: Answers = field(default_factory=Answers)

    def index(self, name: str) -> int:
        """Returns the index of a step by its name."""
        return [step.id for step in self.steps].index(name)

    def graph(self) -> Graph:
        """Builds the graph."""
        steps = []
        for step, branches in zip(self.steps, self.branches, strict=True):
            on_failure = tuple(FailureBranch(match, self.index(name) if name else None) for match, name in branches)
            values = {item.name: getattr(step, item.name) for item in fields(Step)}
            steps.append(Step(**{**values, "on_failure": on_failure}))
        return link(steps, [[self.index(name) for name in names] for names in self.after])


def settings_of(words: list[str]) -> dict[str, str]:
    """Reads words such as `attempts=3` and flags such as `repeatable`."""
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def match_of(text: str) -> FailureMatch:
    """Reads codes and reasons such as `UNAVAILABLE,DECLINED`; `any` is every failure."""
    names = [name for name in text.split(",") if name and name != "any"]
    return FailureMatch(
        frozenset(Code[name] for name in names if name in Code.__members__),
        frozenset(name for name in names if name not in Code.__members__),
    )


def take_target(method: str, settings: dict[str, str]) -> Target:
    """Reads the settings of a target and takes them out of `settings`."""
    repeatable = settings.pop("repeatable", None) is not None
    retry = settings.pop("retry", None)
    policy = RetryPolicy(
        default_retryable(repeatable) if retry is None else match_of(retry),
        max_attempts=int(settings.pop("attempts", "3")),
        initial_backoff_us=duration_us(settings.pop("backoff", "200ms")),
        max_backoff_us=duration_us(settings.pop("max_backoff", "30s")),
        backoff_multiplier=float(settings.pop("multiplier", "2")),
        jitter=float(settings.pop("jitter", "0.2")),
    )
    timeout = take_duration(settings, "attempt_timeout")
    return Target(method, policy, repeatable, timeout, match_of(settings.pop("for", "any")))


def take_duration(settings: dict[str, str], name: str) -> int | None:
    """Takes a duration out of `settings`; None where it is not given."""
    return duration_us(settings.pop(name)) if name in settings else None


def add_step(script: Script, words: list[str]) -> None:
    """Reads a line `step NAME ...`."""
    name, settings = words[0], settings_of(words[1:])
    index = len(script.steps)
    if "when" in settings:
        answers: dict[str, bool | Failure] = {"true": True, "false": False, "failure": EVALUATION_FAILED}
        script.answers.holds[index] = answers[settings["when"]]
    script.after.append([other for other in settings.pop("after", "").split(",") if other])
    branches = [branch.partition(":") for branch in settings.pop("on_failure", "").split(";") if branch]
    script.branches.append([(match_of(match), handler) for match, _, handler in branches])
    script.steps.append(
        Step(
            index,
            name,
            (take_target(name, settings),),
            has_condition=settings.pop("when", None) is not None,
            delivery=Delivery.AT_MOST_ONCE if "at_most_once" in settings else Delivery.AT_LEAST_ONCE,
            queue_timeout_us=take_duration(settings, "queue_timeout"),
            step_timeout_us=take_duration(settings, "step_timeout"),
        )
    )
    settings.pop("at_most_once", None)
    assert not settings, f"unknown settings: {settings}"


def add_fallback(script: Script, words: list[str]) -> None:
    """Reads a line `fallback METHOD ...` under a step."""
    step, settings = script.steps[-1], settings_of(words[1:])
    values = {item.name: getattr(step, item.name) for item in fields(Step)}
    script.steps[-1] = Step(**{**values, "targets": (*step.targets, take_target(words[0], settings))})
    assert not settings, f"unknown settings: {settings}"


def input_of(script: Script, verb: str, words: list[str], now: int) -> inputs.Input:
    """Reads an input."""
    settings = settings_of([word for word in words if "=" in word])
    plain = [word for word in words if "=" not in word]
    step = script.index(plain[0]) if plain and verb not in ("submit", "cancel") else -1
    match verb:
        case "submit":
            expire_time = now + duration_us(settings.get("expire", "1h"))
            return inputs.Submission("order", "r1", expire_time, "ann", "grpc", "", (), {}, "", "q1", None)
        case "admit":
            worker = plain[1] if len(plain) > 1 else "w"
            return inputs.StepAdmitted(step, worker, f"{worker}:1")
        case "succeed":
            return inputs.CallSucceeded(step, int(plain[1]), Payload("shop.v1.Output", plain[0].encode()))
        case "fail":
            reason = plain[3] if len(plain) > 3 else plain[2]
            unknown = "outcome_unknown" in plain
            origin = Origin.TRANSPORT if unknown else Origin.WORKER
            failure = Failure(Code[plain[2]], reason, "no", origin, outcome_unknown=unknown)
            delay = duration_us(settings["delay"]) if "delay" in settings else None
            return inputs.CallFailed(step, int(plain[1]), failure, delay, float(settings.get("draw", "0")))
        case "lose":
            return inputs.CallLost(step, int(plain[1]))
        case "circuit_open":
            return inputs.CircuitOpen(step)
        case "unbuildable":
            return inputs.RequestUnbuildable(step, EVALUATION_FAILED)
        case "resume":
            return inputs.Resumption()
        case "timeout":
            return inputs.TimeoutPassed(step)
        case "run_timeout":
            return inputs.RunTimeoutPassed()
        case "cancel":
            return inputs.CancelRequest(" ".join(plain), "ann")
    raise AssertionError(f"unknown input {verb!r}")


def value_text(name: str, value: object, graph: Graph) -> str:
    """Writes the value of an event's field."""
    if isinstance(value, Failure):
        unknown = " outcome_unknown" if value.outcome_unknown else ""
        step = f" step={value.step}" if value.step else ""
        return f"{value.code.name}/{value.reason}/{value.origin.name}{unknown}{step} {value.message!r}"
    if isinstance(value, Payload):
        return value.data.decode()
    if name == "branch" and isinstance(value, int):
        return graph.steps[value].id
    if name.endswith("_time") and isinstance(value, int):
        return duration_text(value - START_TIME)
    return getattr(value, "name", None) or str(value)


def event_text(event: Event, graph: Graph) -> str:
    """Writes an event in one line: its sequence, time, kind and step, then what it holds."""
    parts = [str(event.sequence), duration_text(event.time - START_TIME), type(event).__name__]
    step = getattr(event, "step", None)
    if step is not None:
        parts.append(graph.steps[step].id)
    hidden = {"sequence", "time", "step", "address", "principal", "labels", "attributes", "traceparent", "request_id"}
    for item in fields(event):
        value = getattr(event, item.name)
        if item.name not in hidden and value is not None and value != "" and value != item.default:
            parts.append(f"{item.name}={value_text(item.name, value, graph)}")
    return " ".join(parts)


def decision_lines(decision: Decision, run: Run) -> Iterator[str]:
    """Writes a decision, and how the run stands where the decision changed anything."""
    steps = run.graph.steps
    for event in decision.events:
        yield event_text(event, run.graph)
    if decision.queued:
        yield "queued: " + " ".join(steps[index].id for index in decision.queued)
    if decision.cancelled:
        yield "cancelled: " + " ".join(f"{steps[index].id}/{attempt}" for index, attempt in decision.cancelled)
    if decision.events:
        yield f"{run.state.name}: " + " ".join(f"{steps[i].id}={step.state.name}" for i, step in enumerate(run.steps))
    elif not decision.queued and not decision.cancelled:
        yield "nothing"


class Player:
    """Plays the inputs of a scenario on one run, which `resume` rebuilds from its events."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.run = Run(script.graph())
        self.conditions = FixedConditions(script.answers, self.run)
        self.events: list[Event] = []

    def play(self, words: list[str]) -> Iterator[str]:
        """Gives one input and writes what is decided."""
        now = START_TIME + duration_us(words[0])
        given = input_of(self.script, words[1], words[2:], now)
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
        if line.startswith(FALLBACK_INDENT):
            assert words[0] == "fallback", f"not a fallback: {line!r}"
            add_fallback(script, words[1:])
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
