"""The judge: looks at each thing that is written, sent and told as it happens, and at the whole when it is over.

What it finds is a breach of what must always hold (end of docs/architecture.md). It knows the truth of the database,
and nothing of how the engine comes to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

from baton.v1 import approval_pb2, approval_service_pb2, event_pb2, limit_pb2, run_pb2, workflow_pb2

from orchestrator.domain.ids import RunKey
from orchestrator.domain.plan import MAX_DELIVERIES
from orchestrator.domain.plan.decision import MAX_SENDINGS
from orchestrator.domain.run import Run as FoldedRun
from orchestrator.domain.states import ENDED_RUN, TERMINAL_EVENTS, EventKind, StepState
from orchestrator.domain.waits import RunAwaited, request_hash
from orchestrator.domain.workflow import Delivery
from orchestrator.engine.codec import to_message
from orchestrator.engine.ports import JournalRow, RunEntry
from orchestrator.engine.worker_ports import Call
from tests.simulation.database import Database
from tests.simulation.firings import Firings
from tests.simulation.folds import Folds
from tests.simulation.leases import Replica
from tests.simulation.quotas import Pool, Quotas
from tests.simulation.retries import Retries
from tests.simulation.revisions import Revisions
from tests.simulation.rounds import Rounds
from tests.simulation.schedules import ScheduleTables
from tests.simulation.tables import Run
from tests.simulation.workflows import Done

if TYPE_CHECKING:
    from tests.simulation.clients import Order, Watched
    from tests.simulation.processes import Process

DELIVERED = (EventKind.ATTEMPT_STARTED, EventKind.DELIVERY_STARTED)
ONCE_AN_ATTEMPT = (EventKind.ATTEMPT_STARTED, EventKind.ATTEMPT_FAILED, EventKind.ATTEMPT_SUSPENDED)
BEGINS_ANEW = (EventKind.RUN_REOPENED, EventKind.STEP_RETRIED)
STILL_SECONDS = 16.0
"""Longest time without an event: the longest wait of a step, and what it takes to find a run that nobody drives."""
CHILD_SECONDS = 100.0
"""The same of a parent whose child has ended without a poke: it looks for itself once a minute (park.py)."""
QUEUE_SECONDS = 60.0
"""The same of a run that waits for permits, as long as others go on: all of them may be before it."""
MOST_MOVES = 4
"""How often a run goes to another replica, or back, between two events once nothing goes wrong any more."""
ENDS_A_STEP = (EventKind.STEP_SUCCEEDED, EventKind.STEP_FAILED, EventKind.STEP_SKIPPED, EventKind.STEP_CANCELLED)


class Judge:
    """`breach` is told of each thing that must not be, with the name of what it breaks."""

    def __init__(self, database: Database, schedules: ScheduleTables, breach: Callable[[str, str], None]) -> None:
        self._database, self._breach, self.breach = database, breach, breach
        self.watchers: list[Watched] = []
        self.folds = Folds()
        self.rounds = Rounds(database, self.folds, breach)
        self.firings = Firings(database, schedules, breach)
        self.effects: Counter[tuple[str, str]] = Counter()
        self.sent: Counter[tuple[str, str, int]] = Counter()
        self.quotas = Quotas(breach, self._pools_of, database.tally, database.now)
        self.retries = Retries(breach, database.now, database.tally)
        self.revisions = Revisions(breach, database.tally)
        self.calm = False
        """Whether nothing goes wrong any more."""
        self.crowded = False
        """Whether workers take so little that any step may wait for others."""
        self.waits_for_silence: Callable[[], bool] = lambda: False
        """Tells whether somebody has still to find out that it hears nothing."""
        self._moves: dict[RunKey, tuple[int, int]] = {}
        self.stopped: set[UUID] = set()
        """Replicas that end in good order."""
        self._given: set[tuple[RunKey, int]] = set()
        """Runs with the epoch in which they were got of one of those."""
        self.definitions: dict[str, workflow_pb2.Workflow] = {}
        self._acknowledged: dict[tuple[str, str], UUID] = {}
        self._moved: dict[RunKey, tuple[int, float]] = {}
        self._any_moved = 0.0
        database.on_written, database.on_taken_over = self.written, self.taken_over

    # --- as it happens

    def written(self, replica_id: UUID, entry: RunEntry) -> None:
        """An entry is about to be written."""
        run, replica = self._database.runs[entry.key], self._database.replicas.get(replica_id)
        where = f"run {entry.key.run_id} from sequence {entry.rows[0].sequence}"
        if replica is None or self.is_dead(replica):
            self._breach("stale write", f"{where}: its writer was marked as dead")
        if entry.new is None and (run.owner != replica_id or run.epoch != entry.epoch):
            self._breach("stale write", f"{where}: by a former owner, in epoch {entry.epoch} of {run.epoch}")
        if entry.rows[0].sequence != len(run.events) + 1:
            self._breach("dense sequences", f"{where}: {len(run.events)} stand before it")
        if run.events and run.events[-1].row.kind in TERMINAL_EVENTS and entry.reopened is None:
            self._breach("one end", f"{where}: it follows the end")
        if any(map(_is_handed_over, entry.rows)) and (entry.key, entry.epoch) not in self._given:
            self._breach("bounded attempts", f"{where}: its owner before was not stopped in good order, as it says")
        self.rounds.written(entry, run)
        if entry.new is not None:
            self.firings.written(entry)

    @staticmethod
    def is_dead(replica: Replica) -> bool:
        """Whether a replica was marked: nothing may come from it any more."""
        return replica.end_time is not None

    def taken_over(self, run: Run, epoch_before: int, owner_before: UUID | None, asked: bool) -> None:
        """A run has got an owner. Where somebody `asked` for that, it has not moved by itself."""
        if owner_before is not None and not self.is_dead(self._database.replicas[owner_before]):
            self._breach("one owner", f"run {run.key.run_id} is taken from a replica that is not dead")
        if owner_before in self.stopped:
            self._given.add((run.key, run.epoch))
        if run.epoch <= epoch_before:
            self._breach("epochs rise", f"run {run.key.run_id} is taken over in epoch {run.epoch}")
        length, moves = self._moves.get(run.key, (0, 0))
        moves = moves + (not asked) if self.calm and length == len(run.events) else 0
        self._moves[run.key] = len(run.events), moves
        if moves > MOST_MOVES:
            self._breach("runs come to rest", f"run {run.key.run_id} is taken over {moves} times, and nothing happens")

    def called(self, process: Process, call: Call) -> None:
        """A call leaves a replica."""
        where = f"call {call.run_id}/{call.step}/{call.attempt}.{call.delivery}"
        run = self._run(call.endpoint.namespace, call.run_id)
        rows = [event.row for event in run.events] if run is not None else []
        durable = sum(row.kind in DELIVERED and (row.step, row.attempt) == (call.step, call.attempt) for row in rows)
        if durable < call.delivery:
            self._breach("durability before action", f"{where} leaves, of which {durable} entries are durable")
        self._look_at_approval(where, call, run)
        if run is not None:
            self._look_whether_wanted(where, call, run)
            folded = self._fold(run)
            if call.step in folded.indexes:
                self.retries.called(process.replica_id, call, folded.steps[folded.indexes[call.step]])
        if process.replica_id is None or not self._database.has_lease(process.replica_id):
            self._breach("calls under a lease", f"{where} leaves a replica whose lease is over")
        self.sent[call.run_id, call.step, call.attempt] += 1
        handed_over = self._handed_over(call, run) if call.delivery > 1 and run is not None else 0
        self._database.tally("calls handed over", handed_over > 0)
        most = MAX_DELIVERIES + handed_over
        if max(call.delivery, self.sent[call.run_id, call.step, call.attempt]) > min(most, MAX_SENDINGS):
            self._breach("bounded attempts", f"{where}: sent too often")

    def _handed_over(self, call: Call, run: Run) -> int:
        """Sendings of a call after which its replica was stopped in good order: all others were lost with theirs."""
        return sum(
            (event.row.step, event.row.attempt) == (call.step, call.attempt)
            and _is_handed_over(event.row)
            and (run.key, event.epoch) in self._given
            for event in run.events
        )

    def _look_whether_wanted(self, where: str, call: Call, run: Run) -> None:
        folded = self._fold(run)
        index = folded.indexes.get(call.step)
        if index is not None and call.delivery > 1:
            spec = folded.steps[index].spec
            if spec.delivery is Delivery.AT_MOST_ONCE and not spec.targets[folded.steps[index].target].repeatable:
                self._breach("delivered at most once", f"{where} leaves again")
        if index is None or not folded.is_current(index, call.attempt):
            self._breach("what is done is not done again", f"{where} leaves, and is not what the journal waits for")

    def effect(self, call: Call) -> None:
        """A worker has got a call."""
        self.effects[call.run_id, call.step] += 1

    def _look_at_approval(self, where: str, call: Call, run: Run | None) -> None:
        """Looks whether what a call needs was approved: that very request, by somebody who may."""
        if run is None or not self.definitions:
            return
        steps = self.definitions[run.revision.workflow].steps
        asked = next((one for one in steps if one.id == call.step and one.HasField("approval")), None)
        if asked is None or call.method != asked.method:
            return
        decided = [self.message_of(event.row) for event in run.events if event.row.kind == EventKind.APPROVAL_DECIDED]
        own = [one for one in decided if one.step == call.step]
        shown = request_hash(call.method, call.payload)
        if not own or not own[-1].approval_decided.approved or own[-1].approval_decided.request_hash != shown:
            self._breach("what was approved is called", f"{where} leaves without a decision on its request")
        elif own[-1].approval_decided.principal == run.new.principal:
            self._breach("what was approved is called", f"{where}: {run.new.principal} has approved it")
        elif asked.approval.approvers and own[-1].approval_decided.principal not in asked.approval.approvers:
            self._breach("what was approved is called", f"{where}: approved by who may not")

    @staticmethod
    def message_of(row: JournalRow) -> event_pb2.RunEvent:
        """The stored event."""
        return event_pb2.RunEvent.FromString(row.header)

    def listed(self, key: RunKey, approval: approval_pb2.Approval) -> None:
        """Somebody is shown a request that waits."""
        rows = [event.row for event in self._database.runs[key].events]
        asked = [self.message_of(row) for row in rows if row.kind == EventKind.APPROVAL_REQUESTED]
        if not any(
            (one.step, one.approval_requested.request_hash) == (approval.step, approval.request_hash) for one in asked
        ):
            self._breach("only what is durable is shown", f"run {key.run_id}: {approval.step} asks for no approval")

    def decided(self, key: RunKey, principal: str, request: approval_service_pb2.DecideApprovalRequest) -> None:
        """Somebody is told that a decision was taken."""
        rows = [event.row for event in self._database.runs[key].events]
        self._database.tally("requests decided")
        for row in rows:
            if row.kind == EventKind.APPROVAL_DECIDED and row.step == request.step:
                told = self.message_of(row).approval_decided
                if (told.approved, told.principal, told.request_hash) == (
                    request.approved,
                    principal,
                    request.request_hash,
                ):
                    return
        self._breach("nothing acknowledged is lost", f"run {key.run_id}: the decision on {request.step} is not durable")

    def delegated(self, call: Call, key: str, step: Any) -> None:
        """A handler is told of a step that it has delegated."""
        where, step_id = f"call {call.run_id}/{call.step}/{call.attempt}", f"{call.step}/{key}"
        run = self._run(call.endpoint.namespace, call.run_id)
        assert run is not None
        folded = self._fold(run)
        index = folded.indexes.get(step_id)
        if index is None:
            self._breach("nothing acknowledged is lost", f"{where} is told of {step_id}, which is not durable")
        elif step.state == run_pb2.STEP_STATE_SUCCEEDED:
            output = folded.steps[index].output
            if output is None or output.data != step.output.value:
                self._breach("only what is durable is shown", f"{where} is told what {step_id} gave, and that is not")

    def acknowledged(self, order: Order, run_id: UUID) -> None:
        """A replica is about to tell a client of its run."""
        namespace = order.caller.namespace
        if RunKey(namespace, run_id) not in self._database.runs:
            self._breach("nothing acknowledged is lost", f"{order.request_id} is acknowledged and not durable")
        known = self._acknowledged.setdefault((namespace, order.request_id), run_id)
        if known != run_id:
            self._breach("one run a request", f"{order.request_id} has {known} and {run_id}")

    def seen(self, watched: Watched, message: Any) -> None:
        """A watcher gets a message."""
        where = f"a watcher of {watched.run_id}"
        if message.HasField("snapshot"):
            if watched.last_sequence:
                self._breach("watch without gaps", f"{where} gets a second snapshot")
            watched.last_sequence = message.snapshot.last_sequence
            self.shown(watched.caller.namespace, message.snapshot)
        elif message.HasField("event"):
            event = message.event
            if event.sequence != watched.last_sequence + 1:
                self._breach("watch without gaps", f"{where} gets {event.sequence} after {watched.last_sequence}")
            watched.last_sequence = event.sequence
            run = self._run(watched.caller.namespace, str(watched.run_id))
            stored = run.events if run is not None else []
            if event.sequence > len(stored):
                self._breach("only what is durable is shown", f"{where} sees {event.sequence} of {len(stored)}")
            elif to_message(stored[event.sequence - 1].row, False) != event:
                self._breach("only what is durable is shown", f"{where} sees another event {event.sequence}")

    def shown(self, namespace: str, message: Any) -> None:
        """Somebody is shown a run."""
        run = self._run(namespace, message.run_id)
        length = len(run.events) if run is not None else 0
        if message.last_sequence > length:
            self._breach("only what is durable is shown", f"run {message.run_id}: {message.last_sequence} of {length}")

    def _pools_of(self, call: Call) -> list[Pool]:
        """What a call counts in."""
        if not self.quotas.rows:
            return []
        namespace, found = call.endpoint.namespace, list[Pool]()
        for (where, name), row in self.quotas.rows.items():
            of_all = row.scope == limit_pb2.LIMIT_SCOPE_NAMESPACE
            if where == namespace and (of_all or row.target in (call.method, call.endpoint.worker)):
                found.append((namespace, name, ""))
        step = call.step.partition("/")
        run = self._run(namespace, call.run_id)
        if run is not None and "undo" not in step[2]:
            steps = self.definitions[run.revision.workflow].steps
            for limit in next(one.limits for one in steps if one.id == step[0]):
                found.append((namespace, limit.limit, self._text_of(run) if limit.key else ""))
        return found

    @staticmethod
    def _text_of(run: Run) -> str:
        """The text of a run's input, which is what the keys of limits are."""
        text: str = Done.FromString(run.events[0].row.payload or b"").text
        return text

    def _run(self, namespace: str, run_id: str) -> Run | None:
        return self._database.runs.get(RunKey(namespace, UUID(run_id)))

    # --- while all is well

    def look_for_progress(self, now: float) -> None:
        """Looks for runs in which nothing happens, though nothing goes wrong and no step waits for so long."""
        if self.waits_for_silence():
            self._moved.clear()
            return
        for key, run in self._database.unfinished().items():
            if self._fold(run).paused:
                self._moved.pop(key, None)
                continue
            length, since = self._moved.get(key, (0, now))
            if length != len(run.events):
                self._moved[key] = (len(run.events), now)
                self._any_moved = now
            elif now - since > self._longest_stillness(run, now):
                self._breach("runs go on", f"run {key.run_id}: nothing after event {length} for {now - since:.1f} s")

    def paused_runs(self) -> list[RunKey]:
        """Runs that are paused."""
        return [key for key, run in self._database.unfinished().items() if self._fold(run).paused]

    def _longest_stillness(self, run: Run, now: float) -> float:
        if self._waits_for_child(run):
            return CHILD_SECONDS
        return QUEUE_SECONDS if now - self._any_moved <= STILL_SECONDS and self._queues(run) else STILL_SECONDS

    def _queues(self, run: Run) -> bool:
        """Tells whether a step is ready that limits, or workers, may keep waiting."""
        bounded = {step.id for step in self.definitions[run.revision.workflow].steps if step.limits}
        steps = self._fold(run).steps
        ready = (step.spec.id.partition("/")[0] for step in steps if step.state is StepState.READY)
        return any(self.crowded or step in bounded for step in ready)

    def _waits_for_child(self, run: Run) -> bool:
        return any(isinstance(step.wait, RunAwaited) for step in self._fold(run).steps)

    # --- when it is over

    def look_at_all(self, orders: list[Order]) -> None:
        """Looks at everything, once all is still."""
        for run in self._database.runs.values():
            self._look_at(run)
        self._look_at_rates()
        self.firings.look_at_all()
        for order in orders:
            self._look_at_order(order)
        for (namespace, request_id), (run_id, _) in self._database.requests.items():
            if RunKey(namespace, run_id) not in self._database.runs:
                self._breach("one run a request", f"{request_id} has no run")
        requests = Counter(
            (run.key.namespace, run.request_id) for run in self._database.runs.values() if run.request_id
        )
        for (_, request_id), count in requests.items():
            if count > 1:
                self._breach("one run a request", f"{request_id} has {count} runs")
        for watched in self.watchers:
            run = self._database.runs[RunKey(watched.caller.namespace, watched.run_id)]
            seen = run.events[: watched.last_sequence]
            # Who has seen the end of a round need not wait for the next.
            if not watched.ended or not seen or seen[-1].row.kind not in TERMINAL_EVENTS:
                self._breach(
                    "watch without gaps", f"run {run.key.run_id}: seen {watched.last_sequence} of {len(run.events)}"
                )

    def _look_at_rates(self) -> None:
        """Looks at when the calls were admitted that count in limits with a rate."""
        times: dict[tuple[str, str], list[int]] = {}
        rated = {row.target: where for where, row in self.quotas.rows.items() if row.rate is not None}
        for run in self._database.runs.values() if rated else ():
            for step in self._fold(run).steps:
                for attempt in step.attempts:
                    where = (run.key.namespace, rated.get(attempt.method, ("", ""))[1])
                    if where in self.quotas.rows:
                        times.setdefault(where, []).append(attempt.start_time)
        self.quotas.look_at_rates(times)

    def _look_at_order(self, order: Order) -> None:
        if len(order.runs) != order.copies:
            self._breach("every client is told", f"{order.request_id}: told {len(order.runs)} of {order.copies}")
        for run_id in order.runs:
            run = self._database.runs.get(RunKey(order.caller.namespace, run_id))
            if run is None:
                self._breach("nothing acknowledged is lost", f"{order.request_id}: no run {run_id}")
            else:
                self.revisions.look_at(run, order.submit_time)
        if len(set(order.runs)) > 1:
            self._breach("one run a request", f"{order.request_id} has {len(set(order.runs))}")
        if order.signals and order.runs:
            rows = [event.row for event in self._database.runs[RunKey(order.caller.namespace, order.runs[0])].events]
            kept = [self.message_of(row) for row in rows if row.kind == EventKind.SIGNAL_RECEIVED]
            counts = Counter(message.signal_received.request_id for message in kept)
            for request_id in order.signals:
                if not counts[request_id]:
                    self._breach("nothing acknowledged is lost", f"the signal {request_id} is not in the journal")
            if any(count > 1 for count in counts.values()):
                self._breach("a signal is kept once", f"run {order.runs[0]}: {dict(counts)}")

    def _look_at(self, run: Run) -> None:
        where = f"run {run.key.run_id}"
        rows = [event.row for event in run.events]
        if [row.sequence for row in rows] != list(range(1, run.next_sequence)):
            self._breach("dense sequences", where)
        epochs = [event.epoch for event in run.events]
        if epochs != sorted(epochs):
            self._breach("stale write", f"{where}: epochs {epochs}")
        if any(first.event_time >= second.event_time for first, second in pairwise(rows)):
            self._breach("times rise", where)
        if run.state not in ENDED_RUN:
            self._breach("every run ends", f"{where}: {rows[-1].sequence} events, state {run.state}")
        self.rounds.look_at(run)
        self._look_for_doubles(where, rows)
        try:
            folded = self._fold(run)
        except Exception as error:
            self._breach("legal transitions", f"{where}: {type(error).__name__}: {error}")
            return
        self._look_at_steps(where, run, folded)

    def _look_for_doubles(self, where: str, rows: list[Any]) -> None:
        counts: Counter[tuple[int, str, int]] = Counter()
        for row in rows:
            if row.kind in BEGINS_ANEW:  # What may end again is the fold's to say.
                counts = Counter({one: count for one, count in counts.items() if one[0] != EventKind.STEP_SUCCEEDED})
            elif row.kind in ONCE_AN_ATTEMPT:
                counts[row.kind, row.step, row.attempt] += 1
            elif row.kind in ENDS_A_STEP:
                counts[EventKind.STEP_SUCCEEDED, row.step, 0] += 1
            elif row.kind == EventKind.DELIVERY_STARTED and not _is_handed_over(row):
                counts[row.kind, row.step, row.attempt] += 1
        for (kind, step, attempt), count in counts.items():
            most = MAX_DELIVERIES - 1 if kind == EventKind.DELIVERY_STARTED else 1
            if count > most:
                self._breach(
                    "no double transition", f"{where}: {EventKind(kind).name} of {step}/{attempt} {count} times"
                )

    def _look_at_steps(self, where: str, run: Run, folded: FoldedRun) -> None:
        if int(folded.state) != run.state or folded.end_time != run.end_time:
            self._breach("legal transitions", f"{where}: its row and its journal differ")
        failures = [folded.failure, *(step.failure for step in folded.steps)]
        for failure in failures:
            if failure is not None and failure.reason == "INTERNAL":
                self._breach("no fault of ours", f"{where}: {failure.message}")
        for step in folded.steps:
            most = sum(target.retry.max_attempts for target in step.spec.targets) if step.spec.targets else 0
            begun = sum(not attempt.suspended for attempt in step.attempts[step.earlier_attempts :])
            if begun > most:
                self._breach("bounded attempts", f"{where}: {step.spec.id} has {begun} of {most} attempts")
            if (
                step.state is StepState.SUCCEEDED
                and begun
                and not step.substituted_by
                and not self.effects[str(run.key.run_id), step.spec.id]
            ):
                self._breach("no success without a call", f"{where}: {step.spec.id}")

    def _fold(self, run: Run) -> FoldedRun:
        return self.folds.of(run)


def _is_handed_over(row: JournalRow) -> bool:
    """Whether it tells of a sending after one that a replica cut off which was stopped in good order."""
    return (
        row.kind == EventKind.DELIVERY_STARTED
        and event_pb2.RunEvent.FromString(row.header).delivery_started.handed_over
    )
