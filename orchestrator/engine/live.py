"""A live run: the state of a run in the memory of the replica that owns it, and what is under way for it.

What may not enter: decisions, I/O, and what the run's data says (data.py).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.scope import Scope
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.ids import RunKey
from orchestrator.domain.run import Run
from orchestrator.domain.waits import RunAwaited
from orchestrator.engine.codec import total_bytes
from orchestrator.engine.data import RunData
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.permits import Permit, Pool
from orchestrator.engine.ports import JournalRow, NewRun, ReopenedRun, WriteResult
from orchestrator.engine.timers import Timer
from orchestrator.engine.turns import Turns
from orchestrator.engine.updates import Update, encode_update
from orchestrator.engine.waiters import Waiters
from orchestrator.engine.worker_ports import Sending, Ticket

if TYPE_CHECKING:
    from orchestrator.engine.resumptions import Resumption

RECENT_ROWS = 256
RECENT_BYTES = 128 << 10
"""Durable rows kept in memory for watchers, by number and size; older ones are read from the journal."""


FLUSH_LOOK_SECONDS = 5.0
"""How often one who waits for the journal looks whether the run is still here."""


class TimerKind(enum.Enum):
    """What a timer of a step is for."""

    STEP = enum.auto()
    QUEUE = enum.auto()
    BACKOFF = enum.auto()
    ATTEMPT = enum.auto()
    WAIT = enum.auto()
    HEARTBEAT = enum.auto()
    CHECKPOINT = enum.auto()


class TimerKey(NamedTuple):
    """Names a timer; `step` is the index of its step."""

    kind: TimerKind
    step: int


@dataclass(slots=True)
class Flight:
    """A call from when its attempt is decided to its end. It holds one permit of its endpoint and one ticket of its
    circuit, and one permit of the limits that bound it; of these only the ticket while it waits for what it has
    delegated."""

    step: int
    attempt: int
    endpoint: Endpoint
    ticket: Ticket
    request: bytes
    method: str
    permit: Permit | None = None
    sending: Sending | None = None
    progress: tuple[float, str, int] | None = None
    """The newest that the worker told: percent, what it does, and when."""
    resumption: Resumption | None = None
    """Set while it has given its permits back, to wait for what it has delegated."""
    requests: int = 0
    """How many requests of its worker wait here: for a step that it has delegated, or to go on."""
    heard_time: int = 0
    """When its worker last gave a sign of life; 0 where none is asked for."""
    retried: str = ""
    """The worker whose retry budget it took a token of."""
    checkpoint: Payload | None = None
    """The newest that it left, where that is not journaled yet."""
    checkpoint_time: int = 0
    """When one was journaled."""


@dataclass(slots=True)
class Staged:
    """One decision on its way to the journal; it is never split between two commits.

    `rows` is the stored form of its events, and `size` what that takes in bytes; the journal fills them in.
    """

    events: list[Event]
    cancelled: list[tuple[int, int]]
    rows: list[JournalRow] = field(default_factory=list)
    size: int = 0


class Acceptance(Protocol):
    """Where it is told what became of a submission; a future is one."""

    def done(self) -> bool:
        """Whether it was told."""
        ...

    def set_result(self, result: WriteResult, /) -> None:
        """The submission was written, or not."""
        ...

    def cancel(self) -> object:
        """It is not known, or it cannot be written."""
        ...


class LiveRun:
    """A run that this replica owns. All its methods are called on the event loop."""

    def __init__(self, key: RunKey, epoch: int, compiled: CompiledWorkflow, scope: Scope, new: NewRun | None) -> None:
        self.key = key
        self.run_id = str(key.run_id)
        self.epoch = epoch
        self.run = Run(compiled.graph)
        self.new = new
        self.reopened: ReopenedRun | None = None
        """Set where this replica reopens the run: with the first of its events, its row changes."""
        self.client_id = new.client_id if new is not None else ""
        self.staged: list[Staged] = []
        self.in_journal_queue = False
        self.being_written = False
        """Whether some of its events are on their way to the database."""
        self.flights: dict[int, Flight] = {}
        self.limit_pools: dict[int, tuple[Pool, ...]] = {}
        """Of steps that name limits, what their calls count in; read when the step is queued."""
        self.run_timer: Timer | None = None
        self.children: dict[int, RunAwaited] = {}
        """Steps that wait for their child runs."""
        self.cut_off: set[int] = set()
        """Steps whose calls the owner before cut off as it was stopped in good order, until they are sent again."""
        self.orphaned = False
        """Whether it was taken over after the run whose step runs it had ended."""
        self.timers: dict[TimerKey, Timer] = {}
        """Timers of steps."""
        self.data = RunData(self.run, compiled, scope)
        self.accepted: Acceptance | None = None
        self.durable_sequence = 0
        self.restless_sequence = 0
        """The sequence after which the run was seen to have steps at work or in a queue: it was not to be parked."""
        self.forgotten = False
        self.held_bytes = 0
        """Encoded size of the durable events that the run was folded from, with their payloads."""
        self.share: NamespaceShare | None = None
        """Where it is counted while it is one of the live runs."""
        self._recent: deque[JournalRow] = deque()
        self._recent_bytes = 0
        self._updates: dict[tuple[int, bool], Update] = {}
        self._changed = Waiters()
        self._turns: Turns | None = None
        self._left = Waiters()
        self._flushed = Waiters()

    @property
    def compiled(self) -> CompiledWorkflow:
        """The revision that the run goes by."""
        return self.data.compiled

    def accept_not(self) -> None:
        """Tells whoever waits to hear what became of the submission that it is not known, or not stored."""
        if self.accepted is not None and not self.accepted.done():
            self.accepted.cancel()

    # --- durable rows, for those who watch

    def publish(self, rows: Sequence[JournalRow], size: int) -> None:
        """Takes note of rows that are durable now, `size` bytes in all, and wakes everybody who waits for them."""
        self._recent.extend(rows)
        self._recent_bytes += size
        while len(self._recent) > RECENT_ROWS or self._recent_bytes > RECENT_BYTES:
            oldest = self._recent.popleft()
            self._recent_bytes -= total_bytes((oldest,))
            if self._updates:
                self._updates.pop((oldest.sequence, False), None)
                self._updates.pop((oldest.sequence, True), None)
        self.durable_sequence = rows[-1].sequence
        self._flushed.wake()
        self._wake_watchers()
        if self.run.ended and self.settled:
            self.leave()

    def leave(self) -> None:
        """Wakes everybody who waits in `changed` or `left`: the run ended, or this replica gives it up or drains."""
        self._wake_watchers()
        self._left.wake()
        self._flushed.wake()

    async def flushed(self, timeout_seconds: float) -> None:
        """Waits for the next durable rows, or for the run to leave this replica, or until the time is over."""
        await self._flushed.wait(timeout_seconds)

    async def durable(self, sequence: int) -> bool:
        """Waits until everything up to `sequence` is durable; False where the run has left this replica before."""
        while self.durable_sequence < sequence and not self.forgotten:
            await self._flushed.wait(FLUSH_LOOK_SECONDS)
        return self.durable_sequence >= sequence

    def checkpoint(self, index: int) -> Payload | None:
        """Returns the newest checkpoint of a step."""
        flight = self.flights.get(index)
        if flight is not None and flight.checkpoint is not None:
            return flight.checkpoint
        return self.run.steps[index].checkpoint

    def _wake_watchers(self) -> None:
        waiting = self._changed.take()
        if waiting and self._turns is not None:
            self._turns.give(waiting)

    async def changed(self, turns: Turns, timeout_seconds: float) -> bool:
        """Waits for the next durable rows or for the run to leave this replica, and then for a turn; False where the
        time is over."""
        self._turns = turns
        return await self._changed.wait(timeout_seconds)

    async def left(self, timeout_seconds: float) -> None:
        """Waits for the durable end of the run or for its leaving this replica, or until the time is over."""
        await self._left.wait(timeout_seconds)

    def updates_after(self, sequence: int, payloads: bool) -> list[Update] | None:
        """Returns what tells of the durable rows above `sequence`, None where memory does not reach back so far."""
        if sequence >= self.durable_sequence:
            return []
        if not self._recent or self._recent[0].sequence > sequence + 1:
            return None
        skipped = sequence + 1 - self._recent[0].sequence
        return [self._update(row, payloads) for row in islice(self._recent, skipped, None)]

    def _update(self, row: JournalRow, payloads: bool) -> Update:
        update = self._updates.get((row.sequence, payloads))
        if update is None:
            update = self._updates[row.sequence, payloads] = encode_update(self.key.run_id, row, payloads)
        return update

    @property
    def settled(self) -> bool:
        """Whether everything decided so far is durable, so that memory may be shown."""
        return self.durable_sequence == self.run.sequence > 0

    def cancel_timer(self, kind: TimerKind, step: int) -> None:
        """Disarms one timer of a step, where it is armed."""
        if self.timers:  # Most steps have none.
            timer = self.timers.pop(TimerKey(kind, step), None)
            if timer is not None:
                timer.cancel()

    def cancel_timers_of(self, steps: Container[int]) -> None:
        """Disarms every timer of some steps."""
        for key in [key for key in self.timers if key.step in steps]:
            self.timers.pop(key).cancel()

    def cancel_timers(self) -> None:
        """Disarms every timer of the run."""
        if self.run_timer is not None:
            self.run_timer.cancel()
            self.run_timer = None
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()


@dataclass(slots=True)
class NamespaceShare:
    """How many live runs a namespace has, and how many bytes they hold."""

    runs: int = 0
    held_bytes: int = 0


NO_SHARE = NamespaceShare()


class LiveRuns(dict[RunKey, LiveRun]):
    """The live runs of a replica, what they hold, and how much of that each namespace has.

    What a run holds is counted by the encoded size of its events when these are written or read, never by looking at
    the run. What is staged is not in it: the journal counts that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held_bytes = 0
        self._shares: dict[str, NamespaceShare] = {}

    def share(self, namespace: str) -> NamespaceShare:
        """Tells what a namespace has of them."""
        return self._shares.get(namespace, NO_SHARE)

    def grow(self, live: LiveRun, size: int) -> None:
        """Takes note that a run holds `size` bytes more, or less where it is negative."""
        live.held_bytes += size
        if live.share is not None:
            live.share.held_bytes += size
            self.held_bytes += size

    def __setitem__(self, key: RunKey, live: LiveRun) -> None:
        before = self.get(key)
        if before is live:
            return
        if before is not None:
            del self[key]
        share = live.share = self._shares.setdefault(key.namespace, NamespaceShare())
        share.runs += 1
        share.held_bytes += live.held_bytes
        self.held_bytes += live.held_bytes
        super().__setitem__(key, live)

    def __delitem__(self, key: RunKey) -> None:
        live = self[key]
        share, live.share = live.share, None
        assert share is not None
        super().__delitem__(key)
        share.runs -= 1
        share.held_bytes -= live.held_bytes
        self.held_bytes -= live.held_bytes
        if not share.runs:
            del self._shares[key.namespace]
