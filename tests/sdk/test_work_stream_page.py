"""The page docs/work-stream.md shows the worker's tables of states as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

from baton.worker.states import (
    ASSIGNMENT_TRANSITIONS,
    SESSION_TRANSITIONS,
    STREAM_TRANSITIONS,
    AssignmentEvent,
    SessionEvent,
    StreamEvent,
)

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_tables() -> None:
    generator = runpy.run_path(str(DOCS / "generate_work_stream.py"))
    text = (DOCS / "work-stream.md").read_text()
    assert generator["page"](text) == text, "run: python docs/generate_work_stream.py"
    for name in generator["MACHINES"]:
        assert generator["drawing"](name) in text


def test_every_event_has_its_transitions() -> None:
    assert set(STREAM_TRANSITIONS) == set(StreamEvent)
    assert set(SESSION_TRANSITIONS) == set(SessionEvent)
    assert set(ASSIGNMENT_TRANSITIONS) == set(AssignmentEvent)
