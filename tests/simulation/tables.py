"""The rows that the simulated database keeps of runs and their events."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from orchestrator.domain.events import READABLE_FORMATS
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.engine.ports import JournalRow, NewRun, RunRow


@dataclass(slots=True)
class StoredEvent:
    """A row of `events`, and who wrote it."""

    epoch: int
    row: JournalRow
    writer: UUID


@dataclass(slots=True)
class Run:
    """A row of `runs`, with its events."""

    key: RunKey
    revision: RevisionKey
    request_id: str
    state: int
    owner: UUID | None
    epoch: int
    next_sequence: int
    journal_format: int
    new: NewRun
    start_time: int | None
    end_time: int | None
    expire_time: int
    round: int = 1
    wake_time: int | None = None
    end_transaction: int | None = None
    end_replica: UUID | None = None
    giver: UUID | None = None
    """Who has given it up for others to take at once."""
    events: list[StoredEvent] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        """Whether it has not ended and can be taken over by this version."""
        return self.unfinished and self.journal_format in READABLE_FORMATS

    @property
    def unfinished(self) -> bool:
        return self.end_time is None

    def row(self) -> RunRow:
        """What the engine is given of it."""
        new = self.new
        return RunRow(
            self.key,
            self.revision,
            self.state,
            self.epoch,
            self.next_sequence,
            self.journal_format,
            self.round,
            new.principal,
            new.channel,
            new.workspace,
            tuple(new.labels),
            dict(new.attributes),
            new.create_time,
            self.start_time,
            self.end_time,
            self.expire_time,
            new.client_id,
        )
