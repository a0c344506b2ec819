"""Why listed runs did not succeed: rows of runs do not tell, the last events of their journals do.

What may not enter: which runs are listed, and what else is shown of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from baton.v1 import run_pb2
from google.protobuf.message import DecodeError

from orchestrator.domain.run import cancelled_failure
from orchestrator.domain.states import RunState
from orchestrator.engine.codec import to_message
from orchestrator.engine.messages import to_failure
from orchestrator.engine.ports import JournalRow, JournalStore, RunRow
from orchestrator.engine.room import ReadRoom
from orchestrator.engine.view import PAGE_LIMIT_BYTES

_LOGGER = logging.getLogger(__name__)
_UNSUCCESSFUL = (RunState.FAILED, RunState.CANCELLED)
_FAILURE_BYTES = 1 << 10
"""What the failure of a run takes, about."""


async def fill_failures(
    journal: JournalStore, room: ReadRoom, namespace: str, shown: Sequence[tuple[RunRow, run_pb2.Run]]
) -> None:
    """Adds the failures of runs of a namespace that have not succeeded to what is shown of them, as far as their
    journals can be read. Errors: DatabaseUnavailable, TooManyReads."""
    unsuccessful = {row.key.run_id: (row, message) for row, message in shown if row.state in _UNSUCCESSFUL}
    if not unsuccessful:
        return
    places = [(run_id, row.next_sequence - 1) for run_id, (row, _) in unsuccessful.items()]
    async with room.lend(len(places) * _FAILURE_BYTES):
        ends = await journal.read_one_of_each(namespace, places, PAGE_LIMIT_BYTES)
        for run_id, end in ends.items():
            _fill(unsuccessful[run_id][1], end)


def _fill(message: run_pb2.Run, end: JournalRow) -> None:
    try:
        event = to_message(end, payloads=False)
    except DecodeError:
        _LOGGER.error("run %s: its last event cannot be read", message.run_id)
        return
    if event.HasField("run_failed"):
        message.failure.CopyFrom(event.run_failed.failure)
    elif event.HasField("run_cancelled"):
        message.failure.CopyFrom(to_failure(cancelled_failure(event.run_cancelled.reason)))
