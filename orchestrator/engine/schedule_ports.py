"""The seam between the engine and the world, as far as schedules go; the rest of it is in `ports.py`.

Values here are plain; instants are microseconds since the Unix epoch (`..._time`). What may not enter: drivers, grpc,
SQL, generated messages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from orchestrator.domain.ids import RunKey


class ScheduleKey(NamedTuple):
    """Identifies a schedule."""

    namespace: str
    schedule: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a schedule is paused, why, and by whom."""

    time: int
    note: str
    principal: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a firing started no run."""

    fire_time: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a schedule has come. `next_time` is its first firing that is not dealt with, None where none is left;
    `waiting_time` the firing that waits for the schedule's runs to end."""

    next_time: int | None
    waiting_time: int | None = None
    fired_count: int = 0
    skipped_count: int = 0
    missed_count: int = 0
    refused_count: int = 0
    refusal: Refusal | None = None

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many firings were dealt with, in each of the four ways."""
        return self.fired_count, self.skipped_count, self.missed_count, self.refused_count


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A stored schedule; `definition` is a serialized baton.v1.Schedule without `run.input`, `input` is that.

    `due_time` is when a replica looks at it next, None while it does not fire. `version` rises with every change.
    """

    key: ScheduleKey
    definition: bytes
    input: bytes
    principal: str
    create_time: int
    update_time: int
    version: int
    progress: Progress
    due_time: int | None
    pause: Pause | None = None


class Claim(NamedTuple):
    """One claim on a schedule: whose it is, and until when; that tells it from a later one of the same replica."""

    replica_id: UUID
    expire_time: int


@dataclass(frozen=True, slots=True)
class ClaimedSchedule:
    """A schedule that a replica deals with. `doubtful`: who claimed it before did not say how far it came."""

    row: ScheduleRow
    doubtful: bool
    claim: Claim


@dataclass(frozen=True, slots=True)
class ScheduleRunRow:
    """A run of a schedule; `state` is its number in domain.states, `submitted` the stored header of its first event."""

    run_id: UUID
    fire_time: int
    triggered: bool
    state: int
    submitted: bytes


class ScheduleStore(Protocol):
    """Keeps schedules and the runs that they started. Every method may raise DatabaseUnavailable."""

    async def get(self, key: ScheduleKey) -> ScheduleRow | None:
        """Reads one schedule."""
        ...

    async def list_schedules(self, namespace: str, after: str, limit: int) -> list[ScheduleRow]:
        """Lists schedules with names above `after`, by name, without their inputs."""
        ...

    async def count(self, namespace: str, limit: int) -> int:
        """Counts schedules, up to `limit`."""
        ...

    async def insert(self, row: ScheduleRow) -> bool:
        """Stores a new schedule; False where the name has one. `row.version` is 1."""
        ...

    async def update(self, row: ScheduleRow, *, release: Claim | None = None) -> bool:
        """Changes a schedule that still has `row.version` and `row.create_time`, and raises its version; False where
        another was first. `release` gives up that claim on it; False where it does not stand any more."""
        ...

    async def delete(self, key: ScheduleKey) -> ScheduleRow | None:
        """Deletes a schedule with its list of runs; answers it as it was."""
        ...

    async def claim(
        self, replica_id: UUID, now: int, limit: int, claim_seconds: float, but_of: Collection[str] = ()
    ) -> list[ClaimedSchedule]:
        """Claims at most `limit` schedules that are due, for `claim_seconds` or as long as the replica's lease lasts;
        the longest due, but none of the namespaces `but_of`.

        Claims of this replica itself are given again: it asks when it is done with what it had.
        """
        ...

    async def next_due_time(self, now: int) -> int | None:
        """Tells when the next schedule is due after `now`."""
        ...

    async def add_run(self, key: ScheduleKey, run_id: UUID, fire_time: int, *, triggered: bool) -> None:
        """Notes a run of a schedule, unless that is gone, and forgets old ones that have ended."""
        ...

    async def list_runs(self, key: ScheduleKey, limit: int) -> list[ScheduleRunRow]:
        """Lists the runs noted, newest first."""
        ...

    async def list_unfinished(self, key: ScheduleKey, limit: int) -> list[UUID]:
        """Lists the runs noted that have not ended."""
        ...

    async def ask_cancel(self, key: ScheduleKey, run_ids: Sequence[UUID]) -> None:
        """Notes that runs are to be cancelled by whichever replica drives them."""
        ...

    async def list_to_cancel(self, replica_id: UUID, limit: int) -> list[tuple[RunKey, str]]:
        """Lists runs that a replica drives and that are to be cancelled, with the names of their schedules."""
        ...
