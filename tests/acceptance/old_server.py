"""`baton`, as a version before would be: it writes and reads journals of format 1 alone, and knows none of the events
that came with format 2."""

from __future__ import annotations

from orchestrator.domain import events
from orchestrator.domain.run import Run
from orchestrator.domain.states import EventKind
from orchestrator.engine import codec
from orchestrator.engine.ports import JournalRow

_decode = codec.decode


def decode(row: JournalRow, run: Run) -> events.Event:
    if row.kind >= EventKind.STEP_WAITING:
        raise codec.UnknownEvent(f"event kind {row.kind}")
    return _decode(row, run)


# Before anything else takes them from there.
events.JOURNAL_FORMAT = 1
events.READABLE_FORMATS = frozenset({1})
codec.decode = decode

if __name__ == "__main__":
    from baton.cli import main

    main()
