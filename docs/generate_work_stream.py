"""Writes the drawings of docs/work-stream.md from the SDK's tables of states: `python docs/generate_work_stream.py`.

The text of the page is written by hand; what stands between a `<!-- states: NAME -->` and its `<!-- end -->` comes from
the tables in sdk/python/baton/worker/states.py.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.worker.states import (
    ASSIGNMENT_TRANSITIONS,
    SESSION_TRANSITIONS,
    STREAM_TRANSITIONS,
    AssignmentState,
    SessionState,
    StreamState,
)

PAGE = Path(__file__).with_name("work-stream.md")

MACHINES: Mapping[str, tuple[type[enum.IntEnum], Mapping[Any, Mapping[Any, Any]], str]] = {
    "stream": (StreamState, STREAM_TRANSITIONS, "BatonOpeningArrived"),
    "session": (SessionState, SESSION_TRANSITIONS, "FirstStreamOpened"),
    "assignment": (AssignmentState, ASSIGNMENT_TRANSITIONS, "AssignmentArrived"),
}
"""Name -> states, transitions, and what begins a life. Each ends in its last state."""

_PLACE = re.compile(r"(<!-- states: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def event_name(event: enum.IntEnum) -> str:
    """Returns the name of an event as the drawings have it, such as `StreamEnded`."""
    return "".join(word.capitalize() for word in event.name.split("_"))


def drawing(name: str) -> str:
    """Returns the mermaid drawing of one machine."""
    states, transitions, begin = MACHINES[name]
    labels: dict[tuple[Any, Any], list[str]] = {}
    for event, rule in transitions.items():
        for source, target in rule.items():
            labels.setdefault((source, target), []).append(event_name(event))
    first, *_, last = states
    moves = sorted(labels.items())
    arrows = [f"    {source.name} --> {target.name} : {', '.join(names)}" for (source, target), names in moves]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name} : {begin}", *arrows]
    return "\n".join([*lines, f"    {last.name} --> [*]", "```", ""])


def page(text: str) -> str:
    """Returns the page with its drawings as the tables have them."""
    return _PLACE.sub(lambda found: found[1] + drawing(found[2]) + found[3], text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
