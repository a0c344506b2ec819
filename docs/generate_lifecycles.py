"""Writes docs/lifecycles.md from the tables of orchestrator/domain/states.py: `python docs/generate_lifecycles.py`.

Every arrow comes from the tables. Only what they do not hold is written here: where a life begins, and the one
transition that has no event.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from orchestrator.domain.states import (
    ENDED_RUN,
    ENDED_STEP,
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    EventKind,
    RunState,
    StepState,
)

PAGE = Path(__file__).with_name("lifecycles.md")

OPENING = """\
# Lifecycles of runs and steps

Drawn from the tables in `orchestrator/domain/states.py` by `python docs/generate_lifecycles.py`; a test fails where
this page and the tables differ. An arrow is an event of the journal, under the name that it has in `baton.v1.RunEvent`.

## Run

`RunSubmitted` is the first event of every run, and occurs once. Events that are not drawn leave the run's state as it
is. No event follows one that ends the run, but `RunReopened`, which begins another round. A run that will not succeed
and in which there is something to take back is UNDOING until that is done.
"""

STEP_OPENING = """\
## Step

BLOCKED becomes READY **without an event of its own**: the transition is derived from the event that ends the last of
the step's predecessors. A step without predecessors is READY from `RunSubmitted` on. A step that becomes READY is
skipped in the same decision where its condition is false, or where it handles a failure that did not occur.

A step that sleeps, waits for a signal, a person or a child run, or has its items or iterations called for, is WAITING.
Steps that it adds while it does so have a life of their own: an item is BLOCKED until its turn comes, an iteration and
a delegated step begin as READY. WAITING becomes READY without an event of its own where a step has ended that a
suspended attempt waits for.

A step that ended begins anew by `StepRetried`, with those that depend on it, as long as none of them has begun: it is
BLOCKED, and READY in the same event where it waits for nothing.

`AttemptFailed` leads back to READY. With a `retry_time` the step waits for it; without one `FallbackTaken` or
`StepFailed` follows in the same decision.
"""

DERIVED = (
    (StepState.BLOCKED, StepState.READY, "derived - the last predecessor has ended, or its turn has come"),
    (StepState.WAITING, StepState.READY, "derived - a step that a suspended attempt waits for has ended"),
)

State = TypeVar("State", RunState, StepState)


def event_name(kind: EventKind) -> str:
    """Returns the name of an event's message, such as `StepFailed`."""
    return "".join(word.capitalize() for word in kind.name.split("_"))


def arrows(transitions: Mapping[EventKind, Mapping[State, State]]) -> Iterator[tuple[State, State, str]]:
    """Gives each transition once, ordered by its states, with the names of the events that cause it."""
    names: dict[tuple[State, State], list[str]] = {}
    for kind, rule in transitions.items():
        for source, target in rule.items():
            names.setdefault((source, target), []).append(event_name(kind))
    for source, target in sorted(names):
        yield source, target, ", ".join(names[source, target])


def drawing(states: type[enum.IntEnum], begin: str, lines: Collection[str], ended: Collection[enum.IntEnum]) -> str:
    """Returns a mermaid drawing: the first of `states` begins, those in `ended` end."""
    first, *_ = states
    ends = [f"    {state.name} --> [*]" for state in sorted(ended)]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name} : {begin}", *lines, *ends, "```", ""])


def arrow_lines(found: Iterator[tuple[State, State, str]]) -> list[str]:
    """Returns the lines of a drawing for some transitions."""
    return [f"    {source.name} --> {target.name} : {label}" for source, target, label in found]


def table(found: Iterator[tuple[State, State, str]]) -> str:
    """Returns the same transitions as a table."""
    rows: list[str] = [f"| {source.name} | {target.name} | {label} |" for source, target, label in found]
    return "\n".join(["| from | to | by |", "|---|---|---|", *rows, ""])


def page() -> str:
    """Returns the whole page."""
    begin = event_name(EventKind.RUN_SUBMITTED)
    run_lines = arrow_lines(arrows(RUN_TRANSITIONS))
    step_lines = [*arrow_lines(iter(DERIVED)), *arrow_lines(arrows(STEP_TRANSITIONS))]
    return "\n".join(
        [
            OPENING,
            drawing(RunState, begin, run_lines, ENDED_RUN),
            table(arrows(RUN_TRANSITIONS)),
            STEP_OPENING,
            drawing(StepState, begin, step_lines, ENDED_STEP),
            table(arrows(STEP_TRANSITIONS)),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page().rstrip("\n") + "\n")
