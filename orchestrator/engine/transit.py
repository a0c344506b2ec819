"""Runs on their way into the memory of this replica or out of it: who looks for one waits until it has come there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from orchestrator.domain.ids import RunKey
from orchestrator.engine.waiters import Waiters


class Transit:
    """Knows which runs are on their way. Belongs to one event loop."""

    def __init__(self) -> None:
        self._moving: dict[RunKey, Waiters] = {}

    def __contains__(self, key: RunKey) -> bool:
        return key in self._moving

    def __len__(self) -> int:
        return len(self._moving)

    @contextmanager
    def of(self, keys: Collection[RunKey]) -> Iterator[None]:
        """Says that runs are on their way; those that are already stay so until they have come there."""
        own = {key: Waiters() for key in keys if key not in self._moving}
        self._moving |= own
        try:
            yield
        finally:
            for key, waiters in own.items():
                del self._moving[key]
                waiters.wake()

    async def wait(self, key: RunKey, timeout_seconds: float) -> None:
        """Waits until a run is on no way, or until the time is over."""
        waiters = self._moving.get(key)
        if waiters is not None:
            await waiters.wait(timeout_seconds)
