"""The simulated database: what Postgres keeps of runs, events, requests and replicas, statement by statement.

Each method is one statement, which happens at one moment and whole. It does what the statement of the same name in
`postgres/queries` does; the conformance suites and a walk beside the real one (tests/conformance) hold that. Time and
everything that can go wrong on the way come from elsewhere. Small methods are safeguards that a mutant switches off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from uuid import UUID

from orchestrator.domain.events import JOURNAL_FORMAT
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import ENDED_RUN, RunState
from orchestrator.engine.ports import (
    JournalRow,
    ParkedRun,
    RunEntry,
    RunOwner,
    RunRow,
    WriteRefused,
    WriteResult,
    WriteState,
)
from tests.simulation.leases import Leases
from tests.simulation.tables import Run, StoredEvent

WRITTEN, FENCED = WriteResult(WriteState.WRITTEN), WriteResult(WriteState.FENCED)
NOT_WRITTEN = {
    WriteState.WRITTEN: "commits found written",
    WriteState.FENCED: "writes fenced",
    WriteState.REQUEST_TAKEN: "requests found taken",
}
"""Why an entry was left out, as it is counted."""
FIRST_TRANSACTION = 1_000
PAYLOAD_LIMIT = 1 << 20
NEVER = 1 << 62
HASH_BYTES = 32
MIN_STATE, MAX_STATE = min(RunState), max(RunState)
LOOKED_AT = 8
"""Runs that `wake` looks at for each that it takes."""
NAMESPACES = 64
"""Namespaces that `adopt` shares a batch among."""


class Database(Leases):
    """All tables."""

    def __init__(self, now: Callable[[], int]) -> None:
        super().__init__(now)
        self.runs: dict[RunKey, Run] = {}
        self.requests: dict[tuple[str, str], tuple[UUID, bytes]] = {}
        self.transaction = FIRST_TRANSACTION
        self.on_written: Callable[[UUID, RunEntry], None] = lambda _, __: None
        """Told of each entry right before it is written."""
        self.on_taken_over: Callable[[Run, int, UUID | None, bool], None] = lambda _, __, ___, ____: None
        """Told of each run that has got an owner, of its epoch and its owner before."""

    # --- the journal

    def begin_write(self, replica_id: UUID) -> list[WriteResult | None]:
        """Begins `write_batch`: locks the replica's row. Nothing is written yet. Errors: as of `require_lease`."""
        self.lock(replica_id)
        return []

    def write_batch(self, replica_id: UUID, entries: Sequence[RunEntry]) -> list[WriteResult | None]:
        """Writes a batch under a lease that is held; None stands for what is not written. Errors: WriteRefused."""
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
        return [WRITTEN if position in written else None for position in range(len(entries))]

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
            if run is None or reopened is None or not self.has_ended_so(run, entry):
                continue
            before.append((entry.key, dataclasses.replace(run)))
            run.owner, run.epoch, run.state, run.end_time = replica_id, entry.epoch, 2, None
            run.end_transaction = run.end_replica = run.wake_time = None
            run.round = reopened.round
            run.revision = run.revision._replace(revision=reopened.revision)
            run.expire_time = reopened.expire_time
            run.journal_format = max(run.journal_format, reopened.journal_format)
        return lambda: self.runs.update(before)

    @staticmethod
    def has_ended_so(run: Run, entry: RunEntry) -> bool:
        """The fence of another round: that the run has ended, in the epoch and with the sequence that are known."""
        if run.owner is not None or run.end_time is None:
            return False
        return (run.epoch, run.next_sequence) == (entry.epoch - 1, entry.rows[0].sequence)

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

    def settle(self, entries: Sequence[RunEntry]) -> list[WriteResult]:
        """Finds out why entries were not written: another statement than that which did not."""
        results = [self._settle(entry) for entry in entries]
        for result in results:
            self.tally(NOT_WRITTEN[result.state])
        return results

    def _settle(self, entry: RunEntry) -> WriteResult:
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

    def take_over(self, run: Run, replica_id: UUID, asked: bool = False) -> RunRow:
        """Gives a run to a replica, in another epoch; `asked`: because somebody wants to do something to it."""
        epoch_before, owner_before = run.epoch, run.owner
        owner = self.replicas.get(run.owner) if run.owner is not None else None
        handed_over = owner is not None and owner.end_time is not None and owner.end_time <= owner.lease_expire_time
        giver = self.replicas.get(run.giver) if run.giver not in (None, replica_id) else None
        self.tally("runs moved for balance", giver is not None and giver.active_runs is not None)
        run.owner, run.epoch, run.wake_time, run.giver = replica_id, self.raised(run.epoch), None, None
        run.journal_format = max(run.journal_format, JOURNAL_FORMAT)
        self.on_taken_over(run, epoch_before, owner_before, asked)
        return dataclasses.replace(run.row(), handed_over=handed_over)

    @staticmethod
    def raised(epoch: int) -> int:
        """The epoch after one."""
        return epoch + 1

    def marked(self, emptied: Collection[UUID]) -> list[UUID]:
        """Tells which replicas are marked, but these."""
        return [each for each, row in self.replicas.items() if row.end_time is not None and each not in emptied]

    def emptied(self, marked: Collection[UUID]) -> list[UUID]:
        """Tells which of these replicas own nothing unfinished."""
        owners = {run.owner for run in self.runs.values() if run.unfinished}
        return [each for each in marked if each not in owners]

    def orphaned(self, limit: int, marked: Collection[UUID]) -> list[tuple[RunKey, UUID]]:
        """Finds runs of these replicas where they are marked, shared among namespaces, and whose they are."""
        dead = {each for each in marked if each in self.replicas and self.replicas[each].end_time is not None}
        lost: dict[tuple[UUID, str], list[Run]] = {}
        for run in self.runs.values():
            if run.readable and run.owner is not None and run.owner in dead:
                lost.setdefault((run.owner, run.key.namespace), []).append(run)
        places = sorted(lost)[:NAMESPACES]
        share = -(-limit // len(places)) if places else 0
        chosen = [
            (run.key, place[0])
            for place in places
            for run in sorted(lost[place], key=lambda run: run.key.run_id)[:share]
        ]
        return chosen[:limit]

    def adopt(
        self,
        replica_id: UUID,
        limit: int,
        marked: Collection[UUID],
        before: Sequence[tuple[RunKey, UUID]] | None = None,
    ) -> list[RunRow]:
        """Takes over runs of these replicas where they are marked; `before` are those that its statement saw, where it
        has waited since."""
        self.wait_for(replica_id)
        if not self.has_lease(replica_id):
            return []
        seen = self.orphaned(limit, marked) if before is None else before
        runs = [run for key, owner in seen if (run := self.runs[key]).readable and run.owner == owner]
        self.tally("runs adopted", len(runs))
        return [self.take_over(run, replica_id) for run in runs]

    def oldest_parked(self, since: int | None, margin_seconds: float) -> int:
        """Tells a time before which no run waits, nor will; see known.Statements."""
        times = [_wake(run) for run in self.runs.values() if run.owner is None and run.readable]
        waiting = [time for time in times if since is None or time >= since]
        return min([self.now() - round(margin_seconds * 1_000_000), *waiting])

    def due(self, limit: int, lead_seconds: float, since: int | None) -> list[RunKey]:
        """Finds runs of nobody whose time comes, and is not before `since`, those that are due first, in turns among
        namespaces."""
        since = -NEVER if since is None else since
        until = self.now() + round(lead_seconds * 1_000_000)
        parked = [run for run in self.runs.values() if run.owner is None and run.readable]
        due = [run for run in parked if since <= _wake(run) <= until]
        due = sorted(due, key=_wake)[: limit * LOOKED_AT]
        turns: dict[str, int] = {}
        ordered: list[tuple[int, int, int, Run]] = []
        for run in due:
            turns[run.key.namespace] = turn = turns.get(run.key.namespace, 0) + 1
            ordered.append((turn, _wake(run), len(ordered), run))
        return [run.key for *_, run in sorted(ordered, key=lambda one: one[:3])]

    def wake(
        self,
        replica_id: UUID,
        limit: int,
        lead_seconds: float,
        since: int | None,
        before: Sequence[RunKey] | None = None,
    ) -> list[RunRow]:
        """Takes over runs of nobody whose time comes, and is not before `since`; `before` are those that its statement
        saw, as in `adopt`."""
        self.wait_for(replica_id)
        if not self.has_lease(replica_id):
            return []
        seen = self.due(limit, lead_seconds, since) if before is None else before
        runs = [run for key in seen if (run := self.runs[key]).readable and run.owner is None][:limit]
        self.tally("runs woken", len(runs))
        return [self.take_over(run, replica_id) for run in runs]

    def claim(self, replica_id: UUID, key: RunKey) -> RunRow | None:
        """Takes over a run of nobody or of a marked replica."""
        self.wait_for(replica_id)
        run = self.runs.get(key)
        if run is None or not run.readable or not self.has_lease(replica_id):
            return None
        if not self.is_nobodys(run):
            return None
        self.tally("runs claimed")
        return self.take_over(run, replica_id, asked=True)

    def is_nobodys(self, run: Run) -> bool:
        """Whether a run has no owner, or one that was marked."""
        owner = self.replicas.get(run.owner) if run.owner is not None else None
        return run.owner is None or (owner is not None and owner.end_time is not None)

    def park(self, replica_id: UUID, runs: Sequence[ParkedRun]) -> None:
        """Gives runs away until their time. Errors: as of `require_lease`."""
        self.wait_for(replica_id)
        self.require_lease(replica_id)
        for parked in runs:
            run = self.runs.get(parked.key)
            if run is None or (run.owner, run.epoch, run.next_sequence) != (
                replica_id,
                parked.epoch,
                parked.next_sequence,
            ):
                continue
            self.tally("runs parked")
            run.owner = None
            run.giver = replica_id if parked.wake_time <= self.now() else None
            run.wake_time = self.not_long_past(self.first_time(run.wake_time, parked.wake_time))

    @staticmethod
    def first_time(poked: int | None, wake_time: int) -> int:
        """The time of a run that is parked: that of a poke before, where there was one."""
        return wake_time if poked is None else min(poked, wake_time)

    def not_long_past(self, wake_time: int) -> int:
        """The time of a run that is parked: not long past, whatever it was poked by; see `oldest_parked`."""
        return max(wake_time, self.now() - 1_000_000)

    def poke(self, keys: Sequence[RunKey], time: int) -> None:
        """Lets the time of runs come, which is that of when its statement began."""
        for key in keys:
            run = self.runs.get(key)
            if run is not None and run.unfinished:
                self.tally("runs poked")
                run.wake_time = time if run.wake_time is None else min(run.wake_time, time)

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
