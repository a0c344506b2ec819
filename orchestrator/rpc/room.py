"""Room for requests: how many bytes of them are served at once. What is above is refused before it is read.

A request is held from here to its answer, whatever it waits for: the database, its worker, the end of a run.
"""

from __future__ import annotations

from orchestrator.domain.errors import TooManyRequests

REQUESTS_LIMIT_BYTES = 64 << 20
"""Bytes of the requests that are served at once, where nothing else is set."""

SMALL_REQUEST_BYTES = 4096
"""Requests up to this size are not counted: the number of calls bounds them, and who cancels, looks or gives a sign of
life is not to be refused because others send much."""


class RequestRoom:
    """Counts the requests that are being served, by their bytes."""

    def __init__(self, limit_bytes: int = REQUESTS_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self.taken_bytes = 0

    def take(self, size: int) -> int:
        """Takes room for a request of `size` bytes; returns what is to be given back. Errors: TooManyRequests."""
        if size <= SMALL_REQUEST_BYTES:
            return 0
        # One that is alone is taken whatever its size: its own limit is another.
        if self.taken_bytes and self.taken_bytes + size > self._limit_bytes:
            raise TooManyRequests(
                f"requests of {self.taken_bytes} bytes are being served; the replica takes {self._limit_bytes} at once",
                metadata={"limit": str(self._limit_bytes)},
                retry_delay_seconds=0.5,
            )
        self.taken_bytes += size
        return size

    def give(self, size: int) -> None:
        """Gives room back."""
        self.taken_bytes -= size
