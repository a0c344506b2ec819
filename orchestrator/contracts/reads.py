"""Reads: which step's output, state or failure a binding or condition reads, and where it is known to be there.

What steps are known to have ended as is kept as `Facts`: for each step a mask of the EndStates it can have. An
impossible combination is None. No graph is walked here; see graph.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.contracts.scope import EndState

ANY_STATE = EndState.SUCCEEDED | EndState.FAILED | EndState.SKIPPED

Facts = Mapping[int, int] | None
"""Masks of possible EndStates by step; a step that is not named can have any. None: nothing can be so."""

NO_FACTS: Facts = {}


def both(first: Facts, second: Facts) -> Facts:
    """Returns what holds where both hold."""
    if first is None or second is None:
        return None
    if not first or not second:
        return first or second
    merged = dict(first)
    for step, mask in second.items():
        known = merged.get(step, ANY_STATE) & mask
        if not known:
            return None
        merged[step] = known
    return merged


def either(first: Facts, second: Facts) -> Facts:
    """Returns what holds where at least one of them holds."""
    if first is None:
        return second
    if second is None:
        return first
    merged = {}
    for step, mask in first.items():
        known = mask | second.get(step, ANY_STATE)
        if known != ANY_STATE:
            merged[step] = known
    return merged


@dataclass(frozen=True, slots=True)
class Read:
    """One read of a step. `kind` is that of paths.Source; `facts` is what the place of the read guarantees."""

    step: int
    kind: str
    text: str
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """A binding or condition that reads steps: where it stands, and whether a default covers missing outputs."""

    path: str
    reads: tuple[Read, ...]
    has_default: bool = False


def surely_succeeded(read: Read, possible: Sequence[int]) -> bool:
    """Tells whether the place of the read guarantees that the step read has succeeded.

    `possible` are the masks of states that each step can have at all while the run goes on.
    """
    if possible[read.step] == EndState.SUCCEEDED or read.facts is None:
        return True
    return (read.facts.get(read.step, ANY_STATE) & possible[read.step]) in (
        EndState.SUCCEEDED,
        0,
    )
