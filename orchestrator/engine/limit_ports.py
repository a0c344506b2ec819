"""The seam between the engine and the world, as far as limits go; the rest of it is in `ports.py`.

Values here are plain; instants are microseconds since the Unix epoch (`..._time`). What may not enter: drivers, grpc,
SQL, generated messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Rate:
    """How many calls start: `count` in `per_us`, and `burst` at once."""

    count: int
    per_us: int
    burst: int

    @property
    def interval_us(self) -> float:
        """The time that the rate has for one call."""
        return self.per_us / self.count


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A stored limit. `scope` is a LimitScope; `max_in_flight` is 0 where it does not bound that."""

    namespace: str
    name: str
    scope: int
    target: str
    max_in_flight: int
    rate: Rate | None
    create_time: int
    change_time: int


class LimitStore(Protocol):
    """Keeps limits. Every change raises the namespace's catalogue version."""

    async def put_limit(self, row: LimitRow, most: int) -> LimitRow | None:
        """Stores a limit in place of the one of its name, with the database's times; None where that would make more
        than `most` in its namespace."""
        ...

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        """Lists the limits of a namespace, by name."""
        ...

    async def delete_limit(self, namespace: str, name: str) -> LimitRow | None:
        """Deletes a limit; answers it as it was."""
        ...
