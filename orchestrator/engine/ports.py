"""The seam between the engine and the world: what it needs of Postgres and of clocks; more is in `*_ports.py`.

Values here are plain; instants are microseconds since the Unix epoch (`..._time`). Each port has a conformance suite
that runs on every implementation. What may not enter: drivers, grpc, SQL, generated messages.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from uuid import UUID

from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.values import value

# --- journal ---------------------------------------------------------------------------------------------------------


class JournalRow(NamedTuple):
    """One event as stored: `header` is a serialized baton.v1.RunEvent without its payload.

    A tuple, so that a store can hand it to its driver as it is.
    """

    sequence: int
    kind: int
    step: str
    attempt: int
    event_time: int
    header: bytes
    payload: bytes | None = None
    payload_type: str = ""


@value
class NewRun:
    """What a submission stores beside its first event. `body_hash` is 32 bytes; no request_id means no claim to one."""

    revision: RevisionKey
    request_id: str
    body_hash: bytes
    principal: str
    channel: str
    workspace: str
    labels: tuple[str, ...]
    attributes: Mapping[str, str]
    create_time: int
    expire_time: int
    journal_format: int
    client_id: str = ""


@value
class ReopenedRun:
    """What changes in the row of an ended run that goes on in another round."""

    round: int
    revision: str
    expire_time: int
    journal_format: int


@value
class RunEntry:
    """Events of one run that become durable together, under the fence of its owner and epoch.

    `rows` have dense sequences and stay as they are. `state`, `start_time` and `end_time` are those of the run after
    them (domain.states). With `new` the run's rows are inserted; with `reopened` the run must have ended in the epoch
    before this one, and the writing replica becomes its owner; with neither it must be its owner in this epoch.
    """

    key: RunKey
    epoch: int
    rows: Sequence[JournalRow]
    state: int
    start_time: int | None
    end_time: int | None
    new: NewRun | None = None
    reopened: ReopenedRun | None = None


class WriteState(enum.Enum):
    """What became of a RunEntry."""

    WRITTEN = "written"
    """Durable now, or found durable and identical after an ambiguous commit."""
    FENCED = "fenced"
    """Not written: the run has another owner, another epoch, or other events under these sequences."""
    REQUEST_TAKEN = "request_taken"
    """Not written: the request_id belongs to the run `winner`."""


@value
class WriteResult:
    """Answer for one RunEntry, in the order of the batch."""

    state: WriteState
    winner: UUID | None = None
    same_body: bool = False


class WriteRefused(Exception):
    """The database refused the batch for its content (not for being away); nothing of it was written."""


class LeaseLost(Exception):
    """The replica was marked as dead, as its lease was over: nothing was written, and it must forget every run."""


READ_LIMIT_BYTES = 4 << 20
"""Bytes of rows with their payloads after which a read of a journal ends, where nothing else is asked for."""


class JournalReader(Protocol):
    """Reads the journal of a run."""

    async def read(
        self, key: RunKey, after_sequence: int, limit: int, payloads: bool, limit_bytes: int = READ_LIMIT_BYTES
    ) -> Sequence[JournalRow]:
        """Reads at most `limit` rows with a sequence above `after_sequence`, in order, and none after those that have
        more than `limit_bytes` together (`codec.total_bytes`). Without `payloads` rows have none."""
        ...


class JournalStore(JournalReader, Protocol):
    """Writes and reads the journal."""

    async def write(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """Makes `entries` durable in one statement and one commit.

        At most one entry a run. Errors: DatabaseUnavailable (it is not known whether the batch was written, or the
        lease is over and may be renewed; writing the identical batch again is safe and tells), WriteRefused, LeaseLost.
        """
        ...

    async def read_first(
        self, keys: Sequence[RunKey], limit: int, limit_bytes: int
    ) -> Mapping[RunKey, Sequence[JournalRow]]:
        """Reads the first rows of several runs in one statement, with payloads: at most `limit` of each, and of the
        last ones none where there would be more payloads than `limit_bytes`."""
        ...

    async def read_one_of_each(
        self, namespace: str, places: Sequence[tuple[UUID, int]], limit_bytes: int
    ) -> Mapping[UUID, JournalRow]:
        """Reads one row of each of several runs of a namespace in one statement, by run and sequence, without payloads;
        of the last ones none where there would be more headers than `limit_bytes`."""
        ...

    async def read_payloads(self, key: RunKey, sequences: Sequence[int], limit_bytes: int) -> Mapping[int, bytes]:
        """Reads the payloads of some rows of a run, in this order, and none after those that have more than
        `limit_bytes` together."""
        ...


# --- runs and ownership ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of `runs`."""

    key: RunKey
    revision: RevisionKey
    state: int
    epoch: int
    next_sequence: int
    journal_format: int
    round: int
    principal: str
    channel: str
    workspace: str
    labels: tuple[str, ...]
    attributes: Mapping[str, str]
    create_time: int
    start_time: int | None
    end_time: int | None
    expire_time: int
    client_id: str = ""
    handed_over: bool = False
    """Of one that was just taken over from another replica: whether that one was stopped in good order."""


class Comparison(enum.Enum):
    """Operators of a run filter; HAS is membership in `labels`."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    HAS = ":"


@dataclass(frozen=True, slots=True)
class FilterTerm:
    """One term of a filter: `field` is workflow, revision, state, principal, channel, client_id, workspace, labels,
    create_time, end_time, or `attributes.KEY`; `value` a text, a state number or an instant as the field needs."""

    field: str
    comparison: Comparison
    value: str | int


@dataclass(frozen=True, slots=True)
class EndedPage:
    """Runs that ended after some position, and the position after them; `more` where there may be others by now."""

    rows: Sequence[RunRow]
    position: str
    more: bool


@dataclass(frozen=True, slots=True)
class UnfinishedRuns:
    """How many runs of each revision have not ended, and how many revisions have such runs in all."""

    by_revision: Mapping[RevisionKey, int]
    revisions: int


class RunStore(Protocol):
    """Reads runs within one namespace."""

    async def get_run(self, key: RunKey) -> RunRow | None:
        """Reads one run."""
        ...

    async def list_runs(
        self, namespace: str, terms: Sequence[FilterTerm], before: UUID | None, limit: int
    ) -> list[RunRow]:
        """Lists runs that meet every term, newest first, with ids below `before`."""
        ...

    async def end_position(self) -> str:
        """Tells the position now for `list_ended`: an opaque text of digits, colons and commas."""
        ...

    async def list_ended(
        self, namespace: str, terms: Sequence[FilterTerm], position: str, limit: int, but_of: UUID | None
    ) -> EndedPage:
        """Lists runs that meet every term and whose end became durable after `position`, in the order in which that
        was written, but those whose end was written by the replica `but_of`.

        No end is left out and none comes twice while positions are followed, however long a commit took; after a page
        with more to come, some may. `limit` is exceeded rather than that one commit is split. Errors: InvalidCursor
        for a position that none is, CursorExpired for one that is not of this database.
        """
        ...

    async def find_request(self, namespace: str, request_id: str) -> tuple[UUID, bytes] | None:
        """Finds the run and the body hash of a request_id."""
        ...

    async def count_unfinished(self, namespace: str, limit: int) -> UnfinishedRuns:
        """Counts the runs that have not ended, of at most `limit` revisions, those with most of them first."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """The replicas that may hold permits of limits, and where they are reached.

    `generation` rises with every change, and names one set. A replica is in it from before it gets its first permit
    until its lease is over. `leave_time` is when one left last, `loss_time` when one did last that had not left in good
    order; None for never.
    """

    generation: int
    members: Mapping[UUID, str]
    leave_time: int | None = None
    loss_time: int | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """Answer of a lease renewal: the database's time just read, the end of the lease, namespaces whose catalogue
    changed since the last renewal, with their versions, and the replicas there are. `loads` tells how many runs each
    replica drives, of those that take more."""

    database_time: int
    lease_expire_time: int
    changed_namespaces: Mapping[str, int] = field(default_factory=dict)
    replicas: ReplicaSet | None = None
    loads: Mapping[UUID, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunOwner:
    """Who drives a run: the replica process with this id, None where nobody does. Others reach it at `address`; it is
    `alive` while its lease goes on. A run that has ended (`run_ended`) has no owner."""

    replica_id: UUID | None
    address: str
    alive: bool
    run_ended: bool


@value
class ParkedRun:
    """A run that its owner gives up until `wake_time`. `next_sequence` is that of the first event to come."""

    key: RunKey
    epoch: int
    next_sequence: int
    wake_time: int


class ReplicaStore(Protocol):
    """Leases of replicas and ownership of runs."""

    async def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        """Inserts the row of a new replica process."""
        ...

    async def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        """Extends the lease, also one that is over, until others have marked the replica. `active_runs` is how many
        runs it drives, None where it takes no more.

        Errors: LeaseLost where the replica is marked, DatabaseUnavailable.
        """
        ...

    async def release(self, replica_id: UUID) -> None:
        """Ends the lease at once in good order, so that others adopt what is left."""
        ...

    async def give_up(self, replica_id: UUID) -> None:
        """Ends the lease at once and marks the replica as lost: workers may be at its calls."""
        ...

    async def adopt(self, replica_id: UUID, limit: int, *, mark_before: int | None = None) -> list[RunRow]:
        """Takes over at most `limit` unfinished runs of marked replicas, raising each run's epoch; before that, others
        are marked whose lease is over, and was over by the time `mark_before` where that is given.

        Errors: DatabaseUnavailable (it is not known which runs were taken over, and some may be for as long as the
        statement may be under way; `list_owned` tells), LeaseLost where the database lacks the time in which the lease
        was taken.
        """
        ...

    async def wake(self, replica_id: UUID, limit: int, lead_seconds: float) -> list[RunRow]:
        """Takes over at most `limit` unfinished runs of nobody whose wake time is at most `lead_seconds` ahead, raising
        each run's epoch: those that are due first, shared among namespaces. One without a wake time is due.

        Errors: as of `adopt`.
        """
        ...

    async def claim(self, replica_id: UUID, key: RunKey) -> RunRow | None:
        """Takes one run over that nobody owns, or a replica that was seen to be dead, raising its epoch; None where
        there is none. Errors: DatabaseUnavailable (as of `adopt`)."""
        ...

    async def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """Gives runs of this replica up until their wake time, in one statement; one that it does not own in that epoch
        and up to that sequence is left alone. A run that was poked since it was taken over is due at once.

        Errors: LeaseLost, DatabaseUnavailable (it is not known which were parked; `list_owned` tells which were not).
        """
        ...

    async def poke(self, keys: Sequence[RunKey]) -> None:
        """Lets the wake time of unfinished runs come now; of one that is owned, when it is parked next. So nothing that
        happened before a run was parked is slept through. Errors: DatabaseUnavailable."""
        ...

    async def find_owner(self, key: RunKey) -> RunOwner | None:
        """Tells who drives a run; None where there is no such run. Errors: DatabaseUnavailable."""
        ...

    async def list_owned(self, replica_id: UUID) -> list[RunRow]:
        """Lists the unfinished runs that a replica owns."""
        ...


# --- keys -------------------------------------------------------------------------------------------------------------


class KeyStore(Protocol):
    """Keeps the secret that step tokens are signed with, shared by all replicas."""

    async def signing_key(self) -> bytes:
        """Reads the key, making one of 32 random bytes the first time."""
        ...


# --- time ------------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Estimates the database's clock between renewals."""

    def now(self) -> int:
        """Microseconds since the Unix epoch on the database's clock, as estimated."""
        ...

    @property
    def error_us(self) -> int:
        """How far `now` may be ahead of or behind the database's clock."""
        ...
