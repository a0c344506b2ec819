"""The steps of a run as a tree: each below the step that it belongs to, and the many of one kind folded into a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.v1 import run_pb2

SHOWN_LIMIT = 20
"""Steps below one step that are shown; of more, some are, and the others are counted."""

_TELLING = (
    run_pb2.STEP_STATE_FAILED,
    run_pb2.STEP_STATE_RUNNING,
    run_pb2.STEP_STATE_WAITING,
    run_pb2.STEP_STATE_READY,
)
"""States of the steps that are shown first where not all are."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree: a step, `depth` levels below a step of the workflow."""

    step: run_pb2.RunStep
    depth: int

    @property
    def name(self) -> str:
        """Id of the step; below another one, what is its own of it."""
        return self.step.step.rpartition("/")[2] if self.depth else self.step.step


@dataclass(frozen=True, slots=True)
class Folded:
    """One line for steps that are not shown: how many in which state."""

    states: Counter[int]
    depth: int

    def __str__(self) -> str:
        names = run_pb2.StepState.Name
        told = ", ".join(
            f"{count:,} {names(state).removeprefix('STEP_STATE_')}"  # type: ignore[arg-type]
            for state, count in sorted(self.states.items())
        )
        return f"{self.states.total():,} more: {told}"


def tree(steps: Sequence[run_pb2.RunStep], shown_limit: int = SHOWN_LIMIT) -> Iterator[Branch | Folded]:
    """Yields the lines of the tree: each step, then those that belong to it. Steps whose own is not among them stand by
    themselves."""
    known = {step.step for step in steps}
    children: dict[str, list[run_pb2.RunStep]] = {}
    for step in steps:
        children.setdefault(step.parent if step.parent in known else "", []).append(step)
    waiting: list[Iterator[Branch | Folded]] = [_level(children.get("", []), 0, len(steps))]
    while waiting:
        line = next(waiting[-1], None)
        if line is None:
            waiting.pop()
            continue
        yield line
        if isinstance(line, Branch) and line.step.step in children:
            waiting.append(_level(children[line.step.step], line.depth + 1, shown_limit))


def _level(steps: list[run_pb2.RunStep], depth: int, limit: int) -> Iterator[Branch | Folded]:
    shown = steps if len(steps) <= limit else _most_telling(steps, limit)
    for step in shown:
        yield Branch(step, depth)
    if len(shown) < len(steps):
        states: Counter[int] = Counter(step.state for step in steps)
        states.subtract(step.state for step in shown)
        yield Folded(+states, depth)


def _most_telling(steps: list[run_pb2.RunStep], limit: int) -> list[run_pb2.RunStep]:
    """Chooses those that say most about how things stand, in their order."""
    ranks = {state: rank for rank, state in enumerate(_TELLING)}
    by_rank = sorted(range(len(steps)), key=lambda place: (ranks.get(steps[place].state, len(ranks)), place))
    return [steps[place] for place in sorted(by_rank[:limit])]
