"""Violations: what is wrong with a workflow, each at an exact path. No rule lives here."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

VIOLATION_LIMIT = 100
"""Most violations that one check answers with."""

COLLECTED_LIMIT = 5_000
"""Most violations that are kept before they are sorted and cut to VIOLATION_LIMIT."""

HINT_LIMIT = 2 * VIOLATION_LIMIT
"""Most names that one check compares with the known ones."""

CANDIDATE_LIMIT = 300
"""Most known names that one wrong name is compared with."""

_STEP_PATH = re.compile(r"steps\[(\d+)\]")
_HEADS = {
    "name": 0,
    "input_type": 1,
    "output_type": 2,
    "types": 3,
    "steps": 4,
    "output": 5,
    "whole_output": 6,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault: `path` into the baton.v1.Workflow, `reason` of ErrorReason without its prefix, and a sentence."""

    path: str
    reason: str
    message: str


class EvaluationFailed(Exception):
    """A binding or a condition could not be evaluated; the text is fit for callers."""

    reason = "EVALUATION_FAILED"


@dataclass(slots=True)
class Report:
    """Collects violations and gives them in the order of the workflow."""

    _violations: dict[Violation, None] = field(default_factory=dict)

    def add(self, path: str, reason: str, message: str) -> None:
        """Adds one violation, unless it is there already; beyond COLLECTED_LIMIT they are dropped."""
        if len(self._violations) < COLLECTED_LIMIT:
            self._violations[Violation(path, reason, message)] = None

    def __bool__(self) -> bool:
        return bool(self._violations)

    def violations(self) -> tuple[Violation, ...]:
        """Returns at most VIOLATION_LIMIT violations, without repeats, in the order of the workflow."""
        return tuple(sorted(self._violations, key=_position)[:VIOLATION_LIMIT])


def _position(violation: Violation) -> tuple[int, int]:
    head = re.split(r"[.\[]", violation.path, maxsplit=1)[0]
    step = _STEP_PATH.match(violation.path)
    return _HEADS.get(head, len(_HEADS)), int(step.group(1)) if step else 0


def key_path(path: str, key: str) -> str:
    """Returns `path["key"]`, the path of a map entry."""
    return f"{path}[{json.dumps(key, ensure_ascii=False)}]"


_hints_left: ContextVar[int | None] = ContextVar("hints_left", default=None)


@contextmanager
def limited_hints() -> Iterator[None]:
    """Within it, only the first HINT_LIMIT wrong names get a hint, so that many of them stay cheap."""
    token = _hints_left.set(HINT_LIMIT)
    try:
        yield
    finally:
        _hints_left.reset(token)


_CUTOFF = 0.6
"""Likeness, of at most 1, from which on one name may be meant by another."""


def closest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean `x`?" with the known name closest to `name`, or "" where none is close."""
    return did_you_mean(nearest(name, {one: one for one in known}))


def closest_dotted(name: str, known: Iterable[str]) -> str:
    """The same for names with a package: one with the same last part, else one whose last part is close.

    A common package alone does not make two names alike.
    """
    if not hints_are_left():
        return ""
    last = name.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for one in known:
        own = one.rpartition(".")[2]
        if own == last:
            return did_you_mean(one)
        if own not in by_last or one.rpartition(".")[0] == name.rpartition(".")[0]:
            by_last[own] = one
    return did_you_mean(nearest(last, by_last))


def did_you_mean(name: str) -> str:
    """Returns the hint at a name, "" for none."""
    return f"; did you mean `{name}`?" if name else ""


def hints_are_left() -> bool:
    """Tells whether `nearest` still looks for names."""
    return _hints_left.get() != 0


def nearest(name: str, known: Mapping[str, str]) -> str:
    """Returns what stands under the key closest to `name`, upper and lower case being one; "" where none is close."""
    left = _hints_left.get()
    if left is not None:
        if left <= 0:
            return ""
        _hints_left.set(left - 1)
    candidates = [one for one in known if abs(len(one) - len(name)) <= 2 + len(name) // 2]
    if len(candidates) > CANDIDATE_LIMIT:
        same_start = [one for one in candidates if one[:2] == name[:2] and abs(len(one) - len(name)) <= 2]
        candidates = (same_start or candidates)[:CANDIDATE_LIMIT]
    folded: dict[str, str] = {}
    for one in candidates:
        if one == name:
            return known[one]
        folded.setdefault(_folded(one), one)
    found = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=_CUTOFF)
    return known[folded[found[0]]] if found else ""


def _folded(name: str) -> str:
    return name.lower().replace("_", "")
