"""Which history of the database this process goes by: what a standby lacked when it took over never was.

A fence compares a replica's memory with rows, and finds what the rows lack. It cannot find that both went on apart and
came to the same numbers, nor what else is remembered: catalogues, ends that were told, who shares limits. So a lease
holds in the history alone that it was taken in. A connection belongs to one history for as long as it stands, and is
asked once, when it is made.
"""

from __future__ import annotations

import logging
import threading
from uuid import UUID

_LOGGER = logging.getLogger(__name__)


class History:
    """Follows the histories that connections lead to, and in which one leases were taken. One object for all pools of a
    process, on whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.name: str | None = None
        """Of the newest connection, as the database names it; None where none was made, or it does not tell."""
        self._number = 0
        self._lease: tuple[UUID, int] | None = None

    def led_to(self, name: str) -> bool:
        """Takes note of the history that a new connection leads to; tells whether it is another than before."""
        with self._lock:
            before, self.name = self.name, name
            if before is None or before == name:
                return False
            self._number += 1
        _LOGGER.warning(
            "the database has another history: a standby took over, or a backup was restored; leases are taken anew",
            extra={"before": before, "now": name},
        )
        return True

    def begin_lease(self, replica_id: UUID) -> None:
        """Takes note that the lease of a replica, the only one of this process, was taken in the history of now."""
        with self._lock:
            self._lease = replica_id, self._number

    def holds_lease(self, replica_id: UUID) -> bool:
        """Tells whether a lease may go on: False where it was taken in another history."""
        with self._lock:
            return self._lease is None or self._lease[0] != replica_id or self._lease[1] == self._number
