"""Looks at the rows of runs that other replicas drive: one for all who wait for the same run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from orchestrator.domain.errors import RunNotFound
from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import RunRow, RunStore


async def require_row(runs: RunStore, key: RunKey) -> RunRow:
    """Reads the row of a run. Errors: RunNotFound, DatabaseUnavailable."""
    row = await runs.get_run(key)
    if row is None:
        raise RunNotFound(f"no run has the id {key.run_id}", metadata={"run_id": str(key.run_id)})
    return row


@dataclass(slots=True)
class _Look:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    row: RunRow | None = None


class Looks:
    """Reads rows at most once in `seconds` each, however many ask. Belongs to one event loop."""

    def __init__(self, runs: RunStore, seconds: float) -> None:
        self._runs, self._seconds = runs, seconds
        self._looks: dict[RunKey, _Look] = {}

    async def row(self, key: RunKey) -> RunRow:
        """Returns the row of a run as it was at most `seconds` ago. Errors: RunNotFound, DatabaseUnavailable."""
        look = self._looks.setdefault(key, _Look())
        async with look.turn:
            if look.row is None:
                try:
                    look.row = await require_row(self._runs, key)
                finally:
                    asyncio.get_running_loop().call_later(self._seconds, self._forget, key, look)
            return look.row

    def _forget(self, key: RunKey, look: _Look) -> None:
        if self._looks.get(key) is look:
            del self._looks[key]
