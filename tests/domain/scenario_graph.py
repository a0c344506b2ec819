"""Reads the lines of a scenario that build its graph and answer its conditions. scenarios/README.md tells how."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TypeVar

from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure
from orchestrator.domain.workflow import (
    Approval,
    Delivery,
    FailureBranch,
    FailureMatch,
    Graph,
    Map,
    Repeat,
    RetryPolicy,
    Signal,
    Step,
    StepKind,
    Target,
    Undo,
)

from .graphs import EVALUATION_FAILED, Answers, default_retryable, link

UNITS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}

Settings = dict[str, str]

Answer = TypeVar("Answer", bool, int, Payload)


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
            steps.append(replace(step, on_failure=on_failure))
        return link(steps, [[self.index(name) for name in names] for names in self.after])


def settings_of(words: list[str]) -> Settings:
    """Reads words such as `attempts=3` and flags such as `repeatable`."""
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def match_of(text: str) -> FailureMatch:
    """Reads codes and reasons such as `UNAVAILABLE,DECLINED`; `any` is every failure."""
    names = [name for name in text.split(",") if name and name != "any"]
    return FailureMatch(
        frozenset(Code[name] for name in names if name in Code.__members__),
        frozenset(name for name in names if name not in Code.__members__),
    )


def take_target(method: str, settings: Settings) -> Target:
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


def take_duration(settings: Settings, name: str) -> int | None:
    """Takes a duration out of `settings`; None where it is not given."""
    return duration_us(settings.pop(name)) if name in settings else None


def take_delivery(settings: Settings) -> Delivery:
    """Takes the flag `at_most_once` out of `settings`."""
    return Delivery.AT_LEAST_ONCE if settings.pop("at_most_once", None) is None else Delivery.AT_MOST_ONCE


def add_step(script: Script, words: list[str]) -> None:
    """Reads a line `step NAME ...`."""
    name, settings = words[0], settings_of(words[1:])
    index, answers = len(script.steps), script.answers
    script.after.append([other for other in settings.pop("after", "").split(",") if other])
    branches = [branch.partition(":") for branch in settings.pop("on_failure", "").split(";") if branch]
    script.branches.append([(match_of(match), handler) for match, _, handler in branches])
    step = Step(
        index,
        name,
        (),
        has_condition="when" in settings,
        delivery=take_delivery(settings),
        queue_timeout_us=take_duration(settings, "queue_timeout"),
        step_timeout_us=take_duration(settings, "step_timeout"),
        kind=StepKind.CALL,
    )
    if "when" in settings:
        conditions: dict[str, bool | Failure] = {"true": True, "false": False, "failure": EVALUATION_FAILED}
        answers.holds[index] = conditions[settings.pop("when")]
    if "sleep" in settings:
        step = replace(step, kind=StepKind.SLEEP)
        text = settings.pop("sleep")
        answers.sleeps_us[index] = EVALUATION_FAILED if text == "failure" else duration_us(text)
    elif "signal" in settings:
        signal = Signal(settings.pop("signal"), take_duration(settings, "signal_timeout"))
        step = replace(step, kind=StepKind.SIGNAL, signal=signal)
    elif "run_workflow" in settings:
        step = replace(step, kind=StepKind.RUN_WORKFLOW)
        if settings.pop("run_workflow") == "failure":
            answers.child_runs[index] = EVALUATION_FAILED
    step = _take_parts(step, settings, answers)
    if step.kind is StepKind.CALL:
        step = replace(step, targets=(take_target(name, settings),))
    script.steps.append(step)
    assert not settings, f"unknown settings: {settings}"


def _take_parts(step: Step, settings: Settings, answers: Answers) -> Step:
    if "approval" in settings:
        if settings.pop("approval") == "failure":
            answers.requests[step.index] = EVALUATION_FAILED
        step = replace(step, approval=Approval(take_duration(settings, "approval_timeout")))
    if "map" in settings:
        text = settings.pop("map")
        answers.items[step.index] = EVALUATION_FAILED if text == "failure" else int(text)
        parallel, failed = int(settings.pop("max_parallel", "10")), int(settings.pop("max_failed", "0"))
        step = replace(step, map=Map(parallel, failed))
    if "repeat" in settings:
        text = settings.pop("repeat")
        answers.done_after[step.index] = EVALUATION_FAILED if text == "failure" else int(text)
        most, interval_us = int(settings.pop("max_iterations", "10")), take_duration(settings, "interval")
        step = replace(step, repeat=Repeat(most, interval_us or 0))
    return step


def add_to_step(script: Script, words: list[str]) -> None:
    """Reads a line `fallback METHOD ...` or `undo METHOD ...` under a step."""
    step, settings = script.steps[-1], settings_of(words[2:])
    match words[0]:
        case "fallback":
            step = replace(step, targets=(*step.targets, take_target(words[1], settings)))
        case "undo":
            settings = {"attempts": "10", "retry": "any", "attempt_timeout": "1m", **settings}
            timeout_us = take_duration(settings, "undo_timeout") or UNITS["h"]
            step = replace(step, undo=Undo(take_target(words[1], settings), timeout_us))
        case _:
            raise AssertionError(f"neither a fallback nor an undo: {words}")
    script.steps[-1] = step
    assert not settings, f"unknown settings: {settings}"
