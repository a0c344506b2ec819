"""What must hold of a database and of the workers' notes, whatever was killed and when. Each check answers faults.

The journal is read as it is stored, by a user whom row level security does not bind, and not through Baton.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg
from baton.v1 import event_pb2
from google.protobuf import timestamp_pb2

from tests.acceptance.lab_worker import Note

ENDING = {"run_succeeded", "run_failed", "run_cancelled"}
STEP_ENDING = {"step_succeeded", "step_failed", "step_skipped", "step_cancelled"}
MAX_DELIVERIES = 3

CLOCK_SLACK_US = 100_000
"""How far the estimate of the database's clock that stamps events may be off the clock of the notes on a busy machine.
What is looked for is further off: a killed server takes longer to start again."""


@dataclass(slots=True)
class StoredRun:
    """A run's row and journal."""

    run_id: str
    state: int
    epoch: int
    next_sequence: int
    request_id: str
    owned: bool
    ended: bool
    events: list[event_pb2.RunEvent] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def of_step(self, step: str) -> list[event_pb2.RunEvent]:
        """The events of one step, in order."""
        return [event for event in self.events if event.step == step]


async def read_runs(dsn: str) -> dict[str, StoredRun]:
    """Reads every run of a database."""
    connection = await asyncpg.connect(dsn)
    try:
        # One view of both tables: runs may begin meanwhile.
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = await connection.fetch("SELECT * FROM runs")
            runs = {
                str(row["run_id"]): StoredRun(
                    str(row["run_id"]),
                    row["state"],
                    row["epoch"],
                    row["next_sequence"],
                    row["request_id"],
                    row["owner_replica"] is not None,
                    row["end_time"] is not None,
                )
                for row in rows
            }
            for row in await connection.fetch(
                "SELECT run_id, epoch, sequence, header FROM events ORDER BY run_id, sequence"
            ):
                run = runs[str(row["run_id"])]
                event = event_pb2.RunEvent.FromString(row["header"])
                event.sequence = row["sequence"]
                run.events.append(event)
                run.epochs.append(row["epoch"])
        return runs
    finally:
        await connection.close()


async def passed(dsn: str, instant: timestamp_pb2.Timestamp) -> None:
    """Waits until an instant has passed by the database's clock."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "SELECT pg_sleep_until(timestamptz 'epoch' + $1::bigint * interval '1 microsecond')",
            instant.ToMicroseconds(),
        )
    finally:
        await connection.close()


def kind(event: event_pb2.RunEvent) -> str:
    """What an event is."""
    return str(event.WhichOneof("kind"))


def journal_faults(runs: Mapping[str, StoredRun], edges: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Journals are dense, monotonic in epoch and time, end once a round, and keep the order of the graph (`edges`)."""
    faults = []
    for run in runs.values():
        sequences = [event.sequence for event in run.events]
        if sequences != list(range(1, len(sequences) + 1)):
            faults.append(f"{run.run_id}: the journal is not dense: {sequences}")
        if run.next_sequence != len(sequences) + 1:
            faults.append(f"{run.run_id}: next_sequence {run.next_sequence} after {len(sequences)} events")
        if run.epochs != sorted(run.epochs) or run.epochs[-1] > run.epoch:
            faults.append(f"{run.run_id}: epochs go back: {run.epochs}, now {run.epoch}")
        times = [event.time.ToMicroseconds() for event in run.events]
        if any(two <= one for one, two in itertools.pairwise(times)):
            faults.append(f"{run.run_id}: times do not rise")
        ends = [position for position, event in enumerate(run.events) if kind(event) in ENDING]
        ended = kind(run.events[-1]) in ENDING
        if any(kind(event) != "run_reopened" for position in ends for event in run.events[position + 1 : position + 2]):
            faults.append(f"{run.run_id}: events follow the end of a round")
        if run.ended is not ended or (run.ended and run.owned):
            faults.append(f"{run.run_id}: the row says ended={run.ended} owned={run.owned}, the journal {ended}")
        faults.extend(_step_faults(run))
        faults.extend(_order_faults(run, edges))
    return faults


def _step_faults(run: StoredRun) -> list[str]:
    faults = []
    for step in {event.step for event in run.events if event.step}:
        events = run.of_step(step)
        for part in _rounds(run, events):
            ends = [event for event in part if kind(event) in STEP_ENDING]
            if len(ends) > 1 or (ends and part[-1] is not ends[0]):
                faults.append(f"{run.run_id}/{step}: events follow its end")
        attempts = [event.attempt for event in events if kind(event) == "attempt_started"]
        if attempts != list(range(1, len(attempts) + 1)):
            faults.append(f"{run.run_id}/{step}: attempts {attempts}")
        deliveries: defaultdict[int, list[int]] = defaultdict(lambda: [1])
        handed_over: Counter[int] = Counter()
        for event in events:
            if kind(event) == "delivery_started":
                deliveries[event.attempt].append(event.delivery_started.delivery)
                handed_over[event.attempt] += event.delivery_started.handed_over
        for attempt, numbers in deliveries.items():
            counted = len(numbers) - handed_over[attempt]
            if numbers != list(range(1, len(numbers) + 1)) or counted > MAX_DELIVERIES:
                faults.append(f"{run.run_id}/{step}: deliveries of attempt {attempt}: {numbers}")
    return faults


def _rounds(run: StoredRun, events: Sequence[event_pb2.RunEvent]) -> list[list[event_pb2.RunEvent]]:
    """Events of a run, by its rounds, and by how often steps began anew in them."""
    anew = [event for event in run.events if kind(event) == "run_reopened" or event.step_retried.reset]
    begins = [0, *(event.sequence for event in anew), len(run.events) + 1]
    return [[event for event in events if one <= event.sequence < two] for one, two in itertools.pairwise(begins)]


def _order_faults(run: StoredRun, edges: Iterable[tuple[str, str]]) -> list[str]:
    ended = {event.step: event.sequence for event in run.events if kind(event) in STEP_ENDING}
    started: dict[str, int] = {}
    for event in run.events:
        if kind(event) == "attempt_started":
            started.setdefault(event.step, event.sequence)
    return [
        f"{run.run_id}: {two} started before {one} ended"
        for one, two in edges
        if two in started and (one not in ended or ended[one] > started[two])
    ]


def submission_faults(runs: Mapping[str, StoredRun], acknowledged: Mapping[str, str]) -> list[str]:
    """Every acknowledged submission (request_id to run_id) is there and has ended; one request_id makes one run."""
    faults = [f"{request_id}: {run_id} is lost" for request_id, run_id in acknowledged.items() if run_id not in runs]
    faults += [
        f"{request_id}: the run {run_id} was stored for {runs[run_id].request_id}"
        for request_id, run_id in acknowledged.items()
        if run_id in runs and runs[run_id].request_id != request_id
    ]
    given = [run.request_id for run in runs.values() if run.request_id]
    faults += [f"{request_id} made several runs" for request_id in set(given) if given.count(request_id) > 1]
    faults += [f"{run.run_id} has not ended" for run in runs.values() if not run.ended]
    return faults


def call_faults(runs: Mapping[str, StoredRun], notes: Sequence[Note], *, paused: bool = False) -> list[str]:
    """No call comes before the durable entry of its delivery, none after its step ended, none twice; and the key of a
    step is the same in all of them.

    Where a server was `paused`, what it had handed to the network comes late, when it goes on; the epoch of such a call
    is below that of the events after it, so that a worker can tell.
    """
    faults = []
    seen: set[tuple[str, str, int, int]] = set()
    keys: dict[tuple[str, str], str] = {}
    for note in notes:
        if note.what != "arrived":
            continue
        name = f"{note.run}/{note.step} attempt {note.attempt} delivery {note.delivery}"
        run = runs.get(note.run)
        if run is None:
            faults.append(f"{name}: of a run that is not stored")
            continue
        call = (note.run, note.step, note.attempt, note.delivery)
        if call in seen:
            faults.append(f"{name}: was sent twice")
        seen.add(call)
        if keys.setdefault((note.run, note.step), note.key) != note.key:
            faults.append(f"{name}: has another key")
        entry = _entry_of(run, note)
        if entry is None:
            faults.append(f"{name}: was never journaled")
        elif note.time < entry.time.ToMicroseconds() - CLOCK_SLACK_US:
            early_us = entry.time.ToMicroseconds() - note.time
            faults.append(f"{name}: came {early_us} us before its entry")
        for event in run.of_step(note.step):
            if paused and note.epoch < run.epochs[event.sequence - 1]:
                continue
            if kind(event) in STEP_ENDING and note.time > event.time.ToMicroseconds() + CLOCK_SLACK_US:
                faults.append(f"{name}: came after {kind(event)}")
    return faults


def _entry_of(run: StoredRun, note: Note) -> event_pb2.RunEvent | None:
    for event in run.of_step(note.step):
        if event.attempt != note.attempt:
            continue
        if note.delivery == 1 and kind(event) == "attempt_started":
            return event
        if kind(event) == "delivery_started" and event.delivery_started.delivery == note.delivery:
            return event
    return None


def answer_faults(runs: Mapping[str, StoredRun], notes: Sequence[Note]) -> list[str]:
    """Every success comes from a call that the worker answered."""
    answered = {(note.run, note.step, note.attempt) for note in notes if note.what == "answered"}
    return [
        f"{run.run_id}/{event.step}: succeeded without an answer"
        for run in runs.values()
        for event in run.events
        if kind(event) == "step_succeeded" and (run.run_id, event.step, event.attempt) not in answered
    ]
