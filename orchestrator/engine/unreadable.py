"""Reads of runs whose journals cannot be read: whoever asks is told so, and the log why.

What may not enter: repairs, which are the scrubber's (scrub.py), and how runs are taken over (recovery.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.domain.errors import DatabaseUnavailable, RunUnreadable, TooManyReads
from orchestrator.domain.ids import RunKey

_LOGGER = logging.getLogger(__name__)


@contextmanager
def told_if_unreadable(key: RunKey) -> Iterator[None]:
    """Around what decodes or folds the journal of a run. Errors: DatabaseUnavailable, TooManyReads; RunUnreadable in
    place of all else, whatever the reason: damage, a newer format, or a revision that no longer compiles."""
    try:
        yield
    except (DatabaseUnavailable, RunUnreadable, TooManyReads):
        raise
    except Exception as error:
        _LOGGER.error("run %s: its journal cannot be read", key.run_id, exc_info=error)
        raise RunUnreadable(
            f"the journal of run {key.run_id} cannot be read by this replica, whose log tells why; "
            "`baton replica faults` lists what is damaged and the cure",
            metadata={"run_id": str(key.run_id)},
        ) from None
