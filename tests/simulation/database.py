"""The simulated database: what Postgres keeps of runs, events, requests and replicas, statement by statement.

Each method is one statement, which happens at one moment and whole. It does what the statement of the same name in
`postgres/queries` does; the conformance suites and a walk beside the real one (tests/conformance) hold that. Time and
everything that can go wrong on the way come from elsewhere. Small methods are safeguards that a mutant switches off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from orchestrator.domain.events import JOURNAL_FORMAT, READABLE_FORMATS
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.ports import (
    JournalRow,
    LeaseLost,
    NewRun,
    ParkedRun,
    Renewal,
    ReplicaSet,
    RunEntry,
    RunOwner,
    RunRow,
    WriteRefused,
    WriteResult,
    WriteState,
)

WRITTEN, FENCED = WriteResult(WriteState.WRITTEN), WriteResult(WriteState.FENCED)
FIRST_TRANSACTION = 1_000
PAYLOAD_LIMIT = 1 << 20
NEVER = 1 << 62
HASH_BYTES = 32
MIN_STATE, MAX_STATE = min(RunState), max(RunState)
LOOKED_AT = 8
"""Runs that `wake` looks at for each that it takes."""
NAMESPACES = 64
"""Namespaces that `adopt` shares a batch among."""


class Locked(Exception):
    """Another statement holds the row of the replica: this one waits."""


@dataclass(slots=True)
class Replica:
    """A row of `replicas`; `locks` are statements under way that hold it."""

    address: str
    lease_expire_time: int
    end_time: int | None = None
    locks: int = 0
    active_runs: int | None = None


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


class Database:
    """The tables. `now` is its clock, in microseconds since the Unix epoch."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.replicas: dict[UUID, Replica] = {}
        self.runs: dict[RunKey, Run] = {}
        self.requests: dict[tuple[str, str], tuple[UUID, bytes]] = {}
        self.transaction = FIRST_TRANSACTION
        self.generation = 1
        self.members: list[UUID] = []
        self.leave_time: int | None = None
        self.loss_time: int | None = None
        self.catalogues: dict[str, tuple[int, int]] = {}
        """Version and time of the last change, by namespace."""
        self.on_written: Callable[[UUID, RunEntry], None] = lambda _, __: None
        """Told of each entry right before it is written."""
        self.on_taken_over: Callable[[Run, int], None] = lambda _, __: None
        """Told of each run that has got an owner, and of its epoch before."""

    # --- leases

    def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        """Inserts a replica and takes it into the set."""
        now = self.now()
        self.replicas[replica_id] = Replica(address, now + round(lease_seconds * 1_000_000))
        if replica_id not in self.members:
            self.members.append(replica_id)
            self.generation += 1
        return Renewal(now, self.replicas[replica_id].lease_expire_time)

    def has_lease(self, replica_id: UUID) -> bool:
        """Whether a replica's lease goes on."""
        replica = self.replicas.get(replica_id)
        return replica is not None and replica.end_time is None and replica.lease_expire_time > self.now()

    def _wait_for(self, replica_id: UUID) -> None:
        """Lets a statement wait that locks the row of its own replica while another does. Errors: Locked."""
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.locks:
            raise Locked

    def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        """Extends a lease. Errors: LeaseLost."""
        self._wait_for(replica_id)
        if not self.has_lease(replica_id):
            raise LeaseLost
        now = self.now()
        replica = self.replicas[replica_id]
        replica.lease_expire_time = now + round(lease_seconds * 1_000_000)
        changes = {name: version for name, (version, _) in self.catalogues.items()}
        replica.active_runs = active_runs
        loads = {
            each: row.active_runs
            for each, row in self.replicas.items()
            if each in self.members and row.end_time is None and row.active_runs is not None
        }
        return Renewal(now, replica.lease_expire_time, changes, self.replica_set(), loads)

    def replica_set(self) -> ReplicaSet:
        """Reads the set of replicas."""
        members = {each: self.replicas[each].address for each in sorted(self.members) if each in self.replicas}
        return ReplicaSet(self.generation, members, self.leave_time, self.loss_time)

    def leave_set(self, replica_id: UUID) -> None:
        """Takes a replica that leaves in good order out of the set."""
        if replica_id in self.members:
            self.members.remove(replica_id)
            self.generation += 1
            self.leave_time = self.now()

    def release(self, replica_id: UUID) -> None:
        """Ends a lease at once."""
        self._wait_for(replica_id)
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.end_time is None:
            replica.end_time = self.now()
            replica.lease_expire_time = min(replica.lease_expire_time, self.now())

    def end_dead(self) -> None:
        """Marks replicas whose lease is over, but those that a statement under way holds."""
        now = self.now()
        for replica in self.replicas.values():
            if replica.end_time is None and replica.lease_expire_time <= now and not replica.locks:
                replica.end_time = now

    def leave_dead(self) -> None:
        """Takes marked replicas out of the set."""
        dead = [each for each in self.members if each in self.replicas and self.replicas[each].end_time is not None]
        if dead:
            self.members = [each for each in self.members if each not in dead]
            self.generation += 1
            self.leave_time = self.loss_time = self.now()

    def lock(self, replica_id: UUID) -> None:
        """Begins a statement under a lease, which is held until `unlock`. Errors: LeaseLost."""
        self._wait_for(replica_id)
        if not self.has_lease(replica_id):
            raise LeaseLost
        self.replicas[replica_id].locks += 1

    def unlock(self, replica_id: UUID) -> None:
        """Ends a statement under a lease."""
        self.replicas[replica_id].locks -= 1

    # --- the journal

    def write_batch(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """Writes a batch under a lease that is held. Errors: WriteRefused."""
        self.transaction += 1
        self._require_texts(entries)
        undo = self._reopen(replica_id, entries)
        begun = self._begin(replica_id, entries)
        continued = {
            position
            for position, entry in enumerate(entries)
            if position not in begun and self.is_owner(replica_id, entry)
        }
        written = begun | continued
        taken = [position for position in sorted(written) if self._stands_under(entries[position])]
        fits = all(self._fits(entries[position]) for position in written)
        if taken or not fits:
            undo()
            for position in begun:
                self._forget_run(entries[position])
            if len(entries) > 1 or not fits:
                raise WriteRefused("the database refused the batch")
            return [FENCED]
        for position in sorted(written):
            self._apply(replica_id, entries[position])
        return [WRITTEN if position in written else self._settle(entry) for position, entry in enumerate(entries)]

    @staticmethod
    def _require_texts(entries: Sequence[RunEntry]) -> None:
        """Refuses what no statement can carry, whatever becomes of it."""
        for entry in entries:
            new = entry.new
            texts = [row.step + row.payload_type for row in entry.rows]
            if new is not None:
                texts += (new.request_id, new.workspace, new.principal, new.channel, *new.labels, *new.attributes)
            if any("\0" in text or not _is_unicode(text) for text in texts) or entry.state >= 1 << 15:
                raise WriteRefused("the database refused the content of the batch")

    @staticmethod
    def _fits(entry: RunEntry) -> bool:
        """Whether the tables take an entry."""
        return (
            all(len(row.payload or b"") <= PAYLOAD_LIMIT and row.header for row in entry.rows)
            and MIN_STATE <= entry.state <= MAX_STATE
            and (entry.state in ENDED_RUN) == (entry.end_time is not None)
            and (entry.new is None or len(entry.new.body_hash) == HASH_BYTES)
        )

    def _reopen(self, replica_id: UUID, entries: Sequence[RunEntry]) -> Callable[[], None]:
        """Takes ended runs; returns what takes that back."""
        before: list[tuple[RunKey, Run]] = []
        for entry in entries:
            run, reopened = self.runs.get(entry.key), entry.reopened
            if run is None or reopened is None or run.owner is not None or run.end_time is None:
                continue
            if run.epoch != entry.epoch - 1 or run.next_sequence != entry.rows[0].sequence:
                continue
            before.append((entry.key, dataclasses.replace(run)))
            run.owner, run.epoch, run.state, run.end_time = replica_id, entry.epoch, 2, None
            run.end_transaction = run.end_replica = run.wake_time = None
            run.round = reopened.round
            run.revision = run.revision._replace(revision=reopened.revision)
            run.expire_time = reopened.expire_time
            run.journal_format = max(run.journal_format, reopened.journal_format)
        return lambda: self.runs.update(before)

    def _begin(self, replica_id: UUID, entries: Sequence[RunEntry]) -> set[int]:
        """Claims request ids and inserts new runs; returns the positions of these."""
        begun: set[int] = set()
        new_entries = [
            (entry.key.namespace, entry.new.request_id, position, entry.new)
            for position, entry in enumerate(entries)
            if entry.new is not None
        ]
        for namespace, request_id, position, new in sorted(new_entries, key=lambda one: one[:3]):
            entry = entries[position]
            if request_id and not self.claim_request(namespace, request_id, entry.key.run_id, new.body_hash):
                continue
            if entry.key in self.runs:
                continue
            ended = entry.end_time is not None
            self.runs[entry.key] = Run(
                entry.key,
                new.revision,
                new.request_id,
                entry.state,
                None if ended else replica_id,
                entry.epoch,
                1,
                new.journal_format,
                new,
                entry.start_time,
                entry.end_time,
                new.expire_time,
            )
            begun.add(position)
        return begun

    def claim_request(self, namespace: str, request_id: str, run_id: UUID, body_hash: bytes) -> bool:
        """Claims a request id for a run; False where it has one."""
        if (namespace, request_id) in self.requests:
            return False
        self.requests[namespace, request_id] = (run_id, body_hash)
        return True

    def is_owner(self, replica_id: UUID, entry: RunEntry) -> bool:
        """The fence of a run: its owner, its epoch, and the sequence that comes next."""
        run = self.runs.get(entry.key)
        if run is None:
            return False
        return (run.owner, run.epoch, run.next_sequence) == (replica_id, entry.epoch, entry.rows[0].sequence)

    def _stands_under(self, entry: RunEntry) -> bool:
        """The key of events: whether one stands under a sequence already."""
        run = self.runs[entry.key]
        sequences = {event.row.sequence for event in run.events[entry.rows[0].sequence - 1 :]}
        return any(row.sequence in sequences for row in entry.rows)

    def _forget_run(self, entry: RunEntry) -> None:
        del self.runs[entry.key]
        if entry.new is not None and entry.new.request_id:
            del self.requests[entry.key.namespace, entry.new.request_id]

    def _apply(self, replica_id: UUID, entry: RunEntry) -> None:
        self.on_written(replica_id, entry)
        run = self.runs[entry.key]
        run.next_sequence = entry.rows[-1].sequence + 1
        run.state, run.start_time, run.end_time = entry.state, entry.start_time, entry.end_time
        run.events += [StoredEvent(entry.epoch, row, replica_id) for row in entry.rows]
        if entry.end_time is not None:
            run.owner = None
            run.end_transaction, run.end_replica = self.transaction, replica_id

    def _settle(self, entry: RunEntry) -> WriteResult:
        """Finds out why an entry was not written."""
        if entry.new is not None and entry.new.request_id:
            winner = self.requests.get((entry.key.namespace, entry.new.request_id))
            if winner is not None and winner[0] != entry.key.run_id:
                return WriteResult(WriteState.REQUEST_TAKEN, winner[0], winner[1] == entry.new.body_hash)
        return WRITTEN if self.stands(entry) else FENCED

    def stands(self, entry: RunEntry) -> bool:
        """Whether what is stored is exactly what an entry wanted to write."""
        run = self.runs.get(entry.key)
        if run is None:
            return False
        first, last = entry.rows[0].sequence, entry.rows[-1].sequence
        stored = run.events[first - 1 : last]
        return all(event.epoch == entry.epoch for event in stored) and [e.row for e in stored] == list(entry.rows)

    def read_events(self, key: RunKey, after_sequence: int, limit: int, payloads: bool) -> list[JournalRow]:
        """Reads events of a run in order."""
        run = self.runs.get(key)
        if run is None:
            return []
        rows = [event.row for event in run.events[after_sequence : after_sequence + limit]]
        return rows if payloads else [row._replace(payload=None) for row in rows]

    # --- ownership

    def take_over(self, run: Run, replica_id: UUID) -> RunRow:
        """Gives a run to a replica, in another epoch."""
        epoch_before = run.epoch
        run.owner, run.epoch, run.wake_time = replica_id, self.raised(run.epoch), None
        run.journal_format = max(run.journal_format, JOURNAL_FORMAT)
        self.on_taken_over(run, epoch_before)
        return run.row()

    @staticmethod
    def raised(epoch: int) -> int:
        """The epoch after one."""
        return epoch + 1

    def adopt(self, replica_id: UUID, limit: int) -> list[RunRow]:
        """Takes over runs of marked replicas, shared among namespaces."""
        self._wait_for(replica_id)
        if not self.has_lease(replica_id):
            return []
        dead = {each for each, replica in self.replicas.items() if replica.end_time is not None}
        lost: dict[tuple[UUID, str], list[Run]] = {}
        for run in self.runs.values():
            if run.readable and run.owner is not None and run.owner in dead:
                lost.setdefault((run.owner, run.key.namespace), []).append(run)
        places = sorted(lost)[:NAMESPACES]
        share = -(-limit // len(places)) if places else 0
        chosen = [run for place in places for run in sorted(lost[place], key=lambda run: run.key.run_id)[:share]]
        return [self.take_over(run, replica_id) for run in chosen[:limit]]

    def wake(self, replica_id: UUID, limit: int, lead_seconds: float) -> list[RunRow]:
        """Takes over runs of nobody whose time comes, those that are due first, in turns among namespaces."""
        self._wait_for(replica_id)
        if not self.has_lease(replica_id):
            return []
        until = self.now() + round(lead_seconds * 1_000_000)
        due = [run for run in self.runs.values() if run.readable and run.owner is None and _wake(run) <= until]
        due = sorted(due, key=_wake)[: limit * LOOKED_AT]
        turns: dict[str, int] = {}
        ordered = []
        for run in due:
            turns[run.key.namespace] = turn = turns.get(run.key.namespace, 0) + 1
            ordered.append((turn, _wake(run), len(ordered), run))
        return [self.take_over(run, replica_id) for *_, run in sorted(ordered, key=lambda one: one[:3])[:limit]]

    def claim(self, replica_id: UUID, key: RunKey) -> RunRow | None:
        """Takes over a run of nobody or of a marked replica."""
        self._wait_for(replica_id)
        run = self.runs.get(key)
        if run is None or not run.readable or not self.has_lease(replica_id):
            return None
        owner = self.replicas.get(run.owner) if run.owner is not None else None
        if run.owner is not None and (owner is None or owner.end_time is None):
            return None
        return self.take_over(run, replica_id)

    def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """Gives runs away until their time. Errors: LeaseLost."""
        self._wait_for(replica_id)
        if not self.has_lease(replica_id):
            raise LeaseLost
        for parked in runs:
            run = self.runs.get(parked.key)
            if run is None or (run.owner, run.epoch, run.next_sequence) != (
                replica_id,
                parked.epoch,
                parked.next_sequence,
            ):
                continue
            run.owner = None
            run.wake_time = parked.wake_time if run.wake_time is None else min(run.wake_time, parked.wake_time)

    def poke(self, keys: Sequence[RunKey]) -> None:
        """Lets the time of runs come now."""
        for key in keys:
            run = self.runs.get(key)
            if run is not None and run.unfinished:
                run.wake_time = self.now() if run.wake_time is None else min(run.wake_time, self.now())

    def find_owner(self, key: RunKey) -> RunOwner | None:
        """Tells who owns a run."""
        run = self.runs.get(key)
        if run is None:
            return None
        owner = self.replicas.get(run.owner) if run.owner is not None else None
        alive = owner is not None and run.owner is not None and self.has_lease(run.owner)
        return RunOwner(run.owner, owner.address if owner is not None else "", alive, not run.unfinished)

    def list_owned(self, replica_id: UUID) -> list[RunRow]:
        """Lists unfinished runs of a replica."""
        owned = [run for run in self.runs.values() if run.owner == replica_id and run.unfinished]
        return [run.row() for run in sorted(owned, key=lambda run: run.key)]

    # --- the catalogue's version

    def raise_version(self, namespace: str) -> None:
        """Takes note of a change of a namespace's catalogue."""
        version, _ = self.catalogues.get(namespace, (0, 0))
        self.catalogues[namespace] = (version + 1, self.now())

    def unfinished(self) -> Mapping[RunKey, Run]:
        """Runs that have not ended."""
        return {key: run for key, run in self.runs.items() if run.state not in ENDED_RUN}


def _wake(run: Run) -> int:
    return run.wake_time if run.wake_time is not None else -NEVER


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
